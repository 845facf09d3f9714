"""JSON rows: one object per line (the only JSONL reader in the project), or one document."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from array import array
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

from rlsys.data.readers.compression import open_decompressed
from rlsys.data.readers.fields import DataError, Unreadable, describe
from rlsys.data.readers.raw import RawRow, SingleFile, as_row, reading_errors

STRIDE = 64
"""Rows between two indexed offsets of a JSONL file."""
SPLITS = ("train", "training", "validation", "valid", "val", "dev", "test", "heldout", "eval")
"""Usual names of splits."""
_BOM = b"\xef\xbb\xbf"
_NON_BLANK = re.compile(r"[^\s\ufeff]")
_MESSAGE = ({"role", "content"}, {"from", "value"})


def parse_line(line: bytes) -> RawRow:
    """Parse one line of JSONL."""
    try:
        return as_row(json.loads(line.rstrip(b"\r\n").decode(), object_pairs_hook=_object))
    except UnicodeDecodeError as error:
        return DataError(f"expected UTF-8, found byte 0x{line[error.start]:02x} at position {error.start + 1} of the line.")
    except json.JSONDecodeError as error:
        if error.msg == "Extra data" and b"\r" in line.rstrip():
            fix = r"`tr '\r' '\n' < FILE > NEW` converts them"
            return DataError(f"expected one object per line, found lines that end in a bare carriage return; {fix}.")
        return DataError(f"expected JSON, found an error at position {error.pos + 1} of the line: {error.msg}.")
    except (ValueError, RecursionError) as error:  # an integer of thousands of digits; brackets nested thousands deep
        return DataError(f"expected JSON, found {error}.")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any] | Unreadable:
    """Return an object, or `Unreadable` if a key occurs twice, of which Python would keep the last."""
    found = dict(pairs)
    if len(found) == len(pairs):
        return found
    names = [name for name, _ in pairs]
    return Unreadable(f"an object with {ascii(next(name for name in names if names.count(name) > 1))} more than once")


class JsonLines(SingleFile):
    """One JSON object per line. Blank lines are skipped; row numbers are line numbers.

    A source without random access is decompressed to a temporary file: a pipe at once, a compressed file when a row is first fetched.
    """

    def __init__(self, path: Path, codec: str | None = None):
        super().__init__(path)
        self._codec = codec
        self._once = not path.is_file()

    def __len__(self) -> int:
        return self._index.rows

    @property
    def last(self) -> int:
        return self._index.last

    def scan(self) -> Iterator[tuple[int, RawRow]]:
        if self._once:
            yield from ((number, parse_line(line)) for number, _, line in _lines(self._seekable))
            return
        with reading_errors(self._path), open_decompressed(self._path, self._codec) as file:
            for number, _, line in _lines(file):
                yield number, parse_line(line)

    def fetch(self, indices: Sequence[int], upcoming: Sequence[int] = ()) -> list[tuple[int, RawRow]]:
        with reading_errors(self._path):
            rows = {index: self._index.line(index) for index in sorted(set(indices))}
        return [(number, parse_line(line)) for number, line in map(rows.__getitem__, indices)]

    @cached_property
    def _seekable(self) -> BinaryIO:
        with reading_errors(self._path):
            if self._codec is None and not self._once:
                return self._path.open("rb")
            unpacked = tempfile.TemporaryFile()
            with open_decompressed(self._path, self._codec) as file:
                shutil.copyfileobj(file, unpacked)
            unpacked.seek(0)
            return unpacked

    @cached_property
    def _index(self) -> LineIndex:
        file = self._seekable
        with reading_errors(self._path):
            return LineIndex(file)


class LineIndex:
    """Byte offsets of the lines of a file: one pass over the file, then a quarter of a byte of memory per line."""

    def __init__(self, file: BinaryIO):
        self._file = file
        self._numbers, self._offsets = array("Q"), array("Q")
        self.rows = self.last = 0
        file.seek(0)
        for number, offset, _ in _lines(file):
            if self.rows % STRIDE == 0:
                self._numbers.append(number)
                self._offsets.append(offset)
            self.rows, self.last = self.rows + 1, number

    def line(self, index: int) -> tuple[int, bytes]:
        """Return (1-based line number, line) of row `index`."""
        mark, further = divmod(index, STRIDE)
        self._file.seek(self._offsets[mark])
        number, _, line = next(islice(_lines(self._file, self._numbers[mark], self._offsets[mark]), further, None))
        return number, line


def _lines(file: Iterable[bytes], first: int = 1, offset: int = 0) -> Iterator[tuple[int, int, bytes]]:
    """Yield (line number, byte offset, line) of the non-blank lines from the file's position: line `first`, at `offset`."""
    for number, line in enumerate(file, start=first):
        size = len(line)
        line = line.removeprefix(_BOM)  # one per file, if several were concatenated
        if line and not line.isspace():
            yield number, offset, line
        offset += size


class JsonDocument(SingleFile):
    """Rows of a JSON document, which is loaded whole.

    Accepted layouts: a list of objects; the same under `data` or a split's name; lists by group ({group: [rows]}; a row without
    `group` gets its list's); one object, which is one row; or concatenated objects, however they are laid out.

    Args:
        split: the key of the list to read, where there are several.

    Raises:
        DataError: not JSON, none of these layouts, or several splits and none selected.
    """

    def __init__(self, path: Path, codec: str | None = None, split: str | None = None):
        super().__init__(path)
        try:
            with reading_errors(path), open_decompressed(path, codec) as file:
                values = list(_values(file.read().removeprefix(_BOM).decode()))
            self._rows = values if len(values) > 1 else _rows(values[0] if values else None, split)
            if len(values) == 1 and len(self._rows) == 1 and self._rows[0] is values[0]:
                self.hint = _other_lists(self._rows[0], path)
        except DataError as error:
            raise DataError(error.problem, file=str(path)) from error
        except (ValueError, RecursionError) as error:
            raise DataError(f"expected JSON in UTF-8, found: {error}.", file=str(path)) from error

    def __len__(self) -> int:
        return len(self._rows)

    def scan(self) -> Iterator[tuple[int, RawRow]]:
        for index, value in enumerate(self._rows):
            yield index + 1, as_row(value)

    def fetch(self, indices: Sequence[int], upcoming: Sequence[int] = ()) -> list[tuple[int, RawRow]]:
        return [(index + 1, as_row(self._rows[index])) for index in indices]


def _values(text: str) -> Iterator[Any]:
    """Yield concatenated JSON values."""
    decoder, end = json.JSONDecoder(object_pairs_hook=_object), 0
    while match := _NON_BLANK.search(text, end):
        value, end = decoder.raw_decode(text, match.start())
        yield value


def _rows(value: Any, split: str | None) -> list[Any]:
    if isinstance(value, list) and split is None:
        return value
    if isinstance(value, dict) and value:
        lists: dict[str, list[Any]] = {name: rows for name, rows in value.items() if isinstance(rows, list)}
        if split is not None:
            if split not in lists:
                raise DataError(f"there is no list under {split!r}; the document has {', '.join(map(str, list(value)[:12]))}.")
            return lists[split]
        if "data" in lists:
            return lists["data"]
        splits = [name for name in lists if name in SPLITS]
        if len(splits) > 1:
            raise DataError(f"has several splits ({', '.join(splits)}): select one after a colon, as in FILE:{splits[0]}.")
        if splits:
            return lists[splits[0]]
        if all(_is_group(rows) for rows in value.values()):
            return [{"group": group, **row} for group, rows in value.items() for row in rows]
        return [value]
    raise DataError(f'expected a list of objects or {{"data": [...]}}, or one object per line, found {describe(value)}.')


def _is_group(value: Any) -> bool:
    """Whether `value` is a list of rows; a list of messages is not."""
    objects = isinstance(value, list) and all(isinstance(row, dict) for row in value)
    return objects and not any(keys <= row.keys() for row in value for keys in _MESSAGE)


def _other_lists(document: Any, path: Path) -> str:
    """Return a hint for a document that was read as one row, although a list under one of its keys may have the rows."""
    names = [name for name, value in document.items() if value and _is_group(value)] if isinstance(document, dict) else []
    return f"If the rows are under {names[0]!r}, read {path}:{names[0]}." if names else ""
