"""Rows of Parquet and Arrow files (Feather, and the `datasets` library's format)."""

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
from rlsys.data.readers.raw import RawRow, SingleFile, reading_errors

BATCH_ROWS = 4096
"""Rows decoded at a time."""
BUFFER_BYTES = 1 << 16
"""Read buffer per column of a Parquet file; it keeps memory independent of the size of row groups."""


class Parquet(SingleFile):
    """A Parquet file, decoded in batches of rows whatever the size of its row groups.

    Reading a row requires decoding its row group up to that row. So whenever a row group is decoded, its `upcoming` rows are cached until
    they are fetched: a file of a few large groups is decoded once per thousands of random rows, and a file of many small groups hardly
    beyond the groups of the rows requested. The cache never exceeds the upcoming rows.
    """

    def __init__(self, path: Path):
        super().__init__(path)
        try:
            # A memory map would count the pages of the file as resident memory.
            self._file = pq.ParquetFile(path, buffer_size=BUFFER_BYTES, pre_buffer=False)
        except (OSError, pa.ArrowException, UnicodeDecodeError) as error:  # the last: a column's name
            raise DataError(f"not a readable Parquet file ({error}).", file=str(path)) from error
        _check_names(self._file.schema_arrow, path)
        metadata = self._file.metadata
        sizes = (metadata.row_group(group).num_rows for group in range(metadata.num_row_groups))
        self._starts: list[int] = list(accumulate(sizes, initial=0))
        self._cache: dict[int, RawRow] = {}

    def __len__(self) -> int:
        return self._starts[-1]

    def scan(self) -> Iterator[tuple[int, RawRow]]:
        for first, batch in self._batches(range(self._file.num_row_groups)):
            yield from enumerate(rows_of(batch), start=first + 1)

    def fetch(self, indices: Sequence[int], upcoming: Sequence[int] = ()) -> list[tuple[int, RawRow]]:
        self._load([index for index in indices if index not in self._cache], indices, upcoming)
        rows = [(index + 1, self._cache[index]) for index in indices]
        for index in set(indices).difference(upcoming):
            del self._cache[index]
        # The cached rows of all groups run out at about the same time: decode one group per call ahead of that.
        soon = next((index for index in upcoming[: len(upcoming) // 2] if index not in self._cache), None)
        if soon is not None:
            self._load([soon], upcoming)
        return rows

    def _load(self, missing: Sequence[int], *wanted: Sequence[int]) -> None:
        """Decode the row groups of `missing`, cache their rows that are in `wanted`, and evict all other rows."""
        if not missing:
            return
        indices = sorted(set().union(*wanted))
        self._cache = {index: self._cache[index] for index in indices if index in self._cache}
        for first, batch in self._batches(sorted({bisect_right(self._starts, index) - 1 for index in missing})):
            here = indices[bisect_left(indices, first) : bisect_left(indices, first + len(batch))]
            self._cache.update((index, row_of(batch, index - first)) for index in here)

    def _batches(self, groups: Iterable[int]) -> Iterator[tuple[int, pa.RecordBatch]]:
        """Yield (index of the first row, rows) of the batches of `groups`."""
        for group in groups:
            first = self._starts[group]
            # One thread is as fast as several here, and leaves the other cores free.
            batches = self._file.iter_batches(BATCH_ROWS, row_groups=[group], use_threads=False)
            while (batch := self._next(batches)) is not None:
                yield first, batch
                first += len(batch)

    def _next(self, batches: Iterator[pa.RecordBatch]) -> pa.RecordBatch | None:
        with reading_errors(self._path):
            return next(batches, None)


class ArrowFile(SingleFile):
    """An Arrow file, in the file format (Feather version 2) or the stream format (`Dataset.save_to_disk`).

    Batches are read from a memory map. A stream is indexed once by the offsets of its batches. A stream with dictionaries between its
    batches has no random access and is copied, without dictionaries, to a temporary file.
    """

    def __init__(self, path: Path):
        super().__init__(path)
        self._validated: set[int] = set()
        with reading_errors(path):
            self._map = pa.memory_map(str(path))
            if self._map.read(6) == b"ARROW1":
                self._open_file(pa.ipc.open_file(self._map))
            else:
                self._map.seek(0)
                self._open_stream()
            _check_names(self._schema, path)

    def __len__(self) -> int:
        return self._starts[-1]

    def scan(self) -> Iterator[tuple[int, RawRow]]:
        for number, first in enumerate(self._starts[:-1]):
            with reading_errors(self._path):
                batch = self._valid_batch(number)
            for start in range(0, len(batch), BATCH_ROWS):
                yield from enumerate(rows_of(batch.slice(start, BATCH_ROWS)), start=first + start + 1)

    def fetch(self, indices: Sequence[int], upcoming: Sequence[int] = ()) -> list[tuple[int, RawRow]]:
        rows: dict[int, RawRow] = {}
        number, batch = -1, None
        with reading_errors(self._path):
            for index in sorted(set(indices)):
                if (needed := bisect_right(self._starts, index) - 1) != number:
                    number, batch = needed, self._valid_batch(needed)
                rows[index] = row_of(batch, index - self._starts[number])
        return [(index + 1, rows[index]) for index in indices]

    def _valid_batch(self, number: int) -> pa.RecordBatch:
        """Return a batch. Arrow trusts the offsets in a file: one that points elsewhere would end the process, so they are checked once."""
        batch = self._batch(number)
        if number not in self._validated:
            for column in batch.columns:
                # Texts as bytes: one that is not UTF-8 is an error of its row alone.
                column.view(_with_bytes(column.type)).validate(full=True)
            self._validated.add(number)
        return batch

    def _open_file(self, reader: pa.ipc.RecordBatchFileReader) -> None:
        self._schema, self._batch = reader.schema, reader.get_batch
        sizes = (len(reader.get_batch(number)) for number in range(reader.num_record_batches))
        self._starts: list[int] = list(accumulate(sizes, initial=0))

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
    """Copy the batches of a stream to a temporary file with random access, with dictionaries decoded."""
    with tempfile.NamedTemporaryFile() as file:
        schema = pa.schema([(field.name, _plain_type(field.type)) for field in reader.schema])
        with pa.ipc.new_file(file.name, schema) as writer:
            for batch in reader:
                writer.write_batch(pa.RecordBatch.from_pylist(batch.to_pylist(), schema))
        return pa.memory_map(file.name)


def _with_bytes(kind: pa.DataType) -> pa.DataType:
    """Return the type with the same layout whose texts are bytes, and whose dates in milliseconds need not be whole days."""
    if pa.types.is_date64(kind):
        return pa.int64()
    if pa.types.is_string(kind):
        return pa.binary()
    if pa.types.is_large_string(kind):
        return pa.large_binary()
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(_with_bytes(field.type)) for field in kind])
    if pa.types.is_list(kind):
        return pa.list_(kind.value_field.with_type(_with_bytes(kind.value_type)))
    if pa.types.is_large_list(kind):
        return pa.large_list(kind.value_field.with_type(_with_bytes(kind.value_type)))
    return kind


def _plain_type(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_dictionary(kind):
        return _plain_type(kind.value_type)
    if pa.types.is_struct(kind):
        return pa.struct([(field.name, _plain_type(field.type)) for field in kind])
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return pa.large_list(_plain_type(kind.value_type))
    return kind


def _check_names(schema: pa.Schema, path: Path) -> None:
    try:
        names = schema.names
    except UnicodeDecodeError as error:
        raise DataError(f"the file is damaged (the name of a column: {error}).", file=str(path)) from error
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(f"expected columns of different names, found {', '.join(twice)} more than once.", file=str(path))


def rows_of(batch: pa.RecordBatch) -> list[RawRow]:
    """Return all rows of a batch. Values that Python cannot represent become `Unreadable`, an error only if a reader needs them."""
    try:
        return [_texts(row) for row in batch.to_pylist(maps_as_pydicts="strict")]
    except (ValueError, KeyError, OverflowError, NotImplementedError):
        return [row_of(batch, index) for index in range(len(batch))]


def row_of(batch: pa.RecordBatch, index: int) -> RawRow:
    """Return one row of a batch, as in `rows_of`. (`RecordBatch.take` does not support every type.)"""
    return _texts({name: _value(column, index) for name, column in zip(batch.schema.names, batch.columns, strict=True)})


def _value(column: pa.Array, index: int) -> Any:
    try:
        return column[index].as_py(maps_as_pydicts="strict")
    except (ValueError, KeyError, OverflowError, NotImplementedError) as error:
        return Unreadable(str(error))


def _texts(row: dict[str, Any]) -> dict[str, Any]:
    """Decode bytes that are UTF-8: some writers do not mark text columns as such."""
    for key, value in row.items():
        if isinstance(value, bytes):
            try:
                row[key] = value.decode()
            except UnicodeDecodeError:
                pass
    return row
