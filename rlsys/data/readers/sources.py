"""Opening data sources: the first bytes of a file decide its kind, then its name."""

from __future__ import annotations

import glob
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from rlsys.data.readers.arrow_files import ArrowFile, Parquet
from rlsys.data.readers.compression import COMPRESSED_SUFFIXES, detect_codec, open_decompressed, without_codec_suffix
from rlsys.data.readers.fields import DataError
from rlsys.data.readers.folders import HUB, Shards, folder_files, hub_files, pattern_files
from rlsys.data.readers.json_files import JsonDocument, JsonLines, parse_line
from rlsys.data.readers.raw import Source, reading_errors
from rlsys.data.readers.tables import Csv

LINES = (".jsonl", ".ndjson", ".jsonlines")
KINDS = {
    **dict.fromkeys(LINES, "JSON Lines"), ".json": "JSON", ".csv": "CSV", ".tsv": "CSV", ".parquet": "Parquet",
    ".arrow": "Arrow", ".feather": "Arrow",
}  # fmt: skip
"""Kind of file by its usual suffix."""
SUFFIXES = tuple(
    suffix + codec for suffix in KINDS for codec in ("", *COMPRESSED_SUFFIXES) if not codec or KINDS[suffix] not in ("Parquet", "Arrow")
)
"""Suffixes of data files; a file with another suffix is read if its content is recognized."""
_BOM = b"\xef\xbb\xbf"
_PARQUET = (b"PAR1",)
_ARROW = (b"ARROW1", b"\xff\xff\xff\xff")
_FOREIGN = {
    b"PK\x03\x04": "a zip archive (or a workbook): extract it, or save its rows as CSV",
    b"FEA1": "Feather version 1: rewrite it as version 2",
    b"SQLite format 3": "an SQLite database: export its rows as CSV or JSON",
    b"%PDF": "a PDF document",
    b"\xff\xfe": "UTF-16: convert it to UTF-8",
    b"\xfe\xff": "UTF-16: convert it to UTF-8",
    b"version https://git-lfs": "a Git LFS pointer, not the file itself: run `git lfs pull`",
}


def open_source(path: str | Path) -> Source:
    """Open the rows of `path`.

    One file: JSON Lines, JSON or CSV (all three also compressed), Parquet or Arrow. Several files read as one: a folder of such files, a
    glob pattern (*.parquet), the output of `Dataset.save_to_disk`, or a dataset on the Hugging Face Hub (owner/name).

    A split is selected after a colon: FOLDER:train, FILE.json:train, owner/name:train, owner/name:config:train.

    Raises:
        DataError: the path is missing, unreadable, empty, damaged or not a data file; or it has several splits and none is selected.
    """
    path = Path(path)
    try:
        if path.exists():
            return _open_existing(path, None)
        pattern, (base, _, split) = str(path), str(path).rpartition(":")
        if glob.has_magic(pattern):
            return _combine(*pattern_files(pattern), path)
        if base and Path(base).exists():
            return _open_existing(Path(base), split)
        address = HUB.fullmatch(pattern)
        if address and not pattern.lower().endswith(SUFFIXES) and not path.parent.exists():
            return _combine(hub_files(address), [], path)
        raise FileNotFoundError
    except FileNotFoundError as error:
        raise DataError("there is no such file.", file=str(path)) from error
    except OSError as error:
        raise DataError(f"cannot be read ({error.strerror or error}).", file=str(path)) from error


def first_rows(path: str | Path, count: int = 20) -> list[dict[str, Any]]:
    """Return the readable rows among the first `count`."""
    return [raw for _, raw in islice(open_source(path).scan(), count) if isinstance(raw, dict)]


def strict_rows(path: Path, lines: bool = False) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (row number, in JSONL the line number; row) for each row of a file in which every row must be readable.

    Args:
        lines: the file is JSONL written by the project, whatever its name, and may be empty.

    Raises:
        DataError: as `open_source`, or a row cannot be read; it names file and row.
    """
    empty = not lines
    for number, raw in (JsonLines(path) if lines else open_source(path)).scan():
        if isinstance(raw, DataError):
            raise raw.at(str(path), number)
        yield number, raw
        empty = False
    if empty:
        raise DataError("the file has no rows.", file=str(path))


def _open_existing(path: Path, split: str | None) -> Source:
    if path.is_dir():
        return _combine(*folder_files(path, split, _kind_of), path)
    source = _open_file(path, split)
    if split is not None and not isinstance(source, JsonDocument):
        raise DataError(f"expected a file with several splits, {split!r} among them, found a file of rows.", file=str(path))
    return source


def _combine(files: list[Path], skipped: list[Path], path: Path) -> Source:
    if not files:
        raise DataError("there is no such file.", file=str(path))
    return Shards([_open_file(file) for file in files], skipped)


def _kind_of(path: Path) -> str | None:
    return KINDS.get(Path(without_codec_suffix(path.name)).suffix)


def _open_file(path: Path, split: str | None = None) -> Source:
    if not path.is_file():
        path.stat()
        return JsonLines(path)  # a pipe
    if path.stat().st_size == 0:
        raise DataError("the file is empty.", file=str(path))
    codec, name = detect_codec(path), without_codec_suffix(path.name)
    with reading_errors(path), open_decompressed(path, codec) as file:
        head = file.peek(32)[:32]
        lines = (line for line in file if line.strip())
        first, more = next(lines, b"").removeprefix(_BOM).strip(), next(lines, None) is not None
    foreign = next((words for magic, words in _FOREIGN.items() if head.startswith(magic)), None)
    if foreign:
        raise DataError(f"the file is {foreign}.", file=str(path))
    kinds: tuple[tuple[tuple[bytes, ...], tuple[str, ...], type[Parquet] | type[ArrowFile]], ...] = (
        (_PARQUET, (".parquet",), Parquet),
        (_ARROW, (".arrow", ".feather"), ArrowFile),
    )
    for magic, suffixes, kind in kinds:
        if head.startswith(magic) or name.endswith(suffixes):
            if codec:
                raise DataError("the file is compressed and needs random access: decompress it.", file=str(path))
            return kind(path)
    if name.endswith((".csv", ".tsv")):
        return Csv(path, codec)
    if name.endswith(LINES):
        return _document(path, codec, split) if _is_document(first) else JsonLines(path, codec)
    if more and first.startswith(b"{") and isinstance(parse_line(first), dict):
        return JsonLines(path, codec)
    if name.endswith(".json") or first.startswith((b"{", b"[")):
        return JsonDocument(path, codec, split)
    raise DataError(f"neither the name nor the content is that of a data file: expected {', '.join(KINDS)}.", file=str(path))


def _document(path: Path, codec: str | None, split: str | None) -> Source:
    """Open a JSON document named like JSON Lines; if it is not one, its first line is damaged."""
    try:
        return JsonDocument(path, codec, split)
    except DataError:
        return JsonLines(path, codec)


def _is_document(first: bytes) -> bool:
    """Whether a file that begins with this line is a list, or an object laid out over several lines."""
    return first in (b"{", b"[") or first.startswith(b"[{")
