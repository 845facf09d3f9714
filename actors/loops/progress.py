"""Progress of a run: screen output, phase timers, and gauges for the Ray dashboard."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from ray.util.metrics import Gauge
from rich.console import Console
from rich.text import Text

from rlsys.io.metrics import MetricValue
from rlsys.io.progress import ProgressFile
from rlsys.monitoring.definitions import find
from rlsys.system.printable import printable
from rlsys.system.terminal import as_text, print_text
from rlsys.system.timing import PhaseTimer


class ProgressReporter:
    """Shows the current phase, accumulates the seconds of each, and exports figures to Ray's metrics.

    Args:
        run: name of the run.
        folder: the run folder, whose progress.json says what the run is doing; None writes none.
    """

    def __init__(self, console: Console, run: str, folder: Path | None = None):
        self.console = console
        self.run = run
        self._file = ProgressFile(folder)
        self._clock = PhaseTimer()
        self.seconds = self._clock.seconds
        self._status = console.status(as_text("starting …"))
        self._gauges: dict[str, Gauge] = {}
        self._started = time.monotonic()

    def __enter__(self) -> ProgressReporter:
        self._status.start()
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._status.stop()
        self._file.end(error)

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
            self.gauges({f"seconds/{name.replace(' ', '_')}": self.seconds[name] - before})

    def gauges(self, metrics: Mapping[str, MetricValue]) -> None:
        """Set the gauge of every metric that is a finite number (`rlsys.monitoring.definitions`)."""
        for name, value in metrics.items():
            if isinstance(value, int | float) and math.isfinite(value):
                metric, label = find(name)
                if metric.name not in self._gauges:
                    tags = ("run", *label)
                    self._gauges[metric.name] = Gauge(metric.dashboard_name, f"{metric.meaning} {metric.unit}".strip(), tag_keys=tags)
                self._gauges[metric.name].set(value, {"run": self.run, **label})

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
