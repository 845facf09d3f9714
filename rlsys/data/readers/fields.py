"""Typed access to the keys of a row, and the validation of records. Everything raises `DataError`, which names the key."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any
from uuid import UUID

from rlsys.data.records import NoUniqueBest, Record
from rlsys.rewards.checks import require_valid

_NUMERAL = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d{1,3})?")


class DataError(ValueError):
    """Unusable data. The message says where (file, row, key), what was expected and what was found.

    Attributes: `problem` (the message without file and row), `file`, `row` (1-based; in JSONL the line) and `key`, None where unknown.
    """

    def __init__(self, problem: str, *, key: str | None = None, file: str | None = None, row: int | None = None):
        self.problem, self.key, self.file, self.row = printable(problem), key, file, row
        where = ", ".join(part for part in (file, f"row {row}" if row is not None else None) if part)
        super().__init__(f"{where}: {self.problem}" if where else self.problem)

    def at(self, file: str, row: int) -> DataError:
        """Return the same error with file and row."""
        return DataError(self.problem, key=self.key, file=file, row=row)


def printable(text: str) -> str:
    """Return `text` with lone surrogates escaped: JSON keys and ids may contain them, files that we write may not."""
    return text.encode("utf-8", "backslashreplace").decode()


class Row(dict[str, Any]):
    """A row as the file has it, the id to use if it has none, and what a reader did with it."""

    def __init__(self, keys: dict[str, Any], name: str):
        # Missing values in a numeric column are NaN.
        super().__init__((key, None if isinstance(value, float) and math.isnan(value) else value) for key, value in keys.items())
        self.name = name
        self.has_id = False
        """Set by `row_id`: the id comes from the row, so duplicates are possible."""
        self.dropped = 0
        """Number of responses that the reader dropped because they have no score."""
        self.used_keys: set[str] = set()
        """Keys that the reader looked up."""

    def get(self, key: str, default: Any = None) -> Any:
        self.used_keys.add(key)
        return super().get(key, default)


def renamed(keys: dict[str, Any], columns: Mapping[str, str]) -> dict[str, Any]:
    """Return a row with `columns` applied: {key of the format: column of the file}, such as {"prompt": "question"} or "info.text"."""
    found = {key: value for key, value in keys.items() if key not in columns.values()}
    for key, column in columns.items():
        value: Any = keys
        for name in (column,) if column in keys else column.split("."):
            value = value.get(name) if isinstance(value, dict) else None
        found[key] = value
    return found


@dataclass(frozen=True)
class Unreadable:
    """A value that Python cannot represent, such as text that is not UTF-8, and why."""

    problem: str


def wrong(key: str, expected: str, value: Any) -> DataError:
    """Return the error for a key whose value violates the format."""
    return DataError(f"{key}: expected {expected}, found {describe(value)}.", key=key)


def describe(value: Any) -> str:
    """Return a one-line description of a value, for error messages."""
    names = {bool: "boolean", int: "number", float: "number", str: "text", list: "list", dict: "object", type(None): "null"}
    kind = names.get(type(value), type(value).__name__)
    if value is None:
        return kind
    if isinstance(value, Unreadable):
        return f"a value that cannot be read ({value.problem})"
    if isinstance(value, str) and not value.strip():
        return "empty text" if not value else "blank text"
    if isinstance(value, (list, dict)):
        return f"{kind} of {len(value)}"
    # An integer of thousands of digits is valid JSON, but repr raises.
    shown = "a huge integer" if isinstance(value, int) and value.bit_length() > 256 else ascii(value)
    return f"{kind} {shown if len(shown) <= 60 else shown[:57] + '...'}"


def required(row: dict[str, Any], key: str, expected: str, prefix: str = "") -> Any:
    """Return the value of `key`, which must be present and not null (Parquet fills absent keys with null)."""
    if row.get(key) is None:
        known = ", ".join(sorted(str(name) for name in row)[:12]) or "no keys"
        raise DataError(f"{prefix}{key}: expected {expected}, found nothing; the row has {known[:200]}.", key=f"{prefix}{key}")
    return row[key]


def as_text(value: Any, key: str, *, blank: bool = False) -> str:
    """Return `value` if it is encodable text (no lone surrogates) and, unless `blank`, not only white space."""
    expected = "text" if blank else "non-empty text"
    if not isinstance(value, str) or (not blank and not value.strip()):
        raise wrong(key, expected, value)
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise wrong(key, f"{expected} in valid Unicode", value) from error
    return value


def text(row: dict[str, Any], key: str, prefix: str = "", *, blank: bool = False) -> str:
    """Return the text under `key`."""
    return as_text(required(row, key, "text", prefix), prefix + key, blank=blank)


def optional_text(row: dict[str, Any], key: str) -> str | None:
    """Return the text under `key`, or None if it is absent, null or blank."""
    value = row.get(key)
    return None if value is None else as_text(value, key, blank=True).strip() or None


def as_number(value: Any, key: str, expected: str = "a finite number") -> float:
    """Return `value` as a finite float: any numeric type, or text that is a number; booleans are not numbers."""
    numeral = isinstance(value, str) and _NUMERAL.fullmatch(value.strip())
    if isinstance(value, bool) or not (numeral or isinstance(value, (int, float, Decimal))):
        raise wrong(key, expected, value)
    try:
        number = float(value)
    except (OverflowError, ValueError) as error:  # an integer out of the range of floats, a signalling NaN
        raise wrong(key, expected, value) from error
    if not math.isfinite(number):
        raise wrong(key, expected, value)
    return number


def number(row: dict[str, Any], key: str) -> float:
    """Return the finite number under `key`."""
    return as_number(required(row, key, "a finite number"), key)


def as_integer(value: Any, key: str, low: int, high: int) -> int:
    """Return `value` as an integer in [low, high]; integral floats are accepted, as columns with missing values have them."""
    expected = f"an integer {low}..{high}"
    number = as_number(value, key, expected)
    if not number.is_integer() or not low <= number <= high:
        raise wrong(key, expected, value)
    return int(number)


def integer(row: dict[str, Any], key: str, low: int, high: int) -> int:
    """Return the integer in [low, high] under `key`."""
    return as_integer(required(row, key, f"an integer {low}..{high}"), key, low, high)


def as_boolean(value: Any, key: str, expected: str = "a boolean") -> bool:
    """Return `value` as a boolean: true and false, also as text, or the numbers 1 and 0."""
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.strip().lower() in ("true", "false"):
        return value.strip().lower() == "true"
    try:
        return bool(as_integer(value, key, 0, 1))
    except DataError as error:
        raise wrong(key, expected, value) from error


def boolean(row: dict[str, Any], key: str, expected: str = "a boolean") -> bool:
    """Return the boolean under `key`."""
    return as_boolean(required(row, key, expected), key, expected)


def choice(row: dict[str, Any], key: str, choices: Collection[str]) -> str:
    """Return the text under `key`, which must be one of `choices`."""
    expected = " or ".join(f'"{name}"' for name in choices)
    value = required(row, key, expected)
    if not isinstance(value, str) or value not in choices:
        raise wrong(key, expected, value)
    return value


def as_list(value: Any, key: str) -> list[Any]:
    """Return `value` if it is a non-empty list."""
    if not isinstance(value, list) or not value:
        raise wrong(key, "a non-empty list", value)
    return value


def items(row: dict[str, Any], key: str) -> list[Any]:
    """Return the non-empty list under `key`."""
    return as_list(required(row, key, "a non-empty list"), key)


def as_object(value: Any, key: str) -> dict[str, Any]:
    """Return `value` if it is an object."""
    if not isinstance(value, dict):
        raise wrong(key, "an object", value)
    return value


def checks_of(row: Row) -> tuple[dict[str, Any], ...]:
    """Return the rules under `checks` (`rlsys.rewards.checks`), a list or its JSON; none if the row has none."""
    value = row.get("checks")
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise wrong("checks", "a list of rules, or its JSON", value) from None
    if value is None:
        return ()
    # Rows of a Parquet file have the arguments of all rules.
    rules = [as_object(check, f"checks[{place}]") for place, check in enumerate(as_list(value, "checks"))]
    checks = tuple({name: argument for name, argument in rule.items() if argument is not None} for rule in rules)
    try:
        require_valid(checks)
    except ValueError as error:
        raise DataError(str(error), key=str(error).partition(":")[0]) from error
    return checks


def row_id(row: Row, *keys: str) -> str:
    """Return the row's own id (under the first of `keys` that it has; text or an integer), else `row.name`."""
    for key in keys:
        value = row.get(key)
        if value is None:
            continue
        if isinstance(value, (float, Decimal)) and math.isfinite(value) and value == int(value):
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, (int, str, UUID)) or (isinstance(value, int) and value.bit_length() > 256):
            raise wrong(key, "text or an integer as id", value)
        row.has_id = True
        return as_text(str(value), key)
    return row.name


def check(record: Record) -> None:
    """Validate a record whose fields have the right types.

    Raises:
        DataError: the context does not end with a user's query or a tool result; a response is not text (it may be empty); or the rewards
            do not match the responses in number, are not finite or, for a single response, are not 0 or 1. A prompt has neither.
        NoUniqueBest: the rewards have no single maximum, or the best response's text occurs twice (Eq. 10 needs a distinguishable best).
    """
    last = record.context[-1] if record.context else {"role": "user", "content": ""}
    if last["role"] not in ("user", "tool") or (last["role"] == "user" and not last["content"].strip()):
        found = "nothing" if last["role"] == "user" else f"a turn of {last['role']}"
        raise DataError(f"context: expected the user's query or a tool result as the last turn, found {found}.", key="context")
    if not record.responses and not record.rewards and not record.labelled:
        return  # a prompt
    if not record.responses or len(record.rewards) != record.n:
        raise DataError(f"rewards: expected one per response, found {len(record.rewards)} for {record.n} responses.", key="rewards")
    for position, response in enumerate(record.responses):
        as_text(response, f"responses[{position}]", blank=True)
    for position, reward in enumerate(record.rewards):
        as_number(reward, f"rewards[{position}]")
    if record.n == 1 and record.rewards[0] not in (0.0, 1.0):
        raise DataError(f"rewards: expected 0 or 1 for a single response, found {record.rewards[0]:g}.", key="rewards")
    if record.rewards.count(max(record.rewards)) > 1:
        raise NoUniqueBest(f"{record.id}: the highest reward, {max(record.rewards):g}, occurs more than once.")
    if record.responses.count(record.responses[record.best]) > 1:
        raise NoUniqueBest(f"{record.id}: another response has the same text as the best one.")
