"""One RL step: its batch, and the metrics and the screen line that report it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import ray

from rlsys.evaluation.advice import describe_failures
from rlsys.policy.batch import describe_judging


@dataclass
class TrainingBatch:
    """The judged samples of one RL step."""

    step: int
    learner: ray.ObjectRef
    """A `LearnerBatch`."""
    counts: dict[str, Any]
    sampler_state: dict[str, Any]
    seconds: dict[str, float]
    """By phase: draw, generate, judge."""

    @property
    def trainable(self) -> bool:
        """Whether any group is trained on. Otherwise the weights stay the same."""
        return self.counts["groups_trained"] > 0


NOT_METRICS = ("parse_failures", "reward_sum", "rewarded", "sources", "means")
"""Counts from which metrics are computed."""


def add_counts(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """Combine the counts of a step's rounds (`RewardActor.judge`)."""
    separate = ("parse_failures", "oldest_version", "sources", "means")
    total = {name: sum(counts[name] for counts in rounds) for name in rounds[0] if name not in separate}
    total["sources"] = [source for counts in rounds for source in counts["sources"]]
    total["parse_failures"] = dict(sum((Counter(counts["parse_failures"]) for counts in rounds), Counter()))
    total["means"] = {
        name: tuple(map(sum, zip(*(counts["means"][name] for counts in rounds), strict=True))) for name in rounds[0].get("means", {})
    }
    total["oldest_version"] = min(counts["oldest_version"] for counts in rounds)
    return total


def step_metrics(batch: TrainingBatch, update: dict[str, Any]) -> dict[str, Any]:
    """Combine the figures of a step's samples and update.

    The seconds of draw, generate and judge are the batch's own: they add up to the step's wait_for_samples when nothing overlaps.
    """
    counts = batch.counts
    reward = counts["reward_sum"] / max(1, counts["rewarded"])
    means = {name: total / count for name, (total, count) in counts["means"].items() if count}
    return {
        "reward": reward,
        # Rewards by the rules are +1 or -1. A policy's have any scale, and come with means of what was measured.
        **(means if counts["means"] else {"accuracy": (reward + 1) / 2}),
        "groups_equal_share": 1 - counts["groups_unequal"] / counts["groups"],
        "tokens_per_sample": counts["tokens"] / counts["samples"],
        "parse_failure_share": sum(counts["parse_failures"].values()) / counts["samples"],
        **{name: value for name, value in counts.items() if name not in NOT_METRICS},
        **{f"parse_failures/{reason}": count for reason, count in counts["parse_failures"].items()},
        **update,
        **{f"seconds/{name}": value for name, value in batch.seconds.items()},
        "generated_tokens_per_s": counts["tokens"] / batch.seconds["generate"],
    }


MEASURED = {"judge_score": "judge {:.2f}", "gold": "gold {:.1%}", "bt": "BT {:+.2f}"}
"""What a policy's step line shows besides its reward, by metric."""


def step_line(batch: TrainingBatch, update: dict[str, Any], metrics: dict[str, Any]) -> str:
    """Format a step's figures for the screen."""
    counts = batch.counts
    divergence = f"KL {update['kl']:.4f}, entropy {update['entropy']:.2f}, " if update.get("kl") is not None else ""
    measured = [form.format(metrics[name]) for name, form in MEASURED.items() if name in metrics]
    return (
        f"reward {metrics['reward']:+.3f}, {', '.join([*measured, ''])}{divergence}"
        f"{counts['groups_unequal']}/{counts['groups']} groups unequal, {metrics['generated_tokens_per_s']:.0f} tokens/s, "
        f"generate {metrics['seconds/generate']:.1f} s, train {metrics['seconds/train']:.1f} s, "
        f"send {metrics['seconds/send_weights']:.1f} s"
    )


def set_aside_note(batch: TrainingBatch, too_long: int, max_tokens: int) -> str:
    """Describe the step's parse failures and the rows that were too long so far; empty if there are none."""
    counts, notes = batch.counts, []
    if counts["parse_failures"]:  # truncated texts are among them
        notes.append(describe_failures(counts["parse_failures"], counts["samples"], counts["truncated"], max_tokens))
    if judging := describe_judging(counts):
        notes.append(judging)
    if too_long:
        notes.append(f"{too_long:,} rows longer than prompt.max_tokens so far")
    return "".join(f"; {note}" for note in notes)
