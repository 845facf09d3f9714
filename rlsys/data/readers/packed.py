"""Packed files (gzip, zstd, bzip2, lz4, xz), told by their first bytes, not by their names."""

from __future__ import annotations

import io
import lzma
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa

_MAGIC = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd", b"BZh": "bz2", b"\x04\x22\x4d\x18": "lz4", b"\xfd7zXZ\x00": "xz"}
PACKED = (".gz", ".zst", ".bz2", ".lz4", ".xz")
"""How the names of packed files end."""


def codec_of(path: Path) -> str | None:
    """What a file is packed with; None: nothing."""
    with path.open("rb") as file:
        head = file.read(8)
    return next((codec for magic, codec in _MAGIC.items() if head.startswith(magic)), None)


def opened(path: Path, codec: str | None) -> BinaryIO:
    """The file's bytes, unpacked."""
    if codec is None:
        return path.open("rb")
    if codec == "xz":
        return lzma.open(path)
    return io.BufferedReader(pa.input_stream(str(path), compression=codec))


def bare_name(name: str) -> str:
    """A file's name in lower case, without the suffix of its packing."""
    name = name.lower()
    return next((name.removesuffix(suffix) for suffix in PACKED if name.endswith(suffix)), name)
