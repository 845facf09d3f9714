"""Compressed files (gzip, zstd, bzip2, lz4, xz), recognized by their first bytes, not by their names."""

from __future__ import annotations

import io
import lzma
from pathlib import Path

import pyarrow as pa

_MAGIC = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd", b"BZh": "bz2", b"\x04\x22\x4d\x18": "lz4", b"\xfd7zXZ\x00": "xz"}
COMPRESSED_SUFFIXES = (".gz", ".zst", ".bz2", ".lz4", ".xz")


def detect_codec(path: Path) -> str | None:
    """Return the codec that a file is compressed with, or None."""
    with path.open("rb") as file:
        head = file.read(8)
    return next((codec for magic, codec in _MAGIC.items() if head.startswith(magic)), None)


def open_decompressed(path: Path, codec: str | None) -> io.BufferedReader | lzma.LZMAFile:
    """Open a file for reading its decompressed bytes."""
    if codec is None:
        return path.open("rb")
    if codec == "xz":
        return lzma.open(path)
    return io.BufferedReader(pa.input_stream(str(path), compression=codec))


def without_codec_suffix(name: str) -> str:
    """Return a file name in lower case, without the suffix of its codec."""
    name = name.lower()
    return next((name.removesuffix(suffix) for suffix in COMPRESSED_SUFFIXES if name.endswith(suffix)), name)
