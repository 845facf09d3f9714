"""RUN/progress.json: what a run is doing now, rewritten at every phase, for `rlsys top`."""

from __future__ import annotations

import json
import os
import socket
import time
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any

from rlsys.io.files import write_text_atomically

FILE = "progress.json"
LINES = 8
"""Lines of the screen that are kept."""


@dataclass
class Progress:
    """Contents of progress.json. Times are in seconds since the epoch."""

    started: float
    """When the process began, of a resumed run the last one."""
    phase: str = "start"
    doing: str = "starting"
    since: float = 0.0
    """When the phase began."""
    seconds: dict[str, float] = field(default_factory=dict)
    """By completed phase."""
    lines: list[str] = field(default_factory=list)
    """Last lines of the screen."""
    ended: float | None = None
    error: str | None = None
    """What ended the run early."""
    host: str = ""
    pid: int = 0


class ProgressFile:
    """Writes progress.json; safe to be used by several threads.

    Args:
        folder: the run folder; None writes nothing.
    """

    def __init__(self, folder: Path | None):
        self._path = folder / FILE if folder is not None else None
        now = time.time()
        self._state = Progress(started=now, since=now, host=socket.gethostname(), pid=os.getpid())
        self._lines: deque[str] = deque(maxlen=LINES)
        self._lock = Lock()

    def enter(self, phase: str, doing: str, seconds: Mapping[str, float]) -> None:
        """Record that a phase begins. `seconds`: of all phases so far."""
        rounded = {name: round(value, 2) for name, value in seconds.items()}
        self._write(phase=phase, doing=doing, since=time.time(), seconds=rounded)

    def say(self, line: str) -> None:
        """Record a line of the screen."""
        self._lines.append(line)
        self._write()

    def end(self, error: BaseException | None) -> None:
        """Record that the run has ended."""
        self._write(ended=time.time(), error=f"{type(error).__name__}: {error}"[:2000] if error else None)

    def _write(self, **changes: Any) -> None:
        with self._lock:
            self._state = Progress(**asdict(self._state) | changes | {"lines": list(self._lines)})
            # For onlookers only: a full disk is reported by what the run has to write, and must not hide an error that ended it.
            with suppress(OSError):
                if self._path is not None:
                    write_text_atomically(self._path, json.dumps(asdict(self._state), indent=1) + "\n")


def read_progress(folder: Path) -> Progress | None:
    """Return the contents of a run's progress.json; None for a run of an earlier version, or if it is not valid."""
    try:
        document = json.loads((folder / FILE).read_text(encoding="utf-8"))
        return Progress(**document)
    except (OSError, ValueError, TypeError):
        return None
