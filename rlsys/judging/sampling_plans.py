"""Which samples a strategy requests: all at once, in rounds until the winner is clear, or a last one whose prompt contains the others."""

from __future__ import annotations

from collections.abc import Callable

from rlsys.data.records import Record
from rlsys.judging.requests import JudgeRequest, JudgeResult, judge_request
from rlsys.judging.voting import Options, SampleTable, Strategy, is_decided
from rlsys.prompts.rendering import seed_for, shuffled

SamplingPlan = Callable[[Record, JudgeResult | None], JudgeRequest | None]
"""(record, its result so far) -> next request, or None if no more samples are needed. Not called again for a record that was skipped."""


def sampling_plan(strategy: Strategy, k: int, options: Options, seed: int) -> SamplingPlan:
    """Return the sampling plan of a strategy; `k` is the maximum number of samples for each record."""
    plans = {"adaptive": _adaptive, "synthesis": _synthesis}
    return plans.get(strategy.name, _at_once)(k, options, seed)


def _at_once(k: int, options: Options, seed: int) -> SamplingPlan:
    return lambda record, result: None if result else judge_request(record, k, "judge", seed)


def _adaptive(k: int, options: Options, seed: int) -> SamplingPlan:
    """Request the samples of `_at_once` in rounds of `options.round_size`; all k for a single response, which has no rival."""

    def next_request(record: Record, result: JudgeResult | None) -> JudgeRequest | None:
        first = len(result.samples) if result else 0
        if first >= k or (result and record.n > 1 and _has_clear_winner(result, options)):
            return None
        return judge_request(record, min(options.round_size, k - first), "judge", seed, first=first)

    return next_request


def _has_clear_winner(result: JudgeResult, options: Options) -> bool:
    table = SampleTable()
    table.add({"id": result.record.id, "samples": result.samples})
    ((_, samples),) = table.groups()
    return bool(is_decided(samples, options).all())


def _synthesis(k: int, options: Options, seed: int) -> SamplingPlan:
    """Request k - 1 samples in one order, then one whose prompt contains them (generative self-aggregation, arXiv 2503.04104)."""

    def next_request(record: Record, result: JudgeResult | None) -> JudgeRequest | None:
        order = shuffled(record.n, "judge", seed, record.id)
        if result is None and k > 1:
            return judge_request(record, k - 1, "judge", seed, order=order)
        if result is None or len(result.samples) < k:
            others = tuple(sample["text"] for sample in result.samples) if result else ()
            return JudgeRequest(record, [order], [seed_for("judge", seed, record.id, k - 1)], others=others)
        return None

    return next_request
