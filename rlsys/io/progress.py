"""RUN/progress.json, rewritten at every phase, for `rlsys top`."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from threading import RLock
from typing import Any

from rlsys.data.readers import DataError
from rlsys.documents.core import read_document, write_document
from rlsys.documents.progress import Progress

LINES = 8
"""Lines of the screen that are kept."""


class ProgressFile:
    """Writes progress.json; safe to be used by several threads.

    Args:
        folder: the run folder; None writes nothing.
    """

    def __init__(self, folder: Path | None):
        self._path = folder / Progress.FILE if folder is not None else None
        now = time.time()
        self._state = Progress(started=now, since=now, restarts=_starts(folder), host=socket.gethostname(), pid=os.getpid())
        self._lock = RLock()

    @property
    def restarts(self) -> int:
        """Return how often the run was started again."""
        return self._state.restarts

    def enter(self, phase: str, doing: str, seconds: Mapping[str, float]) -> None:
        """Record that a phase begins. `seconds`: of all phases so far."""
        rounded = {name: round(value, 2) for name, value in seconds.items()}
        self._write(phase=phase, doing=doing, since=time.time(), seconds=rounded)

    def restart(self) -> None:
        """Count a restart of the run's actors."""
        self._write(restarts=self.restarts + 1)

    def say(self, line: str) -> None:
        """Record a line of the screen."""
        with self._lock:
            self._write(lines=[*self._state.lines, line][-LINES:])

    def end(self, error: BaseException | None) -> None:
        """Record that the run has ended."""
        self._write(ended=time.time(), error=f"{type(error).__name__}: {error}"[:2000] if error else None)

    def _write(self, **changes: Any) -> None:
        with self._lock:
            self._state = self._state.model_copy(update=changes)
            # For onlookers only: a full disk is reported by what the run has to write, and must not hide an error that ended it.
            with suppress(OSError):
                if self._path is not None:
                    write_document(self._path, self._state)


def _starts(folder: Path | None) -> int:
    """Return how often the run in `folder` has been started so far."""
    try:
        before = read_progress(folder) if folder is not None else None
    except DataError:  # damaged, so there was a start
        return 1
    return 0 if before is None else before.restarts + 1


def read_progress(folder: Path) -> Progress | None:
    """Return the contents of a run's progress.json; None for a run of an earlier version.

    Raises:
        DataError: the file does not hold such a document.
    """
    path = folder / Progress.FILE
    return read_document(path, Progress) if path.exists() else None
