"""Checksums of a folder's files, by which a truncated or altered checkpoint is recognised."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

THREADS = 8
"""Files hashed at a time; hashing releases Python's lock."""


def checksums(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of every file below `folder`, by path relative to it.

    Raises:
        OSError: a file cannot be read.
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    with ThreadPoolExecutor(THREADS) as pool:
        return {str(path.relative_to(folder)): digest for path, digest in zip(files, pool.map(_sha256, files))}


def damage(folder: Path, expected: Mapping[str, str]) -> str | None:
    """Describe the first file below `folder` that is missing or has another content than `expected`; None if all are intact."""
    missing = [name for name in expected if not (folder / name).is_file()]
    if missing:
        return f"{missing[0]} is missing"
    with ThreadPoolExecutor(THREADS) as pool:
        digests = pool.map(lambda name: _sha256(folder / name), expected)
        changed = [name for name, digest in zip(expected, digests) if digest != expected[name]]
    return f"{changed[0]} has changed or was cut off ({(folder / changed[0]).stat().st_size:,} bytes)" if changed else None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
