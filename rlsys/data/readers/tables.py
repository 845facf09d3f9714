"""CSV rows: every value is text, parsed as a number where the format requires one."""

from __future__ import annotations

import csv
import io
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path

from rlsys.data.readers.compression import open_decompressed
from rlsys.data.readers.fields import DataError
from rlsys.data.readers.json_files import LineIndex
from rlsys.data.readers.raw import RawRow, SingleFile, reading_errors

DELIMITERS = ",\t;"
csv.field_size_limit(min(sys.maxsize, 2**31 - 1))


class Csv(SingleFile):
    """A CSV file with a header (RFC 4180), delimited by commas, tabs or semicolons, whichever is most frequent in the header.

    Rows are numbered from 1, without the header. For random access they are written once to a temporary file.
    """

    def __init__(self, path: Path, codec: str | None = None):
        super().__init__(path)
        self._codec = codec
        with self._text() as file:
            header = next((line for line in file if line.strip()), "")
        self._delimiter = max(DELIMITERS, key=header.count)
        with self._text() as file:
            self._names = next((names for names in csv.reader(file, delimiter=self._delimiter) if names), [])
        twice = sorted({name for name in self._names if self._names.count(name) > 1})
        if twice:
            raise DataError(f"expected columns of different names, found {', '.join(map(ascii, twice))} more than once.", file=str(path))

    def __len__(self) -> int:
        return self._index.rows

    def scan(self) -> Iterator[tuple[int, RawRow]]:
        with reading_errors(self._path), self._text() as file:
            lines = csv.reader(file, delimiter=self._delimiter, strict=True)
            number = -1
            while True:
                try:
                    fields = next(lines, None)
                except csv.Error as error:
                    if "unexpected end of data" in str(error):
                        raise DataError("expected a closing quotation mark, found the end of the file.", file=str(self._path)) from error
                    number += 1
                    yield number, DataError(f"expected CSV, found an error: {error}.")
                    continue
                if fields is None:
                    return
                if fields:
                    number += 1
                    if number:
                        yield number, self._row(fields)

    def fetch(self, indices: Sequence[int], upcoming: Sequence[int] = ()) -> list[tuple[int, RawRow]]:
        rows = {index: self._index.line(index)[1] for index in sorted(set(indices))}
        return [(index + 1, _read_back(rows[index])) for index in indices]

    def _row(self, fields: list[str]) -> RawRow:
        if len(fields) != len(self._names):
            return DataError(f"expected {len(self._names)} fields, as in the header, found {len(fields)}.")
        if [fields[0].removeprefix("\ufeff"), *fields[1:]] == self._names:
            return DataError("expected a row, found the header again: were several files concatenated?")
        return dict(zip(self._names, fields, strict=True))

    def _text(self) -> io.TextIOWrapper:
        with reading_errors(self._path):
            # Bytes that are not UTF-8 become surrogates, which records reject: one malformed row.
            return io.TextIOWrapper(open_decompressed(self._path, self._codec), encoding="utf-8-sig", errors="surrogateescape", newline="")

    @cached_property
    def _index(self) -> LineIndex:
        copy = tempfile.TemporaryFile()
        for _, raw in self.scan():
            copy.write(json.dumps({"error": raw.problem} if isinstance(raw, DataError) else {"row": raw}).encode() + b"\n")
        return LineIndex(copy)


def _read_back(line: bytes) -> RawRow:
    found = json.loads(line)
    return DataError(found["error"]) if "error" in found else found["row"]
