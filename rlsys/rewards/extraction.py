r"""Extract scores from a generated critique, or the reason for a parse failure.

A critique ends in `\boxed{s_1, ..., s_n}`, one number per response in the order shown. Nothing is guessed: text that cannot be parsed is a
parse failure with a reason. `ScoreFormat.extract` is the only parser: training, rejection sampling, judging and evaluation all use it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, NamedTuple

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
"""Reasons for a parse failure, in the order in which they are checked; see docs/judging.md."""

GUARDS = "·¦‧"
"""Characters with which `rlsys.prompts.defusing` breaks up marks. A box that contains one, as quoted by a judge, is not a box."""

# Possessive quantifiers (*+, ++) keep matching linear in the input length.
_BLANKS = " \t\r\n"
_WORD = re.compile(f"(?<![{GUARDS}])boxed", re.IGNORECASE)
_OPENING_BRACE = re.compile("[\\s\u200b-\u200f\u2060\ufeff]*+(\\{?+)")
_INTENDED_BOX = re.compile("[\\s\u200b-\u200f\u2060\ufeff:=*_~\"'$<(\\[\uff08]*+(?:[\\\\{\uff5b]|[+-]?\\d)")
_BRACE = re.compile(r"[{}]")
_WRAPPED = re.compile(rf"(?:\\text[{_BLANKS}]*+)?\{{(.*)\}}", re.DOTALL)
_INTEGER = re.compile(r"([+-]?)(?=[0-9])0*+([0-9]*+)")
_DECIMAL = re.compile(r"([+-]?)(?=[0-9])0*+([0-9]*+)((?:\.[0-9]++)?)")

Numbers = Literal["integer", "decimal"]


class Extraction(NamedTuple):
    """Scores in the order shown, or the reason for a parse failure; exactly one of the two is None."""

    scores: tuple[float, ...] | None
    """int if the number format is `integer`, else float."""
    failure: str | None


def score_range(n: int) -> tuple[int, int]:
    """Return the default lowest and highest score: 1..10, or 0..1 for a single response."""
    return (0, 1) if n == 1 else (1, 10)


def extract(text: str, n: int, low: int, high: int, numbers: Numbers = "integer") -> Extraction:
    r"""Extract n scores between low and high (inclusive) from the LAST `\boxed{...}` after the last thought.

    Accepts any string. Only the last box counts, well-formed or not; an earlier box never replaces it. Braces around the whole list or
    around a number, with or without `\text`, are ignored. Reasons for a parse failure, in the order in which they are checked:

    - `unfinished_thought`
    - `no_box`: no box in the answer
    - `cut_off_box`: the box is not closed
    - `malformed_box`: another spelling of the box, or other braces in it
    - `wrong_count`: the number of comma-separated items is not n
    - `not_an_integer`: an item is not ASCII digits with an optional sign, surrounded by blanks
    - `out_of_range`

    Args:
        numbers: `decimal` also accepts the formats of released judges: 8.5 and 8.0, a list in brackets, any Unicode whitespace. An item
            that is not a number is then `not_a_number`.
    """
    answer = after_thought(text)
    if answer is None:
        return Extraction(None, UNFINISHED_THOUGHT)
    body, failure = _last_box(answer)
    if body is None:
        return Extraction(None, failure)
    decimal = numbers == "decimal"
    blanks = None if decimal else _BLANKS
    body = _unwrap(body, blanks)
    if decimal and body[:1] == "[" and body[-1:] == "]":
        body = body[1:-1].strip()
    items = [_unwrap(item, blanks) for item in body.split(",")] if body else []
    if any(map(_BRACE.search, items)):
        return Extraction(None, MALFORMED_BOX)
    if len(items) != n:
        return Extraction(None, WRONG_COUNT)
    scores = []
    for item in items:
        match = (_DECIMAL if decimal else _INTEGER).fullmatch(item)
        if match is None:
            return Extraction(None, NOT_A_NUMBER if decimal else NOT_AN_INTEGER)
        scores.append(_number(*match.groups()))
    if not all(low <= score <= high for score in scores):
        return Extraction(None, OUT_OF_RANGE)
    return Extraction(tuple(scores), None)


def _last_box(text: str) -> tuple[str | None, str | None]:
    r"""Return (content of the last box, None) or (None, reason for a parse failure).

    Only `\boxed{` opens a box. Another spelling (`boxed{`, `\Boxed{`, `\boxed {`), or a number that follows something other than a brace
    (`\boxed[9`, `\boxed: 9`), is malformed. A command at the end of the text, or a box that is not closed, was cut off. Any other mention
    of the word is ignored.
    """
    for word in reversed(list(_WORD.finditer(text))):
        command = text[word.start() - 1 : word.start()] == "\\"
        opening = _OPENING_BRACE.match(text, word.end())
        assert opening is not None  # the pattern matches the empty string
        if opening[1]:
            body = _to_closing_brace(text, opening.end())
            if body is None:
                return None, CUT_OFF_BOX
            well_formed = command and word[0] == "boxed" and opening[0] == "{"
            return (body, None) if well_formed else (None, MALFORMED_BOX)
        if command and opening.end() == len(text):
            return None, CUT_OFF_BOX
        if command and _INTENDED_BOX.match(text, word.end()):
            return None, MALFORMED_BOX
    return None, NO_BOX


def _to_closing_brace(text: str, start: int) -> str | None:
    """Return the text from `start`, just after an opening brace, to its closing brace; None if it is not closed."""
    depth = 1
    for brace in _BRACE.finditer(text, start):
        depth += 1 if brace[0] == "{" else -1
        if not depth:
            return text[start : brace.start()]
    return None


def _unwrap(text: str, blanks: str | None) -> str:
    r"""Strip surrounding blanks and one enclosing pair of braces, with or without `\text`."""
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
    """Convert to int if `fraction` is None, else to float. Caps the digits, as int() refuses thousands of them."""
    whole = digits or "0" if len(digits) < 10 else "9" * 10
    return int(sign + whole) if fraction is None else float(sign + whole + fraction) + 0.0  # no -0.0


@dataclass(frozen=True)
class ScoreFormat:
    """Score format of a run or of a released judge: `prompt.scores`, plus the thought that the prompt opens."""

    numbers: Numbers = "integer"
    range: tuple[int, int] = (1, 10)
    """Lowest and highest score if there are several responses."""
    single: tuple[int, int] = (0, 1)
    """Lowest and highest score of a single response."""
    thought: str = ""
    """Opening mark of the thought with which the prompt ends (`rlsys.rewards.thoughts.open_mark`)."""

    def limits(self, n: int) -> tuple[int, int]:
        """Return the lowest and highest score of n responses."""
        return self.single if n == 1 else self.range

    def extract(self, text: str, n: int, truncated: bool = False) -> Extraction:
        """Extract n scores from a text in this format (see the function `extract`).

        Args:
            truncated: the text reached the generation limit. It is then always a parse failure: rejective fine-tuning on such texts would
                teach the model not to stop, and RL must reward the same texts. The reason is `truncated` unless the text has one itself.
        """
        found = extract(self.thought + text if self.thought else text, n, *self.limits(n), self.numbers)
        return Extraction(None, TRUNCATED) if truncated and found.scores is not None else found


DEFAULT_FORMAT = ScoreFormat()
"""Integers 1..10, or 0..1 for a single response."""
