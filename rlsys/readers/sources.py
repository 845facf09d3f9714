"""Raw rows of a file, streamed and by number: JSONL (also gzipped), JSON and Parquet behind one small interface."""

from __future__ import annotations

import gzip
import json
import shutil
import tempfile
import zlib
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from itertools import accumulate, islice
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from rlsys.readers.fields import DataError, wrong

SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".parquet")
BATCH_ROWS = 4096
"""Parquet rows decoded at a time."""
BUFFER_BYTES = 1 << 16
"""Read at a time from each column of a Parquet file, so that memory does not depend on the size of its row groups."""
STRIDE = 64
"""Rows of JSONL from one remembered place in the file to the next."""
_BOM = b"\xef\xbb\xbf"

Raw = dict[str, Any] | DataError
"""A row as it stands in the file; an unreadable one is the error that says why, without file and row."""


class Source(Protocol):
    """Rows of one file."""

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


def open_source(path: Path) -> Source:
    """The rows of `path`, by its suffix.

    Raises:
        DataError: missing, a folder, unreadable, empty, damaged, or of a suffix that is not in SUFFIXES.
    """
    name = path.name.lower()
    if not name.endswith(SUFFIXES):
        raise DataError(f"unknown suffix {path.suffix!r}: expected one of {', '.join(SUFFIXES)}.", file=str(path))
    try:
        if path.stat().st_size == 0:
            raise DataError("the file is empty.", file=str(path))
        if name.endswith(".parquet"):
            return Parquet(path)
        with path.open("rb") as file:
            if file.read(2) in (b"\xff\xfe", b"\xfe\xff"):
                raise DataError("the file is UTF-16: convert it to UTF-8.", file=str(path))
        return JsonList(path) if name.endswith(".json") else JsonLines(path)
    except FileNotFoundError as error:
        raise DataError("there is no such file.", file=str(path)) from error
    except OSError as error:
        raise DataError(f"cannot be read ({error.strerror or error}).", file=str(path)) from error


def as_row(value: Any) -> Raw:
    """A parsed value as a row, or the error that it is none."""
    return value if isinstance(value, dict) else wrong("row", "an object", value)


def parse_line(line: bytes) -> Raw:
    """One line of JSONL."""
    try:
        return as_row(json.loads(line.rstrip(b"\r\n").decode()))
    except UnicodeDecodeError as error:
        return DataError(f"expected UTF-8, found byte 0x{line[error.start]:02x} at position {error.start + 1} of the line.")
    except json.JSONDecodeError as error:
        return DataError(f"expected JSON, found an error at position {error.pos + 1} of the line: {error.msg}.")
    except (ValueError, RecursionError) as error:  # an integer of thousands of digits; brackets nested thousands deep
        return DataError(f"expected JSON, found {error}.")


class JsonLines:
    """One JSON object a line. Blank lines are passed over; row numbers are line numbers. A .jsonl.gz is unpacked for `fetch`."""

    def __init__(self, path: Path):
        self._path = path
        self._zipped = path.name.lower().endswith(".gz")

    def __len__(self) -> int:
        return self._index.rows

    def scan(self) -> Iterator[tuple[int, Raw]]:
        with _damage(self._path), gzip.open(self._path) if self._zipped else self._path.open("rb") as file:
            for number, _, line in _lines(file):
                yield number, parse_line(line)

    def fetch(self, indices: Sequence[int], upcoming: Sequence[int] = ()) -> list[tuple[int, Raw]]:
        with _damage(self._path):
            rows = {index: self._index.line(index) for index in sorted(set(indices))}
        return [(number, parse_line(line)) for number, line in map(rows.__getitem__, indices)]

    @cached_property
    def _index(self) -> _LineIndex:
        with _damage(self._path):
            if not self._zipped:
                return _LineIndex(self._path.open("rb"))
            # Seeking back in a gzip stream decompresses it from the start: unpack once to a file that vanishes with the process.
            unpacked = tempfile.TemporaryFile()
            with gzip.open(self._path) as file:
                shutil.copyfileobj(file, unpacked)
            return _LineIndex(unpacked)


class _LineIndex:
    """Where the lines of a file stand: one pass over its bytes, then a quarter of a byte of memory a line."""

    def __init__(self, file: BinaryIO):
        self._file = file
        self._numbers, self._offsets = array("Q"), array("Q")
        self.rows = 0
        for number, offset, _ in _lines(file):
            if self.rows % STRIDE == 0:
                self._numbers.append(number)
                self._offsets.append(offset)
            self.rows += 1

    def line(self, index: int) -> tuple[int, bytes]:
        """(1-based line number, line) of row `index`."""
        mark, further = divmod(index, STRIDE)
        number, _, line = next(islice(_lines(self._file, self._numbers[mark], self._offsets[mark]), further, None))
        return number, line


def _lines(file: BinaryIO, first: int = 1, offset: int = 0) -> Iterator[tuple[int, int, bytes]]:
    """(line number, byte offset, line) of the lines that are not blank, from line number `first` on, which begins at `offset`."""
    file.seek(offset)
    for number, line in enumerate(file, start=first):
        size = len(line)
        if offset == 0:
            line = line.removeprefix(_BOM)
        if line and not line.isspace():
            yield number, offset, line
        offset += size


class JsonList:
    """A JSON list of objects, or {"data": [...]}; loaded whole."""

    def __init__(self, path: Path):
        try:
            value = json.loads(path.read_bytes().removeprefix(_BOM).decode())
        except (ValueError, RecursionError) as error:
            hint = " One object a line is .jsonl." if "Extra data" in str(error) else ""
            raise DataError(f"expected JSON in UTF-8, found: {error}.{hint}", file=str(path)) from error
        rows = value.get("data") if isinstance(value, dict) else value
        if not isinstance(rows, list):
            raise DataError('expected a list of objects or {"data": [...]}; one object a line is .jsonl.', file=str(path))
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def scan(self) -> Iterator[tuple[int, Raw]]:
        for index, value in enumerate(self._rows):
            yield index + 1, as_row(value)

    def fetch(self, indices: Sequence[int], upcoming: Sequence[int] = ()) -> list[tuple[int, Raw]]:
        return [(index + 1, as_row(self._rows[index])) for index in indices]


class Parquet:
    """A Parquet file, decoded some rows at a time whatever the size of its row groups.

    A row cannot be read without decoding its row group up to there. Whenever a row group is decoded, the rows of it that are `upcoming`
    are therefore kept, until they are fetched: a file of few large groups is decoded once for thousands of rows drawn at random, and of
    one with many small groups little more than the groups of the rows asked for. Memory holds at most the upcoming rows.
    """

    def __init__(self, path: Path):
        self._path = path
        try:
            # A memory map would count the pages of the file as memory of the process.
            self._file = pq.ParquetFile(path, buffer_size=BUFFER_BYTES, pre_buffer=False)
        except pa.ArrowException as error:
            raise DataError(f"not a readable Parquet file ({error}).", file=str(path)) from error
        metadata = self._file.metadata
        self._starts = list(accumulate((metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)), initial=0))
        self._kept: dict[int, Raw] = {}

    def __len__(self) -> int:
        return self._starts[-1]

    def scan(self) -> Iterator[tuple[int, Raw]]:
        for first, batch in self._batches(range(self._file.num_row_groups)):
            yield from enumerate(_rows(batch), start=first + 1)

    def fetch(self, indices: Sequence[int], upcoming: Sequence[int] = ()) -> list[tuple[int, Raw]]:
        self._load([index for index in indices if index not in self._kept], indices, upcoming)
        rows = [(index + 1, self._kept[index]) for index in indices]
        for index in set(indices).difference(upcoming):
            del self._kept[index]
        # The kept rows of all groups run out at about the same time: one group a call is decoded ahead of that.
        soon = next((index for index in upcoming[: len(upcoming) // 2] if index not in self._kept), None)
        if soon is not None:
            self._load([soon], upcoming)
        return rows

    def _load(self, missing: Sequence[int], *wanted: Sequence[int]) -> None:
        """Decode the row groups of `missing` and keep what they hold of `wanted`; forget other rows than `wanted`."""
        if not missing:
            return
        indices = sorted(set().union(*wanted))
        self._kept = {index: self._kept[index] for index in indices if index in self._kept}
        for first, batch in self._batches(sorted({bisect_right(self._starts, index) - 1 for index in missing})):
            here = indices[bisect_left(indices, first) : bisect_left(indices, first + len(batch))]
            if here:
                self._kept.update(zip(here, _rows(batch.take([index - first for index in here])), strict=True))

    def _batches(self, groups: Iterable[int]) -> Iterator[tuple[int, pa.RecordBatch]]:
        """(index of the first row, rows) of all rows of `groups`."""
        for group in groups:
            first = self._starts[group]
            # One thread decodes as fast as several here, and leaves the other cores to whoever computes on them.
            batches = self._file.iter_batches(BATCH_ROWS, row_groups=[group], use_threads=False)
            while (batch := self._next(batches)) is not None:
                yield first, batch
                first += len(batch)

    def _next(self, batches: Iterator[pa.RecordBatch]) -> pa.RecordBatch | None:
        try:
            return next(batches, None)
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"the file is damaged ({error}).", file=str(self._path)) from error


@contextmanager
def _damage(path: Path) -> Iterator[None]:
    """What goes wrong while reading, as a DataError."""
    try:
        yield
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"the file is damaged ({error}).", file=str(path)) from error


def _rows(batch: pa.RecordBatch) -> list[Raw]:
    try:
        return batch.to_pylist()
    except ValueError as error:  # text that is not UTF-8, a date beyond Python's range: find the row that holds it
        if len(batch) == 1:
            return [DataError(f"expected values that Python can hold, found: {error}.")]
        half = len(batch) // 2
        return _rows(batch.slice(0, half)) + _rows(batch.slice(half))
