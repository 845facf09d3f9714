r"""The heart: from a generated critique to its rule-based reward (arXiv 2504.02495, Eq. 10 and 11).

A critique ends in `\boxed{s_1, ..., s_n}`, one integer per response in the order shown. It is read, put back into the
record's own order, compared with the ground truth, and paid +1 or -1. Nothing is guessed: what cannot be read is a
parse failure with a reason.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

FAILURES = NO_BOX, WRONG_COUNT, NOT_AN_INTEGER, OUT_OF_RANGE = "no_box", "wrong_count", "not_an_integer", "out_of_range"

# Well formed: no further brace inside. Possessive quantifiers (*+, ++), so that no input takes more than linear time.
_BOX = re.compile(r"\\boxed\{([^{}]*+)\}")
_INTEGER = re.compile(r"([+-]?)(?=[0-9])0*+([0-9]*+)")
_BLANKS = " \t\r\n"


class Extraction(NamedTuple):
    """Scores in the order shown, or the reason why there are none: exactly one of the two is None."""

    scores: tuple[int, ...] | None
    failure: str | None


class Judgement(NamedTuple):
    """One critique judged: scores in the record's own order (None after a parse failure), the reason, Eq. 10, Eq. 11."""

    scores: tuple[int, ...] | None
    failure: str | None
    correct: bool
    reward: float


def score_range(n: int) -> tuple[int, int]:
    """Lowest and highest score in training: 1..10, or 0..1 for a single response."""
    return (0, 1) if n == 1 else (1, 10)


def extract(text: str, n: int, low: int, high: int) -> Extraction:
    r"""Read the LAST well-formed `\boxed{...}` of a generation: exactly n integers between low and high, both included.

    Any string will do. The reasons, in the order in which they are checked: `no_box`; `wrong_count` of comma-separated
    items; `not_an_integer` (wanted: ASCII digits, an optional sign, blanks around them); `out_of_range`.
    """
    boxes = _BOX.findall(text)
    if not boxes:
        return Extraction(None, NO_BOX)
    items = boxes[-1].split(",") if boxes[-1].strip(_BLANKS) else []
    if len(items) != n:
        return Extraction(None, WRONG_COUNT)
    matches = [_INTEGER.fullmatch(item.strip(_BLANKS)) for item in items]
    if None in matches:
        return Extraction(None, NOT_AN_INTEGER)
    # int() refuses thousands of digits; a score of ten digits or more is beyond any range anyway.
    scores = tuple([int(sign + (digits or "0")) if len(digits) < 10 else high + 1 for sign, digits in map(re.Match.groups, matches)])
    for score in scores:
        if not low <= score <= high:
            return Extraction(None, OUT_OF_RANGE)
    return Extraction(scores, None)


def check_order(order: Sequence[int], n: int) -> None:
    """Raise ValueError unless `order` is a permutation of 0 .. n-1."""
    if sorted(order) != list(range(n)):
        raise ValueError(f"order {list(order)}: expected each of 0 .. {n - 1} once, the original index of the response at each place.")


def unshuffle(scores: Sequence[int], order: Sequence[int]) -> tuple[int, ...]:
    """Scores as shown -> scores in the record's own order. order[p]: original index of the response shown at place p.

    Raises:
        ValueError: `order` is not a permutation of 0 .. n-1, n the number of scores.
    """
    check_order(order, len(scores))
    back = [0] * len(scores)
    for score, original in zip(scores, order):
        back[original] = score
    return tuple(back)


def is_correct(scores: Sequence[int], rewards: Sequence[float]) -> bool:
    """Eq. 10, both in the same order. n >= 2: the truly best response has the highest score, alone. n = 1: S_1 == r_1.

    Raises:
        ValueError: different lengths; or rewards that cannot be a ground truth: none, NaN, no single maximum, or for
            n = 1 neither 0 nor 1.
    """
    best = _best(rewards)
    if len(scores) != len(rewards):
        raise ValueError(f"{len(scores)} scores for {len(rewards)} rewards: expected one score per response.")
    return _is_correct(scores, rewards, best)


def _is_correct(scores: Sequence[int], rewards: Sequence[float], best: int) -> bool:
    if len(scores) == 1:
        return scores[0] == rewards[0]
    highest = max(scores)
    return scores[best] == highest and scores.count(highest) == 1


def rule_reward(correct: bool) -> float:
    """Eq. 11: +1 if correct, else -1. A parse failure is not correct; there is no reward for format."""
    return 1.0 if correct else -1.0


class Truth:
    """What the critiques of one row are judged by, checked once however many they are: the ground truth and the order shown.

    Args:
        rewards: ground truth in the record's own order.
        order: as in `unshuffle`; None: shown in the record's own order.

    Raises:
        ValueError: rewards or an order that no record can have (see `is_correct`, `unshuffle`).
    """

    def __init__(self, rewards: Sequence[float], order: Sequence[int] | None = None):
        n = len(rewards)
        order = range(n) if order is None else order
        self.rewards, self.best = rewards, _best(rewards)
        check_order(order, n)
        self.places = sorted(range(n), key=order.__getitem__)
        """places[i]: where response i of the record is shown; the inverse of `order`."""
        self.low, self.high = score_range(n)

    def judge(self, text: str) -> Judgement:
        """Extract, put back in order, compare, pay. Any text will do."""
        shown, failure = extract(text, len(self.places), self.low, self.high)
        if shown is None:
            return Judgement(None, failure, False, rule_reward(False))
        scores = tuple([shown[place] for place in self.places])
        correct = _is_correct(scores, self.rewards, self.best)
        return Judgement(scores, None, correct, rule_reward(correct))


def judge(text: str, rewards: Sequence[float], order: Sequence[int] | None = None) -> Judgement:
    """One text by itself: `Truth(rewards, order).judge(text)`, and what that raises."""
    return Truth(rewards, order).judge(text)


def _best(rewards: Sequence[float]) -> int:
    """Index of the single maximum of a ground truth."""
    best = max(range(len(rewards)), key=lambda i: rewards[i], default=0)
    if len(rewards) == 1:
        valid = rewards[0] in (0, 1)
    else:  # a NaN is below nothing, so it is caught here too
        valid = len(rewards) > 0 and all(reward < rewards[best] for i, reward in enumerate(rewards) if i != best)
    if not valid:
        raise ValueError(f"rewards {list(rewards)}: expected exactly one highest, or for a single response 0 or 1.")
    return best
