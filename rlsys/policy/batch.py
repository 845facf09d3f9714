"""The rewards of a policy's batch: sampled and judged groups in, REWARDS and figures out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import numpy as np
import pyarrow as pa

from rlsys.config.policy import Judge, Policy
from rlsys.data.chain import Sample
from rlsys.data.records import Record
from rlsys.data.trajectories import REWARDS
from rlsys.judging.requests import JudgeResult
from rlsys.judging.voting import Strategy
from rlsys.policy.groups import SampledGroup
from rlsys.policy.rewards import FurtherRewards, gold

Means = dict[str, tuple[float, int]]
"""Sum and number of the values of a figure, by name."""


@dataclass
class MeasuredGroup:
    """The samples of a prompt and what was found out about them."""

    record: Record
    samples: Sequence[Sample]
    bt: Sequence[float] | None = None
    """Scores of the Bradley-Terry model."""
    sampled: SampledGroup | None = None
    """None: the group was not given to the judge."""
    results: list[JudgeResult] = field(default_factory=list)
    """The judge's, one per part."""


class Rewarder:
    """Computes a batch's rewards by the settings of a run.

    Raises:
        ValueError: a function of `policy.rewards` does not exist.
    """

    def __init__(self, policy: Policy, judge: Judge, strategy: Strategy | None = None):
        self.policy, self.judge, self.strategy = policy, judge, strategy
        self.further = FurtherRewards(policy.rewards)

    def train(self, groups: Sequence[MeasuredGroup]) -> tuple[pa.Table, dict[str, Any]]:
        """Return the rewards to train on (REWARDS), and the figures of the batch.

        Figures: means (`Means`) and, with a judge, the numbers judgements, judgements_failed, judge_tokens, groups_unjudged (none of a
        part's judgements parsed) and groups_identical (all texts are equal, so there was nothing to judge).
        """
        return self._rewards(groups, heldout=False)

    def evaluate(self, groups: Sequence[MeasuredGroup]) -> tuple[pa.Table, dict[str, Any]]:
        """Like `train`, but the reward is +1 for a sample that passes its row's checks and -1 otherwise, as for a judge (Eq. 11)."""
        return self._rewards(groups, heldout=True)

    def _rewards(self, groups: Sequence[MeasuredGroup], heldout: bool) -> tuple[pa.Table, dict[str, Any]]:
        rows: list[dict[str, Any]] = []
        found = {"judge_score": [], "gold": [], "bt": [], "judge_agreement": []}  # type: dict[str, list[float]]
        unjudged = identical = 0
        for group in groups:
            golds = [gold(group.record, sample) for sample in group.samples]
            judged = self._judged(group)
            identical += group.sampled is not None and not group.sampled.parts
            unjudged += group.sampled is not None and bool(group.sampled.parts) and judged is None
            scores = [None] * len(golds) if judged is None else judged[1].tolist()
            bt = [None] * len(golds) if group.bt is None else list(group.bt)
            rewards = [2.0 * bool(one) - 1 for one in golds] if heldout else self._group_rewards(group, golds, judged)
            for name, values in (("judge_score", scores), ("gold", golds), ("bt", bt)):
                found[name] += [float(value) for value in values if value is not None]
            found["judge_agreement"] += agreements(scores, golds)
            for sample, *values in zip(group.samples, rewards, scores, golds, bt, strict=True):
                rows.append(dict(zip(REWARDS.names, (sample.group, sample.sample, *values), strict=True)))
        figures: dict[str, Any] = {"means": {name: (sum(values), len(values)) for name, values in found.items()}}
        if any(group.sampled is not None for group in groups):
            figures |= _judge_figures(groups) | {"groups_unjudged": unjudged, "groups_identical": identical}
        return pa.Table.from_pylist(rows, schema=REWARDS), figures

    def _judged(self, group: MeasuredGroup) -> tuple[np.ndarray, np.ndarray] | None:
        if group.sampled is None or self.strategy is None:
            return None
        return group.sampled.rewards(group.results, self.judge, self.strategy)

    def _group_rewards(
        self, group: MeasuredGroup, golds: Sequence[bool | None], judged: tuple[np.ndarray, np.ndarray] | None
    ) -> list[float | None]:
        """Return the reward of each sample; None for all of them if what the run trains on is unknown for this group."""
        main = {"judge": None if judged is None else judged[0], "gold": golds, "bt": group.bt}[self.policy.reward]
        if main is None or any(value is None for value in main):
            return [None] * len(golds)
        further = [self.further(group.record, sample) for sample in group.samples]
        return [self.policy.weight * float(value) + more for value, more in zip(main, further, strict=True)]


def agreements(scores: Sequence[float | None], golds: Sequence[bool | None]) -> list[float]:
    """Return, for each pair of a sample that passes its checks and one that fails, whether the judge prefers the first; 0.5 for a tie."""
    sides: dict[bool, list[float]] = {True: [], False: []}
    for score, passed in zip(scores, golds, strict=True):
        if score is not None and passed is not None:
            sides[passed].append(score)
    return [1.0 if right > wrong else 0.5 if right == wrong else 0.0 for right, wrong in product(sides[True], sides[False])]


def _judge_figures(groups: Sequence[MeasuredGroup]) -> dict[str, Any]:
    samples = [sample for group in groups for result in group.results for sample in result.samples]
    return {
        "judgements": len(samples),
        "judgements_failed": sum(sample["scores"] is None for sample in samples),
        "judge_tokens": sum(sample["tokens"] for sample in samples),
    }


def judgement_rows(groups: Sequence[MeasuredGroup]) -> list[dict[str, Any]]:
    """Return a row for each part of each group: those of `JudgeResult.row`, with group, query and responses."""
    return [
        {"group": group.samples[0].group, "query": result.record.context[-1]["content"], "responses": list(result.record.responses)}
        | result.row()
        for group in groups
        for result in group.results
    ]


def describe_judging(counts: dict[str, Any]) -> str:
    """Describe what the judge left out; empty if nothing."""
    counted = Counter({name: counts.get(name, 0) for name in ("judgements_failed", "groups_unjudged", "groups_identical")})
    notes = []
    if counted["judgements_failed"]:
        notes.append(f"{counted['judgements_failed']:,} of {counts['judgements']:,} judgements not parsed")
    if counted["groups_unjudged"]:
        notes.append(f"{counted['groups_unjudged']:,} groups without a judgement")
    if counted["groups_identical"]:
        notes.append(f"{counted['groups_identical']:,} groups of equal texts")
    return ", ".join(notes)
