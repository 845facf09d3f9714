"""The metrics of a run, each defined once, for metrics.jsonl, TensorBoard, the Ray dashboard and docs/metrics.md.

A name may have a label, as in `parse_failures/{reason}`: such a metric has a value for each reason.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Literal

PREFIX = "rlsys_"

MetricValue = int | float | str | None
"""A number, or a text such as a reason; None for a value that is not finite."""


@dataclass(frozen=True)
class Metric:
    """One metric. Example: Metric("kl", "nats per token", "k3 estimate of KL(policy || reference)")."""

    name: str
    """As in metrics.jsonl and TensorBoard."""
    unit: str
    """Empty for counts, fractions and plain numbers."""
    meaning: str
    kind: Literal["gauge", "counter"] = "gauge"
    """A counter only grows while its process lives."""

    @cached_property
    def label(self) -> str | None:
        """The label in the name, if any."""
        found = re.search(r"\{(\w+)\}", self.name)
        return found[1] if found else None

    @property
    def dashboard_name(self) -> str:
        """Name of the gauge that an actor sets; the label becomes a tag."""
        return PREFIX + re.sub(r"[/_]?\{\w+\}", "", self.name).replace("/", "_")

    @property
    def prometheus_name(self) -> str:
        """Name at Ray's metrics endpoint and in Prometheus."""
        return f"ray_{self.dashboard_name}" + ("_total" if self.kind == "counter" else "")

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        before, _, after = self.name.partition(f"{{{self.label}}}") if self.label else (self.name, "", "")
        return re.compile(re.escape(before) + ("(.+)" if self.label else "") + re.escape(after))

    def match(self, name: str) -> dict[str, str] | None:
        """Return the value of the label (empty if there is none) if `name` is a name of this metric; otherwise None."""
        found = self._pattern.fullmatch(name)
        return None if found is None else {self.label: found[1]} if self.label else {}


STEP_PHASES = ("wait_for_samples", "train", "send_weights", "write_trajectories", "checkpoint", "evaluate", "other")
"""Phases of an RL step; together they make up its wall time."""

GROUPS: dict[str, tuple[Metric, ...]] = {
    "Reward": (
        Metric("reward", "", "mean reward of the step's samples, from -1 (all wrong) to +1; of a policy on any scale"),
        Metric("accuracy", "", "fraction of the samples that judge correctly; of a scalar model: fraction of the texts"),
        Metric("parse_failure_share", "", "fraction of the samples without well-formed scores"),
        Metric("parse_failures/{reason}", "", "samples without well-formed scores, by reason"),
        Metric("source/{source}/reward", "", "mean reward of the rows of one source of a mixture"),
        Metric("source/{source}/rows", "", "rows of one source of a mixture"),
    ),
    "Policy's rewards (rlsys policy)": (
        Metric("judge_score", "", "mean score that the judge gave to a sample"),
        Metric("gold", "", "fraction of the samples that pass the checks of their row"),
        Metric("bt", "", "mean score of the Bradley-Terry model"),
        Metric("judge_agreement", "", "fraction of the pairs of a sample that passes and one that does not whose first the judge prefers"),
        Metric("judgements", "", "judgements sampled"),
        Metric("judgements_failed", "", "judgements that did not parse, which take no part in the reward"),
        Metric("judge_tokens", "tokens", "tokens of the judgements"),
        Metric("groups_unjudged", "", "groups left out because none of the judgements of a part parsed"),
        Metric("groups_identical", "", "groups left out because all their texts are equal"),
    ),
    "Groups and samples": (
        Metric("groups", "", "groups sampled, one for each prompt, including refills"),
        Metric("groups_unequal", "", "groups whose rewards differ"),
        Metric("groups_trained", "", "groups that the learner received"),
        Metric("groups_all_right", "", "groups with only correct samples"),
        Metric("groups_equal_share", "", "fraction of the groups whose rewards are all equal"),
        Metric("samples", "", "samples judged"),
        Metric("truncated", "", "samples cut off at rollout.max_tokens"),
        Metric("tokens_per_sample", "tokens", "mean number of generated tokens"),
        Metric("prompts_too_long", "", "rows longer than prompt.max_tokens so far"),
    ),
    "Policy": (
        Metric("loss", "", "loss of the update; of a scalar model in nats per text, or per row with meta_rm.objective=bt"),
        Metric("kl", "nats per token", "k3 estimate of the KL divergence from the reference policy"),
        Metric("entropy", "nats per token", "entropy of the policy"),
        Metric("nll", "nats per token", "negative log-likelihood of the texts in supervised steps"),
        Metric("ratio", "", "mean of policy / old policy"),
        Metric("clip_fraction", "", "fraction of the tokens whose gradient was clipped to zero"),
        Metric("grad_norm", "", "norm of the gradient before clipping"),
        Metric("lr", "", "learning rate"),
        Metric("skipped", "", "1 if the update was skipped, otherwise 0"),
        Metric("skip_reason", "", "why the update was skipped (text)"),
        Metric("round", "", "round of rejective fine-tuning"),
        Metric("heldout_{measure}", "", "held-out figure of a scalar model, every meta_rm.eval_every steps"),
    ),
    "Staleness": (
        Metric("weight_version", "", "version of the engines' weights after the step"),
        Metric("weight_bytes", "bytes", "size of the new weights that each engine got after the step; 0 if nothing was trained on"),
        Metric("oldest_version", "", "version of the weights that the step's oldest sample comes from"),
        Metric("mismatch", "nats per token", "mean absolute difference of log-probabilities between trainer and engine"),
        Metric("mismatch_k3", "nats per token", "k3 estimate of KL(engine || trainer)"),
        Metric("mismatch_max", "nats", "largest difference of log-probabilities between trainer and engine"),
        Metric("importance_weight", "", "mean importance weight after truncation"),
        Metric("importance_truncated", "", "fraction of the tokens at rl.importance_cap"),
    ),
    "Time and throughput": (
        Metric("seconds/{phase}", "seconds", "seconds of the last step, or of the last run of a phase outside of steps, by phase"),
        Metric("generated_tokens_per_s", "tokens per second", "tokens generated per second of the generate phase, all engines together"),
        Metric("tokens", "tokens", "completion tokens trained on; generated ones if nothing was trained on"),
        Metric("encoded_tokens", "tokens", "tokens that the learners encode in one pass, a shared prompt counted once"),
        Metric("row_tokens", "tokens", "tokens of a scalar model's batch, with prompts repeated"),
    ),
}
"""The figures of a step, by subject."""

LIVE = (
    Metric("last_progress", "seconds since 1970", "time at which the run last completed a phase"),
    Metric("restarts", "", "times that the run, or its actors after a failure, were started again"),
    Metric("batches_waiting", "", "batches sampled and judged that wait for the learners; at most rl.staleness + 1"),
    Metric("samples_in_flight/{engine}", "", "samples that an engine has been asked for and has not returned, by engine"),
    Metric("engine_tokens/{engine}", "tokens", "tokens generated since the engine started, by engine", "counter"),
)
"""What is measured between steps, in Prometheus only."""


BY_SUBJECT = {**GROUPS, "Between steps": LIVE}


def all_metrics() -> Iterator[Metric]:
    """Yield every metric."""
    for metrics in BY_SUBJECT.values():
        yield from metrics


def of_a_step(name: str) -> bool:
    """Return whether metrics.jsonl may hold a metric of this name."""
    return any(metric.match(name) is not None for metrics in GROUPS.values() for metric in metrics)


@cache
def find(name: str) -> tuple[Metric, dict[str, str]]:
    """Return the metric of a name in metrics.jsonl, and its label.

    Raises:
        ValueError: no metric has this name.
    """
    for metric in all_metrics():
        if (label := metric.match(name)) is not None:
            return metric, label
    raise ValueError(f"{name}: no metric has this name; define it in rlsys/monitoring/definitions.py.")


def reference() -> str:
    """Return docs/metrics.md."""
    lines = [
        "<!-- Written by `rlsys metrics --markdown > docs/metrics.md`. Edit rlsys/monitoring/definitions.py. -->",
        "",
        "# Metrics",
        "",
        "The figures of a step are in `metrics.jsonl` and TensorBoard by the first name, and at the metrics endpoint of a Ray cluster by",
        "the second, with the label `run`. A name in braces is a label: there is a value for each. Where a step has no figure, it is",
        "missing or null. Metrics between steps are in Prometheus only.",
    ]
    for group, metrics in BY_SUBJECT.items():
        lines += ["", f"## {group}", "", "| metric | in Prometheus | unit | meaning |", "|---|---|---|---|"]
        lines += [f"| `{metric.name}` | `{metric.prometheus_name}` | {metric.unit} | {metric.meaning} |" for metric in metrics]
    return "\n".join(lines) + "\n"
