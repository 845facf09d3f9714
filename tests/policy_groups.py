"""Judged groups and reward functions for the tests of `rlsys policy`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rlsys.config.policy import Judge
from rlsys.data.chain import Sample
from rlsys.data.records import Record
from rlsys.judging.requests import JudgeRequest, JudgeResult, RenderedRequest
from rlsys.policy.batch import MeasuredGroup
from rlsys.policy.groups import SampledGroup


def judged(
    record: Record, samples: Sequence[Sample], scores: Sequence[Mapping[str, float] | None], judge: Judge, bt: Any = None
) -> MeasuredGroup:
    """Return a group that was judged once for each of `scores`: by text, or None if the judgement did not parse."""
    sampled = SampledGroup.of(record, [sample.text for sample in samples], judge, 0)
    results = [judgement(request, *scores) for request in sampled.requests(len(scores), 0)]
    return MeasuredGroup(record, samples, bt, sampled, results)


def judgement(request: JudgeRequest, *scores: Mapping[str, float] | None, **optional: Sequence[float]) -> JudgeResult:
    """Return the result of a request whose judgement number i gave `scores[i]`, by text; None: it did not parse."""
    rows = []
    for number, (order, own) in enumerate(zip(request.orders, scores, strict=True)):
        shown = None if own is None else [own[request.record.responses[index]] for index in order]
        more = {name: values[number] for name, values in optional.items()}
        rows.append({"order": list(order), "scores": shown, "tokens": 5, "logprob": -1.0, "text": ""} | more)
    return JudgeResult(RenderedRequest(request, []), rows)


def letters(record: Record, sample: Sample) -> float:
    """Number of letters."""
    return sum(map(str.isalpha, sample.text))


def not_a_number(record: Record, sample: Sample) -> float:
    return float("nan")
