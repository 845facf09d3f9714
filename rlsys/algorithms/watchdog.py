"""Run-time check that RL still learns from something: a run whose metrics stay out of bounds stops with an explanation."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from rlsys.config.schema import Watchdog


class WatchdogError(RuntimeError):
    """A metric was out of bounds for too many steps. The message has the figures, the setting, and what to check."""


@dataclass(frozen=True)
class Rule:
    """A bound of a metric."""

    setting: str
    """Key of the bound in section `watchdog`; with null or false, the rule is off."""
    words: str
    """The metric in words."""
    value: Callable[[Mapping[str, Any]], float | None]
    """From a step's metrics to the value; None if the step has none."""
    exceeds: Callable[[float, float], bool]
    """Whether a value is out of bounds: (value, bound)."""
    advice: str


def _not_finite(metrics: Mapping[str, Any]) -> float:
    return float(bool(metrics.get("skipped")) and metrics["groups_trained"] > 0)


def _above(value: float, bound: float) -> bool:
    return value > bound


def _at_least(value: float, bound: float) -> bool:
    return value >= bound


RULES = (
    Rule(
        "max_kl",
        "KL to the reference, in nats per token,",
        lambda metrics: metrics.get("kl"),
        _above,
        "the policy has left the model it started from: lower learner.lr, raise rl.beta, and continue from an earlier checkpoint",
    ),
    Rule(
        "min_entropy",
        "entropy of the policy, in nats per token,",
        lambda metrics: metrics.get("entropy"),
        lambda value, bound: value < bound,
        "the policy writes the same text whatever the seed, so that no group has samples to compare: raise rollout.temperature or rl.beta, "
        "or continue from an earlier checkpoint",
    ),
    Rule(
        "max_parse_failures",
        "share of samples without well-formed scores",
        lambda metrics: metrics["parse_failure_share"],
        _at_least,
        "the model has not learned the output format, or lost it: a cold start teaches it (sft.rows, sft.data); a released judge with "
        "scores of its own form needs prompt.scores",
    ),
    Rule(
        "max_cut_off",
        "share of samples cut off at rollout.max_tokens",
        lambda metrics: metrics["truncated"] / metrics["samples"],
        _at_least,
        "raise rollout.max_tokens, or check that the chat template's end-of-turn token is the one that the model writes",
    ),
    Rule(
        "max_equal_groups",
        "share of groups whose rewards are all equal",
        lambda metrics: metrics["groups_equal_share"],
        _at_least,
        "there is nothing to learn from: the rows are too easy or too hard for the model, or too alike (docs/rft.md filters them); a "
        "larger rl.group_size or rollout.temperature makes samples differ",
    ),
    Rule(
        "not_finite",
        "number of updates skipped because loss or gradient was not finite",
        _not_finite,
        _at_least,
        "lower learner.lr, or set model.dtype=float32 to see whether rounding is the cause",
    ),
)


class StepWatchdog:
    """Stops a run once a metric was out of its bound, or NaN, in `watchdog.steps` consecutive steps that have it, since it was started."""

    def __init__(self, bounds: Watchdog):
        self.bounds = bounds
        self._over: Counter[str] = Counter()

    def check(self, step: int, metrics: Mapping[str, Any]) -> list[str]:
        """Check the metrics of a step, as in metrics.jsonl.

        Returns:
            a warning for each metric that is out of bounds for the first of consecutive steps.

        Raises:
            WatchdogError: a metric was out of bounds in `watchdog.steps` consecutive steps.
        """
        warnings = []
        for rule in RULES:
            bound, value = getattr(self.bounds, rule.setting), rule.value(metrics)
            if bound is None or bound is False or value is None:
                continue
            if not (math.isnan(value) or rule.exceeds(value, bound)):
                self._over[rule.setting] = 0
                continue
            self._over[rule.setting] += 1
            message = f"step {step}: {rule.words} is {value:.3g}, watchdog.{rule.setting} is {bound:g}"
            if self._over[rule.setting] >= self.bounds.steps:
                raise WatchdogError(f"{message}, for {self._over[rule.setting]} consecutive step(s). Probably {rule.advice}.")
            if self._over[rule.setting] == 1:
                warnings.append(f"{message}; the run stops after {self.bounds.steps} consecutive such steps")
        return warnings
