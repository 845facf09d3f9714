"""Opening whatever holds rows: its first bytes decide, and its name where they do not."""

from __future__ import annotations

import glob
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from rlsys.data.readers.arrow_files import ArrowFile, Parquet
from rlsys.data.readers.fields import DataError
from rlsys.data.readers.folders import HUB, Shards, folder_files, hub_files, pattern_files
from rlsys.data.readers.json_files import JsonDocument, JsonLines, parse_line
from rlsys.data.readers.packed import PACKED, bare_name, codec_of, opened
from rlsys.data.readers.raw import Source, damage
from rlsys.data.readers.tables import Csv

LINES = (".jsonl", ".ndjson", ".jsonlines")
KINDS = {
    **dict.fromkeys(LINES, "JSON Lines"), ".json": "JSON", ".csv": "CSV", ".tsv": "CSV", ".parquet": "Parquet",
    ".arrow": "Arrow", ".feather": "Arrow",
}  # fmt: skip
"""Kinds of files by the suffixes that they commonly have."""
SUFFIXES = tuple(suffix + packed for suffix in KINDS for packed in ("", *PACKED) if not packed or KINDS[suffix] not in ("Parquet", "Arrow"))
"""Of files of rows; others are read if their content says what they are."""
_BOM = b"\xef\xbb\xbf"
_PARQUET = (b"PAR1",)
_ARROW = (b"ARROW1", b"\xff\xff\xff\xff")
_FOREIGN = {
    b"PK\x03\x04": "a zip archive (or a workbook): unpack it, or save its rows as CSV",
    b"FEA1": "Feather version 1: write it anew as version 2",
    b"SQLite format 3": "an SQLite database: export its rows as CSV or JSON",
    b"%PDF": "a PDF document",
    b"\xff\xfe": "UTF-16: convert it to UTF-8",
    b"\xfe\xff": "UTF-16: convert it to UTF-8",
    b"version https://git-lfs": "a pointer of Git LFS, not the file itself: fetch it with `git lfs pull`",
}


def open_source(path: str | Path) -> Source:
    """The rows of `path`: a file of JSON Lines, JSON, CSV, Parquet or Arrow, each but the last two also packed; or several as one: a folder
    of such files, a pattern (*.parquet), what `Dataset.save_to_disk` wrote, a data set of the Hugging Face hub (owner/name).

    A split, where there are several, stands behind a colon: FOLDER:train, FILE.json:train, owner/name:train, owner/name:config:train.

    Raises:
        DataError: missing, unreadable, empty, damaged, not a file of rows; several splits of which none is chosen.
    """
    path = Path(path)
    try:
        if path.exists():
            return _open_existing(path, None)
        pattern, (base, _, split) = str(path), str(path).rpartition(":")
        if glob.has_magic(pattern):
            return _together(*pattern_files(pattern), path)
        if base and Path(base).exists():
            return _open_existing(Path(base), split)
        address = HUB.fullmatch(pattern)
        if address and not pattern.lower().endswith(SUFFIXES) and not path.parent.exists():
            return _together(hub_files(address), [], path)
        raise FileNotFoundError
    except FileNotFoundError as error:
        raise DataError("there is no such file.", file=str(path)) from error
    except OSError as error:
        raise DataError(f"cannot be read ({error.strerror or error}).", file=str(path)) from error


def first_rows(path: str | Path, count: int = 20) -> list[dict[str, Any]]:
    """The first rows that can be read, of the first `count`."""
    return [raw for _, raw in islice(open_source(path).scan(), count) if isinstance(raw, dict)]


def strict_rows(path: Path, lines: bool = False) -> Iterator[tuple[int, dict[str, Any]]]:
    """(row number, in JSONL the line; row) of each row of a file that must be faultless: how every smaller file is read.

    Args:
        lines: it is JSONL that the project wrote, whatever its name, and may be empty.
    Raises:
        DataError: as `open_source`, or a row that cannot be read. It names file and row.
    """
    empty = not lines
    for number, raw in (JsonLines(path) if lines else open_source(path)).scan():
        if isinstance(raw, DataError):
            raise raw.at(str(path), number)
        yield number, raw
        empty = False
    if empty:
        raise DataError("the file holds no rows.", file=str(path))


def _open_existing(path: Path, split: str | None) -> Source:
    if path.is_dir():
        return _together(*folder_files(path, split, _kind_of), path)
    source = _open_file(path, split)
    if split is not None and not isinstance(source, JsonDocument):
        raise DataError(f"expected a file of several splits, of which {split!r} is one, found a file of rows.", file=str(path))
    return source


def _together(files: list[Path], passed_over: list[Path], path: Path) -> Source:
    if not files:
        raise DataError("there is no such file.", file=str(path))
    return Shards([_open_file(file) for file in files], passed_over)


def _kind_of(path: Path) -> str | None:
    return KINDS.get(Path(bare_name(path.name)).suffix)


def _open_file(path: Path, split: str | None = None) -> Source:
    if not path.is_file():
        path.stat()
        return JsonLines(path)  # a pipe
    if path.stat().st_size == 0:
        raise DataError("the file is empty.", file=str(path))
    codec, name = codec_of(path), bare_name(path.name)
    with damage(path), opened(path, codec) as file:
        head = file.peek(32)[:32]
        lines = (line for line in file if line.strip())
        first, more = next(lines, b"").removeprefix(_BOM).strip(), next(lines, None) is not None
    foreign = next((words for magic, words in _FOREIGN.items() if head.startswith(magic)), None)
    if foreign:
        raise DataError(f"the file is {foreign}.", file=str(path))
    for magic, suffixes, kind in ((_PARQUET, (".parquet",), Parquet), (_ARROW, (".arrow", ".feather"), ArrowFile)):
        if head.startswith(magic) or name.endswith(suffixes):
            if codec:
                raise DataError("the file is packed, and can only be read from its beginning: unpack it.", file=str(path))
            return kind(path)
    if name.endswith((".csv", ".tsv")):
        return Csv(path, codec)
    if name.endswith(LINES):
        return _document(path, codec, split) if _is_document(first) else JsonLines(path, codec)
    if more and first.startswith(b"{") and isinstance(parse_line(first), dict):
        return JsonLines(path, codec)
    if name.endswith(".json") or first.startswith((b"{", b"[")):
        return JsonDocument(path, codec, split)
    raise DataError(f"neither its name nor its content is that of a file of rows: expected {', '.join(KINDS)}.", file=str(path))


def _document(path: Path, codec: str | None, split: str | None) -> Source:
    """A document under a name of lines; lines of which the first is damaged, if it is none."""
    try:
        return JsonDocument(path, codec, split)
    except DataError:
        return JsonLines(path, codec)


def _is_document(first: bytes) -> bool:
    """Whether a file that begins with this line is laid out over several, or a list."""
    return first in (b"{", b"[") or first.startswith(b"[{")
