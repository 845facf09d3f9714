"""Which files of a folder hold a benchmark's rows. What does not is named, with the reason, never left out in silence."""

from __future__ import annotations

import os
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

from rlsys.data.readers.sources import SUFFIXES

SkippedFiles = list[tuple[str, str]]
"""(file, why), relative to the folder."""


def files_of(folder: Path, pattern: str = "*", leave: str = "") -> tuple[list[Path], SkippedFiles]:
    """The files to read in `folder` and the folders below, in a stable order, and the others.

    Links to files and to folders are followed. What is hidden (a name that begins with a dot, `__MACOSX`) is no part of a data set and is
    not told of.

    Args:
        pattern: of the names of the benchmark's own files (upper and lower case alike); where no file has such a name, all are read.
        leave: the name of a file that is no part of the benchmark.
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
    """Every file that is not hidden, through links, each folder once."""
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
