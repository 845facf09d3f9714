"""A programmatic teacher for any answer to a row with checks: the judgement that an attentive reader of the checks would write.

The generated tasks know their own few wrong answers. Here the answers are anybody's, such as a policy's samples: long, unfinished or off
the point. A remark quotes what decides, and little more, so that a small model can learn to write it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from rlsys.data.records import TeacherJudgement
from rlsys.data.tasks.core import RIGHT_SCORE, WRONG_SCORE
from rlsys.data.tasks.numeric import number_word
from rlsys.rewards.checks import Check, holds, items_of, words_of

CASES = {"upper": "capital", "lower": "small"}
MAX_COUNTED = 20
"""Words or items that a remark counts one by one."""


def judgement(checks: Sequence[Check], texts: Sequence[str], passed: Sequence[bool]) -> TeacherJudgement:
    """Return a judgement of `texts`: the checks as criteria, a remark per text, 9 for a text that passed and 2 for one that did not.

    Args:
        passed: by text. A text that passes all checks, but did not pass, was cut off; the remark says that it breaks off.
    """
    criteria = " ".join(CRITERIA[check["rule"]](check) for check in checks)
    notes = tuple(f"{remark(checks, text, ok)}: {'correct' if ok else 'wrong'}." for text, ok in zip(texts, passed, strict=True))
    return TeacherJudgement(criteria, notes, tuple(RIGHT_SCORE if ok else WRONG_SCORE for ok in passed))


def remark(checks: Sequence[Check], text: str, passed: bool) -> str:
    """Return what decides: the first check that fails; all checks if the text passed; otherwise where it breaks off."""
    if not words_of(text):
        return "says nothing"
    failed = next((check for check in checks if not holds(check, text)), None)
    if failed is not None:
        return REMARKS[failed["rule"]](text, failed)
    if not passed:
        return f"breaks off after {words_of(text)[-1]}"
    return ", ".join(REMARKS[check["rule"]](text, check) for check in checks)


def _number(number: int) -> str:
    return number_word(number) if number < 100 else str(number)


def _counted(parts: Sequence[str], limit: int) -> str:
    """Number the parts, up to one more than `limit`: further ones change nothing. Above MAX_COUNTED, only say how many there are."""
    if limit > MAX_COUNTED:
        return f"{_number(len(parts))} in all"
    return ", ".join(f"{part} {number_word(place)}" for place, part in enumerate(parts[: limit + 1], 1)) or "nothing"


def _listed(words: Sequence[str]) -> str:
    return " and ".join(words)


def _words(text: str, check: Check, wanted: str = "") -> str:
    return f"{_counted(words_of(text), check['count'])}; expected {wanted}{_number(check['count'])}"


def _items(text: str, check: Check) -> str:
    items = items_of(text)
    twice = next((item for place, item in enumerate(items) if item in items[:place]), None)
    counted = _counted([item.split()[0] for item in items], check["count"])
    return counted + ("" if twice is None else f", {twice.split()[0]} twice") + f"; expected {_number(check['count'])}"


def _order(text: str, check: Check) -> str:
    items = items_of(text)
    wrong = next(((one, two) for one, two in zip(items, items[1:]) if one > two), None)
    shown = [item.split()[0] for item in (wrong or items)]
    return f"says {' before '.join(shown)}, expected alphabetical order"


def _includes(text: str, check: Check) -> str:
    present = set(words_of(text))
    return ", ".join(f"{'has' if word.lower() in present else 'lacks'} {word}" for word in check["words"])


def _excludes(text: str, check: Check) -> str:
    present = set(words_of(text))
    said = [word for word in check["words"] if word.lower() in present]
    return f"says {_listed(said)}" if said else f"never says {_listed(check['words'])}"


def _initials(text: str, check: Check) -> str:
    found = [word[0] for word in words_of(text)[: len(check["letters"]) + 1]]
    return f"begins with {_listed(found)}, expected {_listed(check['letters'])}"


def _letter(text: str, check: Check) -> str:
    letter = check["letter"].lower()
    word = next((word for word in words_of(text) if letter in word), None)
    return f"no {letter} anywhere" if word is None else f"has {letter} in {word}"


def _case(text: str, check: Check) -> str:
    fits = str.isupper if check["of"] == "upper" else str.islower
    word = next((word for word in text.split() if any(char.isalpha() for char in word) and not fits(word)), None)
    kind = CASES[check["of"]]
    return f"all in {kind} letters" if word is None else f"says {word}, not in {kind} letters"


REMARKS: dict[str, Callable[[str, Check], str]] = {
    "word_count": _words,
    "max_words": lambda text, check: _words(text, check, "at most "),
    "min_words": lambda text, check: _words(text, check, "at least "),
    "item_count": _items,
    "alphabetical": _order,
    "includes": _includes,
    "excludes": _excludes,
    "first_word": lambda text, check: f"begins with {words_of(text)[0]}, expected {check['word']}",
    "last_word": lambda text, check: f"ends with {words_of(text)[-1]}, expected {check['word']}",
    "initials": _initials,
    "no_letter": _letter,
    "case": _case,
    "repeats": _words,
    "answer": lambda text, check: f"says {' '.join(words_of(text)[: len(words_of(check['expected'])) + 1])}, expected {check['expected']}",
}
"""Rule -> what a text shows about it, without the verdict."""

CRITERIA: dict[str, Callable[[Check], Any]] = {
    "word_count": lambda check: f"Count the words: exactly {_number(check['count'])}.",
    "max_words": lambda check: f"Count the words: at most {_number(check['count'])}.",
    "min_words": lambda check: f"Count the words: at least {_number(check['count'])}.",
    "item_count": lambda check: f"Count the items: exactly {_number(check['count'])}.",
    "alphabetical": lambda check: "The items must be in alphabetical order.",
    "includes": lambda check: f"The text must have {_listed(check['words'])}.",
    "excludes": lambda check: f"The text must not have {_listed(check['words'])}.",
    "first_word": lambda check: f"The first word must be {check['word']}.",
    "last_word": lambda check: f"The last word must be {check['word']}.",
    "initials": lambda check: f"The words must begin with {_listed(check['letters'])}.",
    "no_letter": lambda check: f"The letter {check['letter']} must not be there.",
    "case": lambda check: f"Every word must be in {CASES[check['of']]} letters.",
    "repeats": lambda check: f"The word {check['word']} exactly {_number(check['count'])} times, and nothing else.",
    "answer": lambda check: f"The answer must be {check['expected']}.",
}
"""Rule -> the principle."""
