"""A JSONL file of results that is written row by row; an interrupted job continues after the last complete row.

Rows are written to NAME.part, which is renamed to NAME on completion. NAME.settings.json holds the settings that the rows depend on.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from rlsys.data.readers import DataError, strict_rows
from rlsys.documents.core import read_object
from rlsys.io.files import write_text_atomically


class ResumableRows:
    """An open, locked file of result rows, of which `done` were already written by an earlier job.

    Args:
        path: the completed file.
        settings: JSON object of all settings that the rows depend on.
        restart: discard existing rows.

    Raises:
        DataError: existing rows were written with different settings, or another process is writing the file.
    """

    def __init__(self, path: Path, settings: dict[str, Any], restart: bool = False):
        self.path, self.part, self.settings_path = path, path.with_name(f"{path.name}.part"), path.with_name(f"{path.name}.settings.json")
        if path.exists() and not path.is_file():
            raise DataError(f"{path}: is not a regular file; give the name of a file.")
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self.part.open("ab+")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.close()
            raise DataError(f"{self.part}: another process is writing it; wait for it, or choose another file.") from None
        if restart:
            path.unlink(missing_ok=True)
            self._file.truncate(0)
        try:
            self._require_same_settings(settings)
            self.complete = path.exists()
            self.done = _drop_incomplete_line(self._file)
        except DataError:
            self.close()
            raise
        write_text_atomically(self.settings_path, json.dumps(settings, indent=2) + "\n")

    def _require_same_settings(self, settings: dict[str, Any]) -> None:
        started = self.path.exists() or os.fstat(self._file.fileno()).st_size > 0
        saved = read_object(self.settings_path) if self.settings_path.exists() else None
        if started and saved != settings:
            old = saved or {}
            changed = sorted(name for name in {*old, *settings} if old.get(name) != settings.get(name))
            differences = "; ".join(f"{name}: {old.get(name)!r} before, {settings.get(name)!r} now" for name in changed)
            raise DataError(f"{self.path}: holds rows of other settings ({differences}). Choose another file, or start over with --again.")

    def __enter__(self) -> ResumableRows:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def write(self, row: dict[str, Any]) -> None:
        """Append a row; it has reached the file when this returns."""
        self._file.write((json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n").encode())
        self._file.flush()

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield all rows written so far, including those of earlier jobs."""
        yield from (row for _, row in strict_rows(self.path if self.complete else self.part, lines=True))

    def finish(self) -> None:
        """Rename the complete file to its final name."""
        os.replace(self.part, self.path)
        self.complete = True

    def close(self) -> None:
        """Release the lock, and remove the files if no row was written."""
        empty = not os.fstat(self._file.fileno()).st_size
        if empty or self.path.exists() and not self._has_part():
            self.part.unlink(missing_ok=True)
        if empty and not self.path.exists():
            self.settings_path.unlink(missing_ok=True)
        self._file.close()

    def _has_part(self) -> bool:
        return self.part.exists() and self.part.stat().st_size > 0


def _drop_incomplete_line(file: BinaryIO) -> int:
    """Truncate a last line without a line break, left by an interrupted write; return the number of complete lines."""
    file.seek(0)
    count = size = 0
    for line in file:
        if not line.endswith(b"\n"):
            break
        count, size = count + 1, size + len(line)
    file.truncate(size)
    return count
