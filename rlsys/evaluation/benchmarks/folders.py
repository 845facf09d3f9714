"""Select the files of a folder that hold a benchmark's rows. Every skipped file is reported with the reason."""

from __future__ import annotations

import os
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

from rlsys.data.readers.sources import SUFFIXES

SkippedFiles = list[tuple[str, str]]
"""(file, reason) pairs, with paths relative to the folder."""


def files_of(folder: Path, pattern: str = "*", leave: str = "") -> tuple[list[Path], SkippedFiles]:
    """Return the files to read in `folder` and its subfolders, in a stable order, and the skipped files.

    Links to files and folders are followed. Hidden files (names starting with a dot, `__MACOSX`) are ignored and not reported.

    Args:
        pattern: for the names of the benchmark's own files, case-insensitive; if no name matches, all files are read.
        leave: the name of a file that is not part of the benchmark.
    """
    readable: list[Path] = []
    passed: SkippedFiles = []
    for file in sorted(_walk(folder)):
        name = file.name.lower()
        if not name.endswith(SUFFIXES):
            passed.append((str(file.relative_to(folder)), f"its name does not end in {', '.join(SUFFIXES)}"))
        elif name == leave:
            passed.append((str(file.relative_to(folder)), "no part of the benchmark"))
        else:
            readable.append(file)
    named = [file for file in readable if fnmatch(file.name.lower(), pattern)]
    if named:
        others = (file for file in readable if file not in set(named))
        passed += [(str(file.relative_to(folder)), f"the benchmark's own files are named {pattern}") for file in others]
    return named or readable, passed


def _walk(folder: Path) -> Iterator[Path]:
    """Yield every file that is not hidden, following links, visiting each folder once."""
    seen: set[str] = set()
    for here, folders, names in os.walk(folder, followlinks=True):
        if (real := os.path.realpath(here)) in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not _hidden(name))
        yield from (path for name in names if not _hidden(name) and (path := Path(here, name)).is_file())


def _hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"
