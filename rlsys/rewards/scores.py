r"""The heart: from a generated critique to its rule-based reward (arXiv 2504.02495, Eq. 10 and 11).

A critique ends in `\boxed{s_1, ..., s_n}`, one integer per response in the order shown. It is read, put back into the
record's own order, compared with the ground truth, and paid +1 or -1. Nothing is guessed: what cannot be read is a
parse failure with a reason. `Reading.read` decides that for everybody: training, rejection, judging and evaluation alike.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from rlsys.data.records import NoUniqueBest
from rlsys.rewards.thoughts import after_thought

FAILURES = UNFINISHED_THOUGHT, NO_BOX, CUT_OFF_BOX, MALFORMED_BOX, WRONG_COUNT, NOT_AN_INTEGER, NOT_A_NUMBER, OUT_OF_RANGE, TRUNCATED = (
    "unfinished_thought",
    "no_box",
    "cut_off_box",
    "malformed_box",
    "wrong_count",
    "not_an_integer",
    "not_a_number",
    "out_of_range",
    "truncated",
)
"""The reasons, in the order in which they are checked; docs/judging.md says what each means."""

# Possessive quantifiers (*+, ++), so that no input takes more than linear time.
_BLANKS = " \t\r\n"
GUARDS = "·¦‧"
"""What `rlsys.prompts.defusing` breaks up marks with: a box that it broke up, as a judge may quote it, is no box."""
_WORD = re.compile(f"(?<![{GUARDS}])boxed", re.IGNORECASE)
_SPACED = re.compile("[\\s\u200b-\u200f\u2060\ufeff]*+(\\{?+)")
_MEANT = re.compile("[\\s\u200b-\u200f\u2060\ufeff:=*_~\"'$<(\\[\uff08]*+(?:[\\\\{\uff5b]|[+-]?\\d)")
_BRACE = re.compile(r"[{}]")
_WRAPPED = re.compile(rf"(?:\\text[{_BLANKS}]*+)?\{{(.*)\}}", re.DOTALL)
_INTEGER = re.compile(r"([+-]?)(?=[0-9])0*+([0-9]*+)")
_DECIMAL = re.compile(r"([+-]?)(?=[0-9])0*+([0-9]*+)((?:\.[0-9]++)?)")

Numbers = Literal["integer", "decimal"]


class Extraction(NamedTuple):
    """Scores in the order shown, or the reason why there are none: exactly one of the two is None."""

    scores: tuple[float, ...] | None
    """int where integers are read, else float."""
    failure: str | None


class Judgement(NamedTuple):
    """One critique judged: scores in the record's own order (None after a parse failure), the reason, Eq. 10, Eq. 11."""

    scores: tuple[float, ...] | None
    failure: str | None
    correct: bool
    reward: float


def score_range(n: int) -> tuple[int, int]:
    """Lowest and highest score unless `prompt.scores` says otherwise: 1..10, or 0..1 for a single response."""
    return (0, 1) if n == 1 else (1, 10)


def extract(text: str, n: int, low: int, high: int, numbers: Numbers = "integer") -> Extraction:
    r"""Read the LAST `\boxed{...}` after the last thought: exactly n integers between low and high, both included.

    Any string will do. The last box counts whether it is well formed or not; an earlier one never stands in for it. Read as if they were
    not there are braces, with or without `\text`, around the whole list or around a number. The reasons, in the order in which they are
    checked: `unfinished_thought`; `no_box` (after the thought, if there is one); `cut_off_box`, which the text does not close;
    `malformed_box`, with other braces in it or around it; `wrong_count` of comma-separated items; `not_an_integer` (wanted: ASCII digits,
    an optional sign, blanks around them); `out_of_range`.

    Args:
        numbers: `decimal` reads what released judges write, too: 8.5 and 8.0, a list in brackets, any blanks (no-break ones, for
            example). What is no number is then `not_a_number`.
    """
    answer = after_thought(text)
    if answer is None:
        return Extraction(None, UNFINISHED_THOUGHT)
    body, failure = _last_box(answer)
    if body is None:
        return Extraction(None, failure)
    decimal = numbers == "decimal"
    blanks = None if decimal else _BLANKS
    body = _unwrapped(body, blanks)
    if decimal and body[:1] == "[" and body[-1:] == "]":
        body = body[1:-1].strip()
    items = [_unwrapped(item, blanks) for item in body.split(",")] if body else []
    if any(map(_BRACE.search, items)):
        return Extraction(None, MALFORMED_BOX)
    if len(items) != n:
        return Extraction(None, WRONG_COUNT)
    matches = [(_DECIMAL if decimal else _INTEGER).fullmatch(item) for item in items]
    if None in matches:
        return Extraction(None, NOT_A_NUMBER if decimal else NOT_AN_INTEGER)
    scores = tuple([_number(*match.groups()) for match in matches])
    for score in scores:
        if not low <= score <= high:
            return Extraction(None, OUT_OF_RANGE)
    return Extraction(scores, None)


def _last_box(text: str) -> tuple[str | None, str | None]:
    r"""(what stands in the last box, None), or (None, why nothing does).

    A box is `\boxed{` and nothing else. In another spelling (`boxed{`, `\Boxed{`, `\boxed {`), or with a number behind something else than
    a brace (`\boxed[9`, `\boxed: 9`), it is malformed; a command with nothing behind it, or a box without its end, was cut off. Any other
    mention of the word is none.
    """
    for word in reversed(list(_WORD.finditer(text))):
        command = text[word.start() - 1 : word.start()] == "\\"
        spaced = _SPACED.match(text, word.end())
        if spaced[1]:
            body = _to_closing_brace(text, spaced.end())
            if body is None:
                return None, CUT_OFF_BOX
            well_formed = command and word[0] == "boxed" and spaced[0] == "{"
            return (body, None) if well_formed else (None, MALFORMED_BOX)
        if command and spaced.end() == len(text):
            return None, CUT_OFF_BOX
        if command and _MEANT.match(text, word.end()):
            return None, MALFORMED_BOX
    return None, NO_BOX


def _to_closing_brace(text: str, start: int) -> str | None:
    """What stands between a brace, behind which `start` lies, and the one that closes it; None where none does."""
    depth = 1
    for brace in _BRACE.finditer(text, start):
        depth += 1 if brace[0] == "{" else -1
        if not depth:
            return text[start : brace.start()]
    return None


def _unwrapped(text: str, blanks: str | None) -> str:
    """Without the blanks around it, and without one pair of braces (after `\text` or by themselves) around all of it."""
    text = text.strip(blanks)
    match = _WRAPPED.fullmatch(text)
    if match is None:
        return text
    depth = 0
    for brace in _BRACE.findall(match[1]):
        depth += 1 if brace == "{" else -1
        if depth < 0:  # the first brace is closed before the end
            return text
    return match[1].strip(blanks)


def _number(sign: str, digits: str, fraction: str | None = None) -> float:
    """int without a fraction's place, else float. Python's own int() refuses thousands of digits."""
    whole = digits or "0" if len(digits) < 10 else "9" * 10
    return int(sign + whole) if fraction is None else float(sign + whole + fraction) + 0.0  # no -0.0


@dataclass(frozen=True)
class Reading:
    """How the scores of a run, or of a released judge, are read: `prompt.scores`, and what the prompt leaves open."""

    numbers: Numbers = "integer"
    range: tuple[int, int] = (1, 10)
    """Lowest and highest score of each of several responses."""
    single: tuple[int, int] = (0, 1)
    """Of a single response."""
    thought: str = ""
    """The mark of a thought that the end of the prompt begins (`rlsys.rewards.thoughts.opened`)."""

    def limits(self, n: int) -> tuple[int, int]:
        """Lowest and highest score of n responses."""
        return self.single if n == 1 else self.range

    def read(self, text: str, n: int, truncated: bool = False) -> Extraction:
        """`extract` by these settings.

        Args:
            truncated: the text met the longest generation before it ended. It then has no scores, whatever it says: rejective fine-tuning
                could not learn from it without learning not to end, and what RL pays has to be the same. The reason is the one that the
                text itself gives, and `truncated` where it would have been read.
        """
        found = extract(self.thought + text if self.thought else text, n, *self.limits(n), self.numbers)
        return Extraction(None, TRUNCATED) if truncated and found.scores is not None else found


READING = Reading()
"""Training's own: integers 1..10, of a single response 0..1."""


def check_order(order: Sequence[int], n: int) -> None:
    """Raise ValueError unless `order` is a permutation of 0 .. n-1."""
    if sorted(order) != list(range(n)):
        raise ValueError(f"order {list(order)}: expected each of 0 .. {n - 1} once, the original index of the response at each place.")


def unshuffle(scores: Sequence[float], order: Sequence[int]) -> tuple[float, ...]:
    """Scores as shown -> scores in the record's own order. order[p]: original index of the response shown at place p.

    Raises:
        ValueError: `order` is not a permutation of 0 .. n-1, n the number of scores.
    """
    check_order(order, len(scores))
    back: list[float] = [0] * len(scores)
    for score, original in zip(scores, order):
        back[original] = score
    return tuple(back)


def is_correct(scores: Sequence[float], rewards: Sequence[float], single: tuple[int, int] = (0, 1)) -> bool:
    """Eq. 10, both in the same order. n >= 2: the truly best response has the highest score, alone. n = 1: see `single_is_right`.

    Args:
        single: lowest and highest score of a single response.

    Raises:
        ValueError: different lengths; or rewards that cannot be a ground truth: none, NaN, no single maximum, or for
            n = 1 neither 0 nor 1.
    """
    best = _best(rewards)
    if len(scores) != len(rewards):
        raise ValueError(f"{len(scores)} scores for {len(rewards)} rewards: expected one score per response.")
    return _is_correct(scores, rewards, best, single)


def _is_correct(scores: Sequence[float], rewards: Sequence[float], best: int, single: tuple[int, int]) -> bool:
    if len(scores) == 1:
        return single_is_right(scores[0], rewards[0], single)
    highest = max(scores)
    return scores[best] == highest and scores.count(highest) == 1


def single_is_right(score: float, reward: float, limits: tuple[int, int]) -> bool:
    """Whether the score of a single response lies nearer to the right end of its range: of the integers 0 and 1, S_1 == r_1 (Eq. 10)."""
    middle = sum(limits) / 2
    return score > middle if reward else score < middle


def rule_reward(correct: bool) -> float:
    """Eq. 11: +1 if correct, else -1. A parse failure is not correct; there is no reward for format."""
    return 1.0 if correct else -1.0


class Truth:
    """What the critiques of one row are judged by, checked once however many they are: the ground truth and the order shown.

    Args:
        rewards: ground truth in the record's own order.
        order: as in `unshuffle`; None: shown in the record's own order.
        reading: how scores are read.

    Raises:
        ValueError: rewards or an order that no record can have (see `is_correct`, `unshuffle`).
    """

    def __init__(self, rewards: Sequence[float], order: Sequence[int] | None = None, reading: Reading = READING):
        n = len(rewards)
        order = range(n) if order is None else order
        self.rewards, self.best = rewards, _best(rewards)
        check_order(order, n)
        self.places = sorted(range(n), key=order.__getitem__)
        """places[i]: where response i of the record is shown; the inverse of `order`."""
        self.reading = reading

    def judge(self, text: str, truncated: bool = False) -> Judgement:
        """Read (`Reading.read`), put back in order, compare, pay. Any text will do."""
        shown, failure = self.reading.read(text, len(self.places), truncated)
        if shown is None:
            return Judgement(None, failure, False, rule_reward(False))
        scores = tuple([shown[place] for place in self.places])
        correct = _is_correct(scores, self.rewards, self.best, self.reading.single)
        return Judgement(scores, None, correct, rule_reward(correct))


def judge(
    text: str, rewards: Sequence[float], order: Sequence[int] | None = None, reading: Reading = READING, truncated: bool = False
) -> Judgement:
    """One text by itself: `Truth(rewards, order, reading).judge(text, truncated)`, and what that raises."""
    return Truth(rewards, order, reading).judge(text, truncated)


def _best(rewards: Sequence[float]) -> int:
    """Index of the single maximum of a ground truth."""
    best = max(range(len(rewards)), key=lambda i: rewards[i], default=0)
    if len(rewards) == 1:
        valid = rewards[0] in (0, 1)
    else:  # a NaN is below nothing, so it is caught here too
        valid = len(rewards) > 0 and all(reward < rewards[best] for i, reward in enumerate(rewards) if i != best)
    if not valid:
        found = f"rewards {list(rewards)}: expected exactly one highest, or for a single response 0 or 1."
        raise (NoUniqueBest if len(rewards) > 1 else ValueError)(found)
    return best
