"""What every kind of file gives: raw rows, streamed and by number."""

from __future__ import annotations

import lzma
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa

from rlsys.data.readers.fields import DataError, wrong

Raw = dict[str, Any] | DataError
"""A row as it stands in the file; an unreadable one is the error that says why, without file and row."""


class Source(Protocol):
    """Rows of one file, or of several that are read as one."""

    files: tuple[Path, ...]
    """Where they lie."""
    last: int
    """The number of the last row, 0 where there is none."""

    def __len__(self) -> int:
        """Number of rows, good or bad; blank lines of JSONL are not rows."""
        ...

    def scan(self) -> Iterator[tuple[int, Raw]]:
        """Every row as (1-based row number, in JSONL the line; row)."""
        ...

    def fetch(self, indices: Sequence[int], upcoming: Sequence[int] = ()) -> list[tuple[int, Raw]]:
        """The rows at `indices` (0-based, in the order of `scan`), as `scan` gives them.

        `upcoming`: what will be asked for next, for a source that cannot read one row without its neighbours.
        """
        ...

    def place(self, number: int) -> tuple[Path, int]:
        """The file, and the number within it, of the row that `scan` or `fetch` gave `number`."""
        ...


class SingleFile:
    """What files have in common whose rows are numbered from 1 without a gap."""

    def __init__(self, path: Path):
        self._path, self.files = path, (path,)

    @property
    def last(self) -> int:
        return len(self)

    def place(self, number: int) -> tuple[Path, int]:
        return self._path, number


def as_row(value: Any) -> Raw:
    """A parsed value as a row, or the error that it is none."""
    return value if isinstance(value, dict) else wrong("row", "an object", value)


@contextmanager
def damage(path: Path) -> Iterator[None]:
    """What goes wrong while reading, as a DataError."""
    try:
        yield
    except (OSError, EOFError, zlib.error, lzma.LZMAError, pa.ArrowException) as error:
        raise DataError(f"the file is damaged ({error}).", file=str(path)) from error
