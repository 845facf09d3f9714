"""Result files as models: reading, writing, and the parts that several of them share."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, FiniteFloat, NonNegativeInt, ValidationError

from rlsys.data.readers import DataError
from rlsys.data.readers.fields import describe
from rlsys.io.files import atomic_output
from rlsys.system.printable import printable


class Document(BaseModel):
    """A result file, or a part of one. Unknown keys are ignored, so that files of other versions can be read."""

    model_config = ConfigDict(extra="ignore", frozen=True, protected_namespaces=())

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object that the file holds: the fields that were set."""
        return self.model_dump(mode="json", exclude_unset=True)


class Result(Document):
    """The file that completes a run."""

    FILE: ClassVar[str]


AnyDocument = TypeVar("AnyDocument", bound=Document)
AnyResult = TypeVar("AnyResult", bound=Result)

Interval = tuple[FiniteFloat, FiniteFloat]
"""(low, high) of a 95% interval."""
Share = FiniteFloat | None
"""In [0, 1]; None if undefined."""


def finite(value: float) -> float | None:
    """Return the value, or None for NaN and infinities, as JSON has neither."""
    return value if math.isfinite(value) else None


def write_document(path: Path, document: Document, ensure_ascii: bool = True) -> None:
    """Write `document` to `path` as indented JSON, in full or not at all."""
    with atomic_output(path) as temporary:
        text = json.dumps(document.to_json(), ensure_ascii=ensure_ascii, allow_nan=False, indent=2)
        temporary.write_text(text + "\n", encoding="utf-8")


def read_document(path: Path, kind: type[AnyDocument]) -> AnyDocument:
    """Read what `write_document` wrote.

    Raises:
        DataError: the file cannot be read, or does not hold such a document; names the key.
    """
    return checked(path, read_json(path), kind)


def read_json(path: Path) -> Any:
    """Return the JSON document in a file, with its strings cleaned.

    Raises:
        DataError: it cannot be read or is not valid JSON, e.g. because it is incomplete.
    """
    return cleaned(_parsed(path))


def read_object(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file, as it is.

    Raises:
        DataError: it cannot be read, or is not a JSON object.
    """
    value = _parsed(path)
    if not isinstance(value, dict):
        raise DataError(f"{path}: expected a JSON object, found {describe(value)}. Restore it from a copy, or remove it.")
    return value


def _parsed(path: Path) -> Any:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as UTF-8 text ({error}).") from error
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not valid JSON ({error}); it may be incomplete.") from error


def checked(path: Path, value: Any, kind: type[AnyDocument]) -> AnyDocument:
    """Return `value`, the JSON in `path`, as a document.

    Raises:
        DataError: it is not such a document; names the first key that is wrong.
    """
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        problem = error.errors()[0]
        key = ".".join(str(part) for part in problem["loc"]) or "the document"
        found = repr(problem["input"])
        description = f"{problem['msg']}, found {found if len(found) <= 60 else found[:57] + '...'}"
        raise DataError(f"{path}: {key}: {description}. Let the command that writes it finish, or run it again.", key=key) from error


def cleaned(value: Any) -> Any:
    """Return `value` with control characters removed from all strings, including keys, as model output may contain terminal escapes."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, dict):
        return {cleaned(key): cleaned(inner) for key, inner in value.items()}
    return [cleaned(inner) for inner in value] if isinstance(value, list) else value


class Estimate(Document):
    """A figure with its 95% interval. The value is None if undefined, the interval if there are too few rows."""

    value: FiniteFloat | None
    ci95: Interval | None = None
    n: NonNegativeInt | None = None
    """Units (`rlsys.evaluation.benchmarks.core.Cluster`)."""
    rows: NonNegativeInt | None = None


class Difference(Document):
    """Mean of a paired difference over the same rows, its interval (None if too few rows changed), and the rows that changed."""

    mean: FiniteFloat
    ci95: Interval | None
    changed: NonNegativeInt = 0
