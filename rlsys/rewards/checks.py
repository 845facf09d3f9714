"""Checks of a text by a program: rules that a row names and whose verdict is exact, such as "exactly four words".

A row carries its checks as JSON: `[{"rule": "word_count", "count": 4}, {"rule": "includes", "words": ["lamp"]}]`. A text passes if every
rule holds. Letters are compared without regard to case, except by `case`.

What counts as a word or an item:

- word: letters and digits, with inner hyphens and apostrophes; punctuation does not count
- item: a line if there are several lines, otherwise a part between commas, semicolons or "and"; list marks such as "1." do not count
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, get_args, get_type_hints

Check = Mapping[str, Any]
"""{rule, and its arguments}."""

_WORD = re.compile(r"[^\W_]+(?:['\u2019-][^\W_]+)*")
_LIST_MARK = re.compile(r"^\s*(?:[-*\u2022]|\d+[.)])\s+")
_SEPARATOR = re.compile(r"[,;]\s*(?:and\s+)?|\s+and\s+", re.IGNORECASE)


def words_of(text: str) -> list[str]:
    """Return the words of a text, in lower case."""
    return [word.lower() for word in _WORD.findall(text)]


def items_of(text: str) -> list[str]:
    """Return the items of a list, in lower case and without marks and punctuation."""
    lines = [line for line in text.splitlines() if line.strip()]
    parts = lines if len(lines) > 1 else _SEPARATOR.split(text)
    items = (" ".join(words_of(_LIST_MARK.sub("", part))) for part in parts)
    return [item for item in items if item]


def word_count(text: str, count: int) -> bool:
    """Exactly `count` words."""
    return len(words_of(text)) == count


def max_words(text: str, count: int) -> bool:
    """At most `count` words."""
    return len(words_of(text)) <= count


def min_words(text: str, count: int) -> bool:
    """At least `count` words."""
    return len(words_of(text)) >= count


def item_count(text: str, count: int) -> bool:
    """Exactly `count` items, all different."""
    items = items_of(text)
    return len(items) == len(set(items)) == count


def alphabetical(text: str) -> bool:
    """The items are in alphabetical order."""
    items = items_of(text)
    return items == sorted(items)


def includes(text: str, words: list[str]) -> bool:
    """Each of `words` occurs, as a whole word."""
    return {word.lower() for word in words} <= set(words_of(text))


def excludes(text: str, words: list[str]) -> bool:
    """None of `words` occurs."""
    return not {word.lower() for word in words} & set(words_of(text))


def first_word(text: str, word: str) -> bool:
    """The first word is `word`."""
    return words_of(text)[:1] == [word.lower()]


def last_word(text: str, word: str) -> bool:
    """The last word is `word`."""
    return words_of(text)[-1:] == [word.lower()]


def initials(text: str, letters: list[str]) -> bool:
    """As many words as `letters`, which begin with them in this order."""
    return [word[0] for word in words_of(text)] == [letter.lower() for letter in letters]


def no_letter(text: str, letter: str) -> bool:
    """`letter` does not occur."""
    return letter.lower() not in text.lower()


def case(text: str, of: Literal["upper", "lower"]) -> bool:
    """Every letter is a capital (upper) or a small one (lower)."""
    return text.isupper() if of == "upper" else text.islower()


def repeats(text: str, word: str, count: int) -> bool:
    """Nothing but `word`, exactly `count` times."""
    return words_of(text) == [word.lower()] * count


def answer(text: str, expected: str) -> bool:
    """The same words as `expected`, in order."""
    return words_of(text) == words_of(expected)


RULES: dict[str, Callable[..., bool]] = {
    rule.__name__: rule
    for rule in (
        word_count,
        max_words,
        min_words,
        item_count,
        alphabetical,
        includes,
        excludes,
        first_word,
        last_word,
        initials,
        no_letter,
        case,
        repeats,
        answer,
    )
}
"""Every rule by name: text and arguments -> whether it holds."""


def passes(checks: Sequence[Check], text: str) -> bool:
    """Return whether every check holds. A text without a word passes none.

    Raises:
        ValueError: there are no checks; a missing verdict is not a pass.
    """
    if not checks:
        raise ValueError("no checks: nothing to decide by.")
    return bool(words_of(text)) and all(holds(check, text) for check in checks)


def holds(check: Check, text: str) -> bool:
    """Return whether one check holds."""
    return RULES[check["rule"]](text, **_arguments(check))


def require_valid(checks: Sequence[Check]) -> None:
    """Check that each rule exists and has its arguments, of the right type.

    Raises:
        ValueError: one has not; the message says which, what was expected and what was found.
    """
    for place, check in enumerate(checks):
        rule = check.get("rule") if isinstance(check, Mapping) else None
        if not isinstance(rule, str) or rule not in RULES:
            raise ValueError(f"checks[{place}]: expected {{rule, ...}} with a rule of {', '.join(RULES)}; found {check!r}.")
        kinds, found = _parameters(RULES[rule]), _arguments(check)
        if found.keys() != kinds.keys() or not all(_fits(found[name], kind) for name, kind in kinds.items()):
            wanted = ", ".join(f"{name} ({_describe(kind)})" for name, kind in kinds.items()) or "no arguments"
            raise ValueError(f"checks[{place}]: expected {wanted} with rule {rule}, found {found}.")


def _arguments(check: Check) -> dict[str, Any]:
    return {name: value for name, value in check.items() if name != "rule"}


def _parameters(rule: Callable[..., bool]) -> dict[str, Any]:
    """Return the types of a rule's arguments, after the text."""
    hints = get_type_hints(rule)
    return {name: hints[name] for name in list(inspect.signature(rule).parameters)[1:]}


def _fits(value: Any, kind: Any) -> bool:
    if kind is int:
        return type(value) is int and value >= 0
    if kind is str:
        return isinstance(value, str) and bool(words_of(value))
    if kind == list[str]:
        return isinstance(value, list | tuple) and bool(value) and all(_fits(one, str) for one in value)
    return value in get_args(kind)


def _describe(kind: Any) -> str:
    return {int: "a number from 0 up", str: "text"}.get(kind) or ("a list of texts" if kind == list[str] else " or ".join(get_args(kind)))
