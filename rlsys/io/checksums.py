"""Checksums of files, by which a truncated or altered checkpoint, other data and another model are recognised."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

THREADS = 8
"""Files hashed at a time; hashing releases Python's lock."""
BLOCKS, BLOCK_BYTES = 64, 2**20


def fingerprint(path: Path, blocks: int = BLOCKS, block_bytes: int = BLOCK_BYTES) -> str:
    """Return a digest of a file's size and content, whatever its name, place and times.

    A file larger than `blocks` blocks of `block_bytes` (2 or more of them) is read in as many, from its beginning to its end, at equal
    distances.

    Raises:
        OSError: it cannot be read.
    """
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        if size <= blocks * block_bytes:
            digest.update(file.read())
            return f"sha256:{digest.hexdigest()}"
        for block in range(blocks):
            file.seek((size - block_bytes) * block // (blocks - 1))
            digest.update(file.read(block_bytes))
    return f"sha256 of {blocks} blocks:{digest.hexdigest()}"


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
