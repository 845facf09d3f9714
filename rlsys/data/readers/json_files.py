"""Rows of JSON: an object a line (the one reader of JSONL that the whole project uses), or one document."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from array import array
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

from rlsys.data.readers.fields import DataError, Unreadable, describe
from rlsys.data.readers.packed import opened
from rlsys.data.readers.raw import Raw, SingleFile, as_row, damage

STRIDE = 64
"""Rows of JSONL from one remembered place in the file to the next."""
SPLITS = ("train", "training", "validation", "valid", "val", "dev", "test", "heldout", "eval")
"""Names that parts of a data set go by."""
_BOM = b"\xef\xbb\xbf"
_BLANKS = re.compile(r"[\s\ufeff]*")
_MESSAGE = ({"role", "content"}, {"from", "value"})


def parse_line(line: bytes) -> Raw:
    """One line of JSONL."""
    try:
        return as_row(json.loads(line.rstrip(b"\r\n").decode(), object_pairs_hook=_object))
    except UnicodeDecodeError as error:
        return DataError(f"expected UTF-8, found byte 0x{line[error.start]:02x} at position {error.start + 1} of the line.")
    except json.JSONDecodeError as error:
        if error.msg == "Extra data" and b"\r" in line.rstrip():
            todo = r"`tr '\r' '\n' < FILE > NEW` mends them"
            return DataError(f"expected an object a line, found lines that end in a carriage return alone; {todo}.")
        return DataError(f"expected JSON, found an error at position {error.pos + 1} of the line: {error.msg}.")
    except (ValueError, RecursionError) as error:  # an integer of thousands of digits; brackets nested thousands deep
        return DataError(f"expected JSON, found {error}.")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any] | Unreadable:
    """An object, of which every key stands there once: of several, Python would take the last."""
    found = dict(pairs)
    if len(found) == len(pairs):
        return found
    names = [name for name, _ in pairs]
    return Unreadable(f"an object with {ascii(next(name for name in names if names.count(name) > 1))} more than once")


class JsonLines(SingleFile):
    """One JSON object a line. Blank lines are passed over; row numbers are line numbers.

    What cannot be read from any place (a packed file, a pipe) is copied, unpacked, to a file that vanishes with the process: a packed one
    when rows are first asked for by number.
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

    def scan(self) -> Iterator[tuple[int, Raw]]:
        if self._once:
            yield from ((number, parse_line(line)) for number, _, line in _lines(self._seekable))
            return
        with damage(self._path), opened(self._path, self._codec) as file:
            for number, _, line in _lines(file):
                yield number, parse_line(line)

    def fetch(self, indices: Sequence[int], upcoming: Sequence[int] = ()) -> list[tuple[int, Raw]]:
        with damage(self._path):
            rows = {index: self._index.line(index) for index in sorted(set(indices))}
        return [(number, parse_line(line)) for number, line in map(rows.__getitem__, indices)]

    @cached_property
    def _seekable(self) -> BinaryIO:
        with damage(self._path):
            if self._codec is None and not self._once:
                return self._path.open("rb")
            unpacked = tempfile.TemporaryFile()
            with opened(self._path, self._codec) as file:
                shutil.copyfileobj(file, unpacked)
            unpacked.seek(0)
            return unpacked

    @cached_property
    def _index(self) -> LineIndex:
        file = self._seekable
        with damage(self._path):
            return LineIndex(file)


class LineIndex:
    """Where the lines of a file stand: one pass over its bytes, then a quarter of a byte of memory a line."""

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
        """(1-based line number, line) of row `index`."""
        mark, further = divmod(index, STRIDE)
        self._file.seek(self._offsets[mark])
        number, _, line = next(islice(_lines(self._file, self._numbers[mark], self._offsets[mark]), further, None))
        return number, line


def _lines(file: BinaryIO, first: int = 1, offset: int = 0) -> Iterator[tuple[int, int, bytes]]:
    """(line number, byte offset, line) of the lines that are not blank, from where `file` stands: line number `first`, at `offset`."""
    for number, line in enumerate(file, start=first):
        size = len(line)
        line = line.removeprefix(_BOM)  # files that were put one behind the other have one each
        if line and not line.isspace():
            yield number, offset, line
        offset += size


class JsonDocument(SingleFile):
    """Rows of a JSON document, which is loaded whole: a list of objects, the same under `data` or the name of a split, lists by group
    ({group: [rows]}; a row that has no `group` gets its own), one row, or objects one after another, however they are laid out.

    Args:
        split: the name under which the list stands, where there are several.
    Raises:
        DataError: it is not JSON, none of these, or holds several splits of which none is chosen.
    """

    def __init__(self, path: Path, codec: str | None = None, split: str | None = None):
        super().__init__(path)
        try:
            with damage(path), opened(path, codec) as file:
                values = list(_values(file.read().removeprefix(_BOM).decode()))
            self._rows = values if len(values) > 1 else _rows(values[0] if values else None, split)
        except DataError as error:
            raise DataError(error.problem, file=str(path)) from error
        except (ValueError, RecursionError) as error:
            raise DataError(f"expected JSON in UTF-8, found: {error}.", file=str(path)) from error

    def __len__(self) -> int:
        return len(self._rows)

    def scan(self) -> Iterator[tuple[int, Raw]]:
        for index, value in enumerate(self._rows):
            yield index + 1, as_row(value)

    def fetch(self, indices: Sequence[int], upcoming: Sequence[int] = ()) -> list[tuple[int, Raw]]:
        return [(index + 1, as_row(self._rows[index])) for index in indices]


def _values(text: str) -> Iterator[Any]:
    """JSON values one after another."""
    decoder, end = json.JSONDecoder(object_pairs_hook=_object), 0
    while (start := _BLANKS.match(text, end).end()) < len(text):
        value, end = decoder.raw_decode(text, start)
        yield value


def _rows(value: Any, split: str | None) -> list[Any]:
    if isinstance(value, list) and split is None:
        return value
    if isinstance(value, dict) and value:
        if split is not None:
            if not isinstance(value.get(split), list):
                raise DataError(f"there is no list under {split!r}; the document has {', '.join(map(str, list(value)[:12]))}.")
            return value[split]
        if isinstance(value.get("data"), list):
            return value["data"]
        splits = [name for name in value if name in SPLITS and isinstance(value[name], list)]
        if len(splits) > 1:
            raise DataError(f"holds {', '.join(splits)}: name one behind a colon, as in FILE:{splits[0]}.")
        if splits:
            return value[splits[0]]
        if all(_is_group(rows) for rows in value.values()):
            return [{"group": group, **row} for group, rows in value.items() for row in rows]
        return [value]
    raise DataError(f'expected a list of objects or {{"data": [...]}}, or one object a line, found {describe(value)}.')


def _is_group(value: Any) -> bool:
    """A list of rows; a list of messages is none."""
    objects = isinstance(value, list) and all(isinstance(row, dict) for row in value)
    return objects and not any(keys <= row.keys() for row in value for keys in _MESSAGE)
