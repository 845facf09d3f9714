"""Raw rows of a file, streamed and by place: JSONL (also gzipped), JSON and Parquet behind one small interface."""

from __future__ import annotations

import gzip
import json
import shutil
import tempfile
import zlib
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from rlsys.readers.fields import DataError, wrong

SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".parquet")
BATCH_ROWS = 1024
"""Parquet rows decoded at a time while streaming."""
CACHED_GROUPS = 2
"""Parquet row groups that random access keeps decoded."""
_BOM = b"\xef\xbb\xbf"


class Source(Protocol):
    """Rows of one file."""

    def scan(self) -> Iterator[tuple[int, int, dict[str, Any] | DataError]]:
        """Every row as (1-based row number, place, row); an unreadable row is the error that says why, without file and row."""
        ...

    def fetch(self, place: int) -> dict[str, Any]:
        """The row at a `place` that `scan` gave. Raises DataError where the file has changed since."""
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


def as_row(value: Any) -> dict[str, Any] | DataError:
    """A parsed value as a row, or the error that it is none."""
    return value if isinstance(value, dict) else wrong("row", "an object", value)


def parse_line(line: bytes) -> dict[str, Any] | DataError:
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
    """One JSON object a line. Blank lines are passed over; row numbers are line numbers; a place is a byte offset."""

    def __init__(self, path: Path):
        self._path = path
        self._file: BinaryIO | None = None

    def scan(self) -> Iterator[tuple[int, int, dict[str, Any] | DataError]]:
        try:
            with gzip.open(self._path) if self._zipped else self._path.open("rb") as file:
                offset = 0
                for number, line in enumerate(file, start=1):
                    start = len(_BOM) if number == 1 and line.startswith(_BOM) else 0
                    if line[start:].strip():
                        yield number, offset + start, parse_line(line[start:])
                    offset += len(line)
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(f"the file is damaged ({error}).", file=str(self._path)) from error

    def fetch(self, place: int) -> dict[str, Any]:
        if self._file is None:
            self._file = self._unzip() if self._zipped else self._path.open("rb")
        self._file.seek(place)
        row = parse_line(self._file.readline())
        if isinstance(row, DataError):
            raise DataError(f"the file has changed since it was indexed: {row.problem}", file=str(self._path))
        return row

    @property
    def _zipped(self) -> bool:
        return self._path.name.lower().endswith(".gz")

    def _unzip(self) -> BinaryIO:
        # Seeking back in a gzip stream decompresses it from the start: unpack once to a file that vanishes with the process.
        unpacked = tempfile.TemporaryFile()
        with gzip.open(self._path) as file:
            shutil.copyfileobj(file, unpacked)
        return unpacked


class JsonList:
    """A JSON list of objects, or {"data": [...]}; loaded whole. A place is a position in the list."""

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

    def scan(self) -> Iterator[tuple[int, int, dict[str, Any] | DataError]]:
        for place, value in enumerate(self._rows):
            yield place + 1, place, as_row(value)

    def fetch(self, place: int) -> dict[str, Any]:
        return self._rows[place]


class Parquet:
    """A Parquet file. Streaming holds one batch of rows; random access decodes whole row groups: those of some 1,000 rows serve it best."""

    def __init__(self, path: Path):
        self._path = path
        try:
            self._file = pq.ParquetFile(path, memory_map=True, pre_buffer=False)
        except pa.ArrowException as error:
            raise DataError(f"not a readable Parquet file ({error}).", file=str(path)) from error
        self._starts = [0]
        for group in range(self._file.num_row_groups):
            self._starts.append(self._starts[-1] + self._file.metadata.row_group(group).num_rows)
        self._groups: OrderedDict[int, pa.Table] = OrderedDict()

    def scan(self) -> Iterator[tuple[int, int, dict[str, Any] | DataError]]:
        place = 0
        batches = self._file.iter_batches(batch_size=BATCH_ROWS)
        while (batch := self._guard(next, batches, None)) is not None:
            for row in _rows(batch):
                yield place + 1, place, row
                place += 1

    def fetch(self, place: int) -> dict[str, Any]:
        group = bisect_right(self._starts, place) - 1
        if group not in self._groups:
            while len(self._groups) >= CACHED_GROUPS:
                self._groups.popitem(last=False)
            self._groups[group] = self._guard(self._file.read_row_group, group)
        self._groups.move_to_end(group)
        return self._groups[group].slice(place - self._starts[group], 1).to_pylist()[0]

    def _guard(self, call: Any, *arguments: Any) -> Any:
        try:
            return call(*arguments)
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"the file is damaged ({error}).", file=str(self._path)) from error


def _rows(batch: pa.RecordBatch) -> list[dict[str, Any] | DataError]:
    try:
        return batch.to_pylist()
    except ValueError as error:  # text that is not UTF-8, a date beyond Python's range: find the row that holds it
        if len(batch) == 1:
            return [DataError(f"expected values that Python can hold, found: {error}.")]
        half = len(batch) // 2
        return _rows(batch.slice(0, half)) + _rows(batch.slice(half))
