"""Atomic file writes: readers see the old file or the new one, never a part. And values as JSON can hold them."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def atomic_write(path: Path, *, concurrent: bool = False) -> Iterator[Path]:
    """Yield a temporary path beside `path`; it replaces `path` if the block succeeds and is removed otherwise.

    Args:
        path: the target, in an existing folder.
        concurrent: several processes may write `path` at once; each then gets a temporary file of its own.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial" if concurrent else f".{path.name}.partial")
    with naming(path):
        try:
            yield temporary
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Name `path` in an OSError that names no file: those of a write, as on a full disk, know only a descriptor."""
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, os.strerror(error.errno), str(path)) from error


def write_text_atomically(path: Path, text: str) -> None:
    """Write `text` to `path` as UTF-8, in full or not at all."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def apply_umask(folder: Path) -> None:
    """Give the files in `folder` the permissions of ordinary new files; safetensors creates its own readable by their owner alone."""
    mask = os.umask(0)
    os.umask(mask)
    for path in folder.iterdir():
        if path.is_file():
            path.chmod(0o666 & ~mask)


@contextmanager
def atomic_output(path: Path) -> Iterator[Path]:
    """As `atomic_write` for a path given by a user: creates the folder, follows symbolic links, writes to devices and pipes directly.

    Raises:
        ValueError: `path` is a folder.
    """
    if path.is_dir():
        raise ValueError(f"{path}: is a folder; give the name of a file.")
    if path.exists() and not path.is_file():
        yield path
        return
    path = Path(os.path.realpath(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path, concurrent=True) as temporary:
        yield temporary


def finite_json(value: Any) -> Any:
    """Replace NaN and infinities in `value` by None, as JSON has neither."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: finite_json(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite_json(inner) for inner in value]
    return value
