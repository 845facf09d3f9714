"""Rows of Parquet files and of Arrow files (Feather, and what the `datasets` library saves)."""

from __future__ import annotations

import tempfile
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rlsys.data.readers.fields import DataError, Unreadable
from rlsys.data.readers.raw import Raw, SingleFile, damage

BATCH_ROWS = 4096
"""Parquet rows decoded at a time."""
BUFFER_BYTES = 1 << 16
"""Read at a time from each column of a Parquet file, so that memory does not depend on the size of its row groups."""


class Parquet(SingleFile):
    """A Parquet file, decoded some rows at a time whatever the size of its row groups.

    A row cannot be read without decoding its row group up to there. Whenever a row group is decoded, the rows of it that are `upcoming`
    are therefore kept, until they are fetched: a file of few large groups is decoded once for thousands of rows drawn at random, and of
    one with many small groups little more than the groups of the rows asked for. Memory holds at most the upcoming rows.
    """

    def __init__(self, path: Path):
        super().__init__(path)
        try:
            # A memory map would count the pages of the file as memory of the process.
            self._file = pq.ParquetFile(path, buffer_size=BUFFER_BYTES, pre_buffer=False)
        except pa.ArrowException as error:
            raise DataError(f"not a readable Parquet file ({error}).", file=str(path)) from error
        _check_names(self._file.schema_arrow, path)
        metadata = self._file.metadata
        self._starts = list(accumulate((metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)), initial=0))
        self._kept: dict[int, Raw] = {}

    def __len__(self) -> int:
        return self._starts[-1]

    def scan(self) -> Iterator[tuple[int, Raw]]:
        for first, batch in self._batches(range(self._file.num_row_groups)):
            yield from enumerate(rows_of(batch), start=first + 1)

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
            self._kept.update((index, row_of(batch, index - first)) for index in here)

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
        with damage(self._path):
            return next(batches, None)


class ArrowFile(SingleFile):
    """An Arrow file: of the file format (Feather version 2) or a stream, as `Dataset.save_to_disk` writes it.

    Batches are read where the file lies in the page cache. A stream is indexed once by the places of its batches; one whose dictionaries
    stand between them can only be read from its beginning and is copied, without dictionaries, to a file that vanishes with the process.
    """

    def __init__(self, path: Path):
        super().__init__(path)
        with damage(path):
            self._map = pa.memory_map(str(path))
            if self._map.read(6) == b"ARROW1":
                self._open_file(pa.ipc.open_file(self._map))
            else:
                self._map.seek(0)
                self._open_stream()
        _check_names(self._schema, path)

    def __len__(self) -> int:
        return self._starts[-1]

    def scan(self) -> Iterator[tuple[int, Raw]]:
        for number, first in enumerate(self._starts[:-1]):
            with damage(self._path):
                batch = self._batch(number)
            for start in range(0, len(batch), BATCH_ROWS):
                yield from enumerate(rows_of(batch.slice(start, BATCH_ROWS)), start=first + start + 1)

    def fetch(self, indices: Sequence[int], upcoming: Sequence[int] = ()) -> list[tuple[int, Raw]]:
        rows: dict[int, Raw] = {}
        number, batch = -1, None
        with damage(self._path):
            for index in sorted(set(indices)):
                if (needed := bisect_right(self._starts, index) - 1) != number:
                    number, batch = needed, self._batch(needed)
                rows[index] = row_of(batch, index - self._starts[number])
        return [(index + 1, rows[index]) for index in indices]

    def _open_file(self, reader: pa.ipc.RecordBatchFileReader) -> None:
        self._schema, self._batch = reader.schema, reader.get_batch
        self._starts = list(accumulate((len(reader.get_batch(number)) for number in range(reader.num_record_batches)), initial=0))

    def _open_stream(self) -> None:
        reader = pa.ipc.open_stream(self._map)
        self._schema = reader.schema
        self._map.seek(0)
        places, lengths, plain = array("Q"), [], True
        messages = pa.ipc.MessageReader.open_stream(self._map)
        messages.read_next_message()  # the schema
        while True:
            place = self._map.tell()
            try:
                message = messages.read_next_message()
            except StopIteration:
                break
            if message.type != "record batch":
                plain = False
                break
            places.append(place)
            lengths.append(pa.ipc.read_record_batch(message, self._schema).num_rows)
        if plain:
            self._places, self._batch = places, self._batch_of_stream
            self._starts = list(accumulate(lengths, initial=0))
            return
        self._map.seek(0)
        self._open_file(pa.ipc.open_file(_without_dictionaries(pa.ipc.open_stream(self._map))))

    def _batch_of_stream(self, number: int) -> pa.RecordBatch:
        self._map.seek(self._places[number])
        return pa.ipc.read_record_batch(pa.ipc.read_message(self._map), self._schema)


def _without_dictionaries(reader: pa.ipc.RecordBatchStreamReader) -> pa.MemoryMappedFile:
    """The batches of a stream in a file of which each can be read alone: every row as it would be given out, in Arrow's own types."""
    with tempfile.NamedTemporaryFile() as file:
        schema = pa.schema([(field.name, _plain_type(field.type)) for field in reader.schema])
        with pa.ipc.new_file(file.name, schema) as writer:
            for batch in reader:
                writer.write_batch(pa.RecordBatch.from_pylist(batch.to_pylist(), schema))
        return pa.memory_map(file.name)


def _plain_type(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_dictionary(kind):
        return _plain_type(kind.value_type)
    if pa.types.is_struct(kind):
        return pa.struct([(field.name, _plain_type(field.type)) for field in kind])
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return pa.large_list(_plain_type(kind.value_type))
    return kind


def _check_names(schema: pa.Schema, path: Path) -> None:
    twice = sorted({name for name in schema.names if schema.names.count(name) > 1})
    if twice:
        raise DataError(f"expected columns of different names, found {', '.join(twice)} more than once.", file=str(path))


def rows_of(batch: pa.RecordBatch) -> list[Raw]:
    """All rows of a batch. A value that Python cannot hold stands as `Unreadable`, so that it costs its row only if it is needed."""
    try:
        return [_texts(row) for row in batch.to_pylist(maps_as_pydicts="strict")]
    except (ValueError, KeyError, OverflowError, NotImplementedError):
        return [row_of(batch, index) for index in range(len(batch))]


def row_of(batch: pa.RecordBatch, index: int) -> Raw:
    """One row of a batch, as `rows_of` gives it. (`RecordBatch.take` does not know every type.)"""
    return _texts({name: _value(column, index) for name, column in zip(batch.schema.names, batch.columns, strict=True)})


def _value(column: pa.Array, index: int) -> Any:
    try:
        return column[index].as_py(maps_as_pydicts="strict")
    except (ValueError, KeyError, OverflowError, NotImplementedError) as error:
        return Unreadable(str(error))


def _texts(row: dict[str, Any]) -> dict[str, Any]:
    """The row with bytes that are UTF-8 as text: some writers do not say that a column is one."""
    for key, value in row.items():
        if isinstance(value, bytes):
            try:
                row[key] = value.decode()
            except UnicodeDecodeError:
                pass
    return row
