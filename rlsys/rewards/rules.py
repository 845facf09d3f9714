"""Rule-based reward of a critique (arXiv 2504.02495, Eq. 10 and 11).

The extracted scores are put back into the record's own order and compared with the ground truth; the reward is +1 or -1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from rlsys.data.records import NoUniqueBest
from rlsys.rewards.extraction import DEFAULT_FORMAT, ScoreFormat


class Judgement(NamedTuple):
    """Result of judging one critique."""

    scores: tuple[float, ...] | None
    """In the record's own order; None after a parse failure."""
    failure: str | None
    """Reason for the parse failure, or None."""
    correct: bool
    """Eq. 10."""
    reward: float
    """Eq. 11."""


def check_order(order: Sequence[int], n: int) -> None:
    """Raise ValueError unless `order` is a permutation of 0 .. n-1."""
    if sorted(order) != list(range(n)):
        raise ValueError(f"order {list(order)}: expected each of 0 .. {n - 1} once, the original index of the response at each place.")


def unshuffle(scores: Sequence[float], order: Sequence[int]) -> tuple[float, ...]:
    """Reorder scores from the order shown to the record's own order.

    Args:
        scores: one per response, in the order shown.
        order: order[p] is the original index of the response shown at place p.

    Raises:
        ValueError: `order` is not a permutation of 0 .. n-1, where n is the number of scores.
    """
    check_order(order, len(scores))
    back: list[float] = [0] * len(scores)
    for score, original in zip(scores, order):
        back[original] = score
    return tuple(back)


def is_correct(scores: Sequence[float], rewards: Sequence[float], single: tuple[int, int] = (0, 1)) -> bool:
    """Evaluate Eq. 10: whether the best response alone has the highest score; for a single response see `single_is_correct`.

    Args:
        scores: in the same order as `rewards`.
        rewards: the ground truth.
        single: lowest and highest score of a single response.

    Raises:
        ValueError: the lengths differ, or `rewards` is not a valid ground truth: empty, NaN, no unique maximum, or, for a single
            response, neither 0 nor 1.
    """
    best = _best(rewards)
    if len(scores) != len(rewards):
        raise ValueError(f"{len(scores)} scores for {len(rewards)} rewards: expected one score per response.")
    return _is_correct(scores, rewards, best, single)


def _is_correct(scores: Sequence[float], rewards: Sequence[float], best: int, single: tuple[int, int]) -> bool:
    if len(scores) == 1:
        return single_is_correct(scores[0], rewards[0], single)
    highest = max(scores)
    return scores[best] == highest and scores.count(highest) == 1


def single_is_correct(score: float, reward: float, limits: tuple[int, int]) -> bool:
    """Return whether a single response's score is nearer to the correct end of its range; on 0 and 1 this is S_1 == r_1 (Eq. 10)."""
    middle = sum(limits) / 2
    return score > middle if reward else score < middle


def rule_reward(correct: bool) -> float:
    """Evaluate Eq. 11: +1 if correct, else -1. A parse failure counts as incorrect; there is no format reward."""
    return 1.0 if correct else -1.0


class GroundTruth:
    """Ground truth and response order of one prompt, validated once for all its critiques.

    Args:
        rewards: ground truth in the record's own order.
        order: as in `unshuffle`; None means the record's own order.
        score_format: how scores are extracted.

    Raises:
        ValueError: invalid rewards or order (see `is_correct`, `unshuffle`).
    """

    def __init__(self, rewards: Sequence[float], order: Sequence[int] | None = None, score_format: ScoreFormat = DEFAULT_FORMAT):
        n = len(rewards)
        order = range(n) if order is None else order
        self.rewards, self.best = rewards, _best(rewards)
        check_order(order, n)
        self.places = sorted(range(n), key=order.__getitem__)
        """places[i] is the place at which response i of the record is shown; the inverse of `order`."""
        self.score_format = score_format

    def judge(self, text: str, truncated: bool = False) -> Judgement:
        """Extract the scores of a critique, restore the record's order, and compute correctness and reward. Accepts any text."""
        shown, failure = self.score_format.extract(text, len(self.places), truncated)
        if shown is None:
            return Judgement(None, failure, False, rule_reward(False))
        scores = tuple([shown[place] for place in self.places])
        correct = _is_correct(scores, self.rewards, self.best, self.score_format.single)
        return Judgement(scores, None, correct, rule_reward(correct))


def judge(
    text: str,
    rewards: Sequence[float],
    order: Sequence[int] | None = None,
    score_format: ScoreFormat = DEFAULT_FORMAT,
    truncated: bool = False,
) -> Judgement:
    """Judge a single text; shorthand for `GroundTruth(rewards, order, score_format).judge(text, truncated)`."""
    return GroundTruth(rewards, order, score_format).judge(text, truncated)


def _best(rewards: Sequence[float]) -> int:
    """Return the index of the unique maximum of a ground truth, or raise ValueError."""
    best = max(range(len(rewards)), key=lambda i: rewards[i], default=0)
    if len(rewards) == 1:
        valid = rewards[0] in (0, 1)
    else:  # comparisons with NaN are false, so it is rejected too
        valid = len(rewards) > 0 and all(reward < rewards[best] for i, reward in enumerate(rewards) if i != best)
    if not valid:
        message = f"rewards {list(rewards)}: expected exactly one highest, or for a single response 0 or 1."
        raise (NoUniqueBest if len(rewards) > 1 else ValueError)(message)
    return best
