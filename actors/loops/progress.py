"""Progress of a run: screen output, phase timers, and metrics for the Ray dashboard."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.text import Text

from actors.cluster.metrics import RunMetrics
from rlsys.config.schema import Recovery
from rlsys.io.progress import ProgressFile
from rlsys.system.printable import printable
from rlsys.system.stopping import StopSignals
from rlsys.system.terminal import as_text, print_text
from rlsys.system.timing import PhaseTimer


class ProgressReporter:
    """Shows the current phase, accumulates the seconds of each, and exports metrics to Ray.

    Args:
        run: name of the run.
        folder: the run folder, whose progress.json says what the run is doing; None writes none.
        grace_s: seconds that a step has to end after SIGTERM.
    """

    def __init__(self, console: Console, run: str, folder: Path | None = None, grace_s: float = Recovery().grace_s):
        self.console = console
        self.run = run
        self._file = ProgressFile(folder)
        self._clock = PhaseTimer()
        self.seconds = self._clock.seconds
        self._status = console.status(as_text("starting …"))
        self.metrics = RunMetrics(run)
        self._started = time.monotonic()
        self.stop = StopSignals(grace_s, self.warn)

    def __enter__(self) -> ProgressReporter:
        self._status.start()
        self.stop.__enter__()
        self.metrics.set("last_progress", time.time())
        self.metrics.set("restarts", self._file.restarts)
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self.stop.__exit__(None, None, None)
        self._status.stop()
        self._file.end(error)
        self.metrics.close()

    @contextmanager
    def phase(self, name: str, doing: str | None = None) -> Iterator[None]:
        """Time a phase and show it."""
        before = self.seconds[name]
        self._status.update(as_text(f"{doing or name} …", "bold"))
        self._file.enter(name, doing or name, self.seconds)
        try:
            with self._clock.phase(name):
                yield
        finally:
            self.metrics.set(f"seconds/{name.replace(' ', '_')}", self.seconds[name] - before)
            self.metrics.set("last_progress", time.time())

    def restart(self, reason: str) -> None:
        """Warn that one actor or all of them start anew, and count it."""
        self.warn(reason)
        self._file.restart()
        self.metrics.set("restarts", self._file.restarts)

    def say(self, message: str, style: str = "") -> None:
        """Print one line with the time since the start."""
        minutes, seconds = divmod(int(time.monotonic() - self._started), 60)
        print_text(self.console, Text.assemble((f"{minutes:3d}:{seconds:02d}", "dim"), " ", Text(printable(message), style)))
        self._file.say(f"{minutes}:{seconds:02d} {message}")

    def warn(self, message: str) -> None:
        """Print a highlighted line."""
        self.say(message, "yellow")


def eta(done: int, total: int, seconds_each: float) -> str:
    """Estimate the time of the remaining steps, as m:ss."""
    minutes, seconds = divmod(int((total - done) * seconds_each), 60)
    return f"{minutes}:{seconds:02d}"
