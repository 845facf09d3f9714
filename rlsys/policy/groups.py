"""The samples of one prompt as records to be judged, and the judgements back to one reward per sample.

Equal texts are judged once. More texts than one judgement takes are split into parts that share some of them, the anchors. All parts are
full, as judges are unreliable for a number of responses that they were not trained on; a text that fills a part has the mean of its scores:

    samples   a b b c d e          texts   a b c d e      at most 3 per judgement, 1 anchor
    parts     (b, a, d)  (b, c, e)                        judged k times each, in fresh orders
    levels    6 3 8      4 2 7                            the strategy's mean scores; b is the anchor: 6 and 4, mean 5
    joined    a 2, b 5, c 3, d 7, e 8                     each part shifted by what its anchors differ from their mean: -1 and +1
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from rlsys.config.policy import Judge
from rlsys.data.records import Record
from rlsys.judging.requests import JudgeRequest, JudgeResult, judge_request
from rlsys.judging.voting import Options, SampleTable, Strategy
from rlsys.prompts.rendering import shuffled

Floats = NDArray[np.float64]
Key = tuple[str | int, ...]


@dataclass(frozen=True)
class SampledGroup:
    """The samples of a prompt, as they are judged.

    Args:
        record: the prompt.
        texts: of the samples.
        parts: indices in `distinct` of the responses of each part, anchors first; none if all texts are equal.
    """

    record: Record
    texts: Sequence[str]
    distinct: tuple[str, ...]
    parts: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, record: Record, texts: Sequence[str], judge: Judge, *key: str | int) -> SampledGroup:
        """Split the texts of `record`; which are the anchors depends on (*key, record.id) alone."""
        distinct = tuple(dict.fromkeys(texts))
        parts = split(len(distinct), judge.max_responses, judge.anchors, (*key, record.id)) if len(distinct) > 1 else ()
        return cls(record, texts, distinct, parts)

    def requests(self, k: int, *key: str | int) -> list[JudgeRequest]:
        """Return a request for each part, with k orders; they depend on (*key, record.id, part) alone."""
        return [judge_request(self._part_record(number, part), k, *key) for number, part in enumerate(self.parts)]

    def _part_record(self, number: int, part: tuple[int, ...]) -> Record:
        record, count = self.record, len(part)
        responses = tuple(self.distinct[index] for index in part)
        return Record(
            f"{record.id}/{number}", record.source, record.context, responses, (0.0,) * count, family=record.family, labelled=False
        )

    def rewards(self, results: Sequence[JudgeResult], judge: Judge, strategy: Strategy) -> tuple[Floats, Floats] | None:
        """Return the reward and the mean score of each sample, [samples]; None if a part has no judgement.

        Args:
            results: of `requests`, one per part.
        """
        means, wins = [], []
        for result in results:
            found = levels(result, strategy, Options(k_meta=judge.k_meta))
            if found is None:
                return None
            means.append(found[0])
            wins.append(found[1])
        if not means:
            return None
        place = [self.distinct.index(text) for text in self.texts]
        scores = joined(self.parts, means, judge.anchors)
        rewards = scores
        if judge.reward == "rank":
            rewards = (np.asarray(rankdata(scores.round(9))) - 1) / (len(scores) - 1)
        elif judge.reward == "win_rate":
            rewards = joined(self.parts, wins, judge.anchors)
        return rewards[place], scores[place]


def split(n: int, limit: int, anchors: int, key: Key) -> tuple[tuple[int, ...], ...]:
    """Split responses 0 .. n-1 into parts of `limit`, each of which begins with the same `anchors`; the last ones may fill parts twice."""
    if n <= limit:
        return (tuple(range(n)),)
    order = shuffled(n, "parts", *key)
    shared, rest = order[:anchors], order[anchors:]
    own = limit - anchors
    starts = [min(start, len(rest) - own) for start in range(0, len(rest), own)]
    return tuple((*shared, *rest[start : start + own]) for start in starts)


def joined(parts: Sequence[Sequence[int]], values: Sequence[Floats], anchors: int) -> Floats:
    """Join the values of parts, one per response; the first `anchors` of each part are the same (see the module's example)."""
    if len(parts) == 1:
        return values[0]
    own_means = np.array([part[:anchors].mean() for part in values])
    shifts = own_means.mean() - own_means
    found: dict[int, list[float]] = {}
    for part, own, shift in zip(parts, values, shifts, strict=True):
        for response, value in zip(part, own, strict=True):
            found.setdefault(response, []).append(float(value + shift))
    return np.array([np.mean(found[response]) for response in range(len(found))])


def levels(result: JudgeResult, strategy: Strategy, options: Options) -> tuple[Floats, Floats] | None:
    """Return the strategy's mean score and mean win rate of each response, [n]; None if nothing parsed or it abstained.

    Judgements that did not parse take no part. The strategy weights the judgements in the same way for both.
    """
    if not any(sample["scores"] is not None for sample in result.samples):
        return None
    table = SampleTable(strategy.needs)
    table.add({"id": result.record.id, "samples": result.samples})
    ((_, samples),) = table.groups()
    outcome = strategy(samples, options)
    if outcome.abstained.any() or np.isnan(outcome.levels).any():
        return None
    wins = strategy(replace(samples, scores=win_rates(samples.scores)), options)
    return outcome.levels[0], wins.levels[0]


def win_rates(scores: Floats) -> Floats:
    """[..., k, n] for n > 1: the share of the other responses that each one beats within a judgement, a tie counting half."""
    own, other = scores[..., :, None], scores[..., None, :]
    beaten = (own > other) + 0.5 * (own == other)
    rates: Floats = (beaten.sum(axis=-1) - 0.5) / (scores.shape[-1] - 1)
    return np.where(np.isnan(scores), np.nan, rates)
