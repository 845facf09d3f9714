"""The interface of every kind of file: raw rows, streamed and by number."""

from __future__ import annotations

import lzma
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa

from rlsys.data.readers.fields import DataError, wrong

RawRow = dict[str, Any] | DataError
"""A row as the file has it; an unreadable row is the error that says why, without file and row."""


class Source(Protocol):
    """Rows of one file, or of several files read as one."""

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that are read."""
        ...

    @property
    def skipped_files(self) -> tuple[Path, ...]:
        """Files of the same folder or pattern that are not read."""
        ...

    @property
    def last(self) -> int:
        """The number of the last row, 0 if there is none."""
        ...

    @property
    def hint(self) -> str:
        """What to try if the rows turn out to be malformed, or an empty string."""
        ...

    def __len__(self) -> int:
        """Number of rows, good or bad; blank lines of JSONL are not rows."""
        ...

    def scan(self) -> Iterator[tuple[int, RawRow]]:
        """Yield every row as (1-based row number, in JSONL the line number; row)."""
        ...

    def fetch(self, indices: Sequence[int], upcoming: Sequence[int] = ()) -> list[tuple[int, RawRow]]:
        """Return the rows at `indices` (0-based, in the order of `scan`), in the form that `scan` yields.

        `upcoming`: indices that will be fetched next, for sources that cannot read a row without its neighbours.
        """
        ...

    def locate(self, number: int) -> tuple[Path, int]:
        """Return the file, and the number within it, of the row that `scan` or `fetch` numbered `number`."""
        ...


class SingleFile(ABC):
    """Base of files whose rows are numbered from 1 without gaps."""

    skipped_files: tuple[Path, ...] = ()
    hint: str = ""

    def __init__(self, path: Path):
        self._path = path
        self.files: tuple[Path, ...] = (path,)

    @abstractmethod
    def __len__(self) -> int: ...

    @property
    def last(self) -> int:
        return len(self)

    def locate(self, number: int) -> tuple[Path, int]:
        return self._path, number


def as_row(value: Any) -> RawRow:
    """Return a parsed value as a row, or the error that it is not an object."""
    return value if isinstance(value, dict) else wrong("row", "an object", value)


@contextmanager
def reading_errors(path: Path) -> Iterator[None]:
    """Turn errors while reading `path` into a DataError."""
    try:
        yield
    except (OSError, EOFError, zlib.error, lzma.LZMAError, pa.ArrowException) as error:
        raise DataError(f"the file is damaged ({error}).", file=str(path)) from error
