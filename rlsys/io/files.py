"""Atomic file writes: readers see the old file or the new one, never a part."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_write(path: Path, *, concurrent: bool = False) -> Iterator[Path]:
    """Yield a temporary path beside `path`; it replaces `path` if the block succeeds and is removed otherwise.

    Args:
        path: the target, in an existing folder.
        concurrent: several processes may write `path` at once; each then gets a temporary file of its own.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial" if concurrent else f".{path.name}.partial")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text_atomically(path: Path, text: str) -> None:
    """Write `text` to `path` as UTF-8, in full or not at all."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
