"""A JSONL file of results that is written row by row and survives a kill: whoever starts the same work again goes on after the last row.

Until it is complete the file is called NAME.part, and beside it lies NAME.settings.json with what the rows depend on.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rlsys.data.readers import DataError, strict_rows
from rlsys.io.files import write_text_atomically


class ResumableRows:
    """Results in the order of the work; `done` of them are there from an earlier start.

    Args:
        path: the finished file.
        settings: JSON object of what the rows depend on.
        restart: start from nothing, whatever is there.

    Raises:
        DataError: rows of other settings are there, or another process writes them.
    """

    def __init__(self, path: Path, settings: dict[str, Any], restart: bool = False):
        self.path, self.part, self.settings_path = path, path.with_name(f"{path.name}.part"), path.with_name(f"{path.name}.settings.json")
        if path.exists() and not path.is_file():
            raise DataError(f"{path}: is no file; give the name of one.")
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self.part.open("ab+")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.close()
            raise DataError(f"{self.part}: another process is writing it; wait for it, or name another file.") from None
        if restart:
            path.unlink(missing_ok=True)
            self._file.truncate(0)
        try:
            self._require_same_settings(settings)
            self.complete = path.exists()
            self.done = _count_whole_lines(self._file)
        except DataError:
            self.close()
            raise
        write_text_atomically(self.settings_path, json.dumps(settings, indent=2) + "\n")

    def _require_same_settings(self, settings: dict[str, Any]) -> None:
        started = self.path.exists() or os.fstat(self._file.fileno()).st_size > 0
        before = json.loads(self.settings_path.read_text()) if self.settings_path.exists() else None
        if started and before != settings:
            changed = sorted(name for name in {*(before or {}), *settings} if (before or {}).get(name) != settings.get(name))
            told = "; ".join(f"{name}: {(before or {}).get(name)!r} there, {settings.get(name)!r} now" for name in changed)
            raise DataError(f"{self.path}: holds rows of other settings ({told}). Name another file, or begin anew with --again.")

    def __enter__(self) -> ResumableRows:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def write(self, row: dict[str, Any]) -> None:
        """Add a row; it is in the file when this returns."""
        self._file.write((json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n").encode())
        self._file.flush()

    def rows(self) -> Iterator[dict[str, Any]]:
        """All rows so far, from the first."""
        yield from (row for _, row in strict_rows(self.path if self.complete else self.part, lines=True))

    def finish(self) -> None:
        """All rows are there: give the file its name."""
        os.replace(self.part, self.path)
        self.complete = True

    def close(self) -> None:
        """Let others write. Nothing is left behind where nothing was written."""
        empty = not os.fstat(self._file.fileno()).st_size
        if empty or self.path.exists() and not self._is_part():
            self.part.unlink(missing_ok=True)
        if empty and not self.path.exists():
            self.settings_path.unlink(missing_ok=True)
        self._file.close()

    def _is_part(self) -> bool:
        return self.part.exists() and self.part.stat().st_size > 0


def _count_whole_lines(file: Any) -> int:
    """Lines that end; what a kill left of another is cut off."""
    file.seek(0)
    count = whole = 0
    for line in file:
        if not line.endswith(b"\n"):
            break
        count, whole = count + 1, whole + len(line)
    file.truncate(whole)
    return count
