"""Tables of judged samples, read a few rows at a time: never a whole file, and texts only of the groups that are shown."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from rlsys.data.readers import DataError
from rlsys.data.trajectories import HELDOUT_FILES, NOT_PARQUET, check_columns, rows_of, unreadable

Row = dict[str, Any]
"""A sample as in rlsys.data.trajectories.TRAJECTORIES; columns that its table lacks are missing."""

REQUIRED = {"group", "prompt_id", "text"}
SUMMARISED = (
    "group", "prompt_id", "source", "family", "ground_truth", "scores", "parse_failure", "correct", "reward", "finish_reason",
    "weight_version",
)  # fmt: skip
"""Columns that summaries of groups are made of: none of them long."""
BATCH = 4096
"""Rows decoded at a time for summaries."""
TEXT_BATCH = 32
"""Rows decoded at a time with their texts."""


@dataclass(frozen=True)
class TableFile:
    """A table on disk. `stamp` changes when the file is replaced or grows."""

    name: str
    path: Path
    stamp: tuple[int, int, int]

    @staticmethod
    def at(path: Path, name: str) -> TableFile:
        stat = path.stat()
        return TableFile(name, path, (stat.st_ino, stat.st_size, stat.st_mtime_ns))

    @property
    def changed(self) -> float:
        """Time of the last change, seconds since the epoch."""
        return self.stamp[2] / 1e9


class Table(Protocol):
    """Samples in file order; those of a group are adjacent."""

    def summaries(self) -> Iterator[Row]:
        """Yield all samples, with the columns SUMMARISED only."""

    def samples(self, place: int, first: int, count: int) -> list[Row]:
        """Return the samples of a group, with all columns: group `place` of the table, `count` samples from index `first`."""


class ParquetTable:
    """A table of trajectories.

    Raises:
        DataError: the file is not Parquet, lacks a required column, or a column has another type; later, if a row is not valid.
    """

    def __init__(self, path: Path):
        self._path = path
        with self._open() as file:
            schema = file.schema_arrow
        check_columns(schema, path, REQUIRED)
        self._summarised = [name for name in SUMMARISED if name in schema.names]

    def summaries(self) -> Iterator[Row]:
        with self._open() as file:
            rows = _rows(file.iter_batches(BATCH, columns=self._summarised), self._path)
            for number, row in enumerate(rows, 1):
                for name in REQUIRED & row.keys():
                    if row[name] is None:
                        raise DataError(f"{name}: expected a value, found null.", key=name, file=str(self._path), row=number)
                yield row

    def samples(self, place: int, first: int, count: int) -> list[Row]:
        with self._open() as file:
            starts = [0, *accumulate(file.metadata.row_group(number).num_rows for number in range(file.num_row_groups))]
            needed = [number for number, (start, end) in enumerate(pairwise(starts)) if start < first + count and end > first]
            batches = file.iter_batches(TEXT_BATCH, row_groups=needed)
            return list(_rows(_slice(batches, first - starts[needed[0]], count), self._path)) if needed else []

    def _open(self) -> pq.ParquetFile:
        try:
            # Columns are read as they are decoded. Not mapped: reading a mapped file that is cut short meanwhile would end the process.
            return pq.ParquetFile(self._path, buffer_size=2**20, pre_buffer=False)
        except NOT_PARQUET as error:
            raise unreadable(self._path, error) from error


def _slice(batches: Iterator[pa.RecordBatch], first: int, count: int) -> Iterator[pa.RecordBatch]:
    """Yield rows first .. first + count - 1 of consecutive batches."""
    while count > 0 and (batch := next(batches, None)) is not None:
        part = batch.slice(min(first, batch.num_rows), count)
        first, count = max(first - batch.num_rows, 0), count - part.num_rows
        yield part


def _rows(batches: Iterator[pa.RecordBatch], path: Path) -> Iterator[Row]:
    try:
        for batch in batches:
            yield from rows_of(batch, path)
    except NOT_PARQUET as error:
        raise unreadable(path, error) from error


# --- folders --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Source:
    """What `rlsys view` was given: a run folder, an evaluation folder, or one file."""

    name: str
    path: Path

    def tables(self) -> list[TableFile]:
        """List the tables there now, in the order in which a run writes them."""
        found = []
        for path in self._paths():
            try:
                found.append(TableFile.at(path, path.name.removesuffix(".part").rsplit(".", 1)[0]))
            except FileNotFoundError:  # replaced, or removed by a resumed run, since it was listed
                continue
        return sorted(found, key=lambda table: (*_stage(table.name), table.name))

    def _paths(self) -> Sequence[Path]:
        if not self.path.is_dir():
            return [self.path]
        folder = self.path / "trajectories"
        names = [path for path in folder.glob("*.parquet") if not path.name.startswith(".")] if folder.is_dir() else []
        return names + [path for ending in ("jsonl", "jsonl.part") for part in PARTS for path in self.path.glob(f"*.{part}.{ending}")]


def _stage(name: str) -> tuple[int, int, bool]:
    """Return a sort key: base, cold start, numbered steps (each before its evaluation), and what follows them."""
    number = re.search(r"\d+$", name)
    kind = 2 if number else {"heldout_base": 0, "heldout_cold_start": 1}.get(name, 3)
    return kind, int(number[0]) if number else 0, name.startswith(HELDOUT_FILES)


PARTS = ("greedy", "swapped", "samples")
"""Kinds of samples of `rlsys eval`: NAME.greedy.jsonl, ..."""
FILES = (".parquet", ".jsonl", ".part")


def open_sources(paths: Sequence[Path], names: Sequence[str]) -> list[Source]:
    """Return the sources at `paths`.

    Raises:
        DataError: a path does not exist, or is neither a run folder, an evaluation folder, nor a file of judgements.
    """
    return [_checked(Source(name, path)) for path, name in zip(paths, names, strict=True)]


def _checked(source: Source) -> Source:
    path = source.path
    expected = "expected a run folder (with trajectories/), a folder of `rlsys eval`, a Parquet table, or the JSON Lines of `rlsys judge`"
    if not path.exists():
        raise DataError(f"{path}: no such file or folder; {expected}.")
    if path.is_file() and path.suffix not in FILES:
        raise DataError(f"{path}: the name ends in {path.suffix or 'nothing'}; {expected}.")
    if path.is_dir() and not (path / "trajectories").is_dir() and not source.tables():
        inside = sorted(found.parent.name for found in path.glob("*/trajectories"))
        hint = f" These folders in it are runs: {', '.join(inside[:12])}." if inside else ""
        raise DataError(f"{path}: holds no judgements; {expected}.{hint}")
    return source
