"""Metrics of a run: one JSON line per step in metrics.jsonl, and the same numbers wherever run.trackers says."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, NonNegativeInt, model_validator

from rlsys.config.schema import Config
from rlsys.data.readers.json_files import JsonLines
from rlsys.io.files import naming, write_text_atomically
from rlsys.monitoring.definitions import MetricValue, of_a_step
from rlsys.monitoring.trackers import TrackedRun, open_trackers


class MetricsRow(BaseModel):
    """A line of metrics.jsonl: the step, and its metrics by the names of `rlsys.monitoring.definitions`."""

    model_config = ConfigDict(extra="allow", frozen=True)
    __pydantic_extra__: dict[str, MetricValue]
    step: NonNegativeInt

    @model_validator(mode="after")
    def _defined(self) -> MetricsRow:
        for name in self.metrics:
            if not of_a_step(name):
                raise ValueError(f"{name}: no figure of a step has this name; define it in rlsys/monitoring/definitions.py.")
        return self

    @property
    def metrics(self) -> dict[str, MetricValue]:
        return self.__pydantic_extra__


class MetricsLog:
    """Append step metrics. On resume, metrics of steps that will be repeated are dropped first.

    Args:
        folder: the run folder, which receives metrics.jsonl and what the trackers write.
        resume_step: last step whose metrics are kept (0 for a new run).
        config: of the run; names the trackers.

    Raises:
        ConfigError: the library of a tracker is not installed.
    """

    def __init__(self, folder: Path, resume_step: int = 0, config: Config | None = None):
        config = config or Config()
        self.path = folder / "metrics.jsonl"
        kept = [row for row in self.read(folder) if row["step"] <= resume_step]
        write_text_atomically(self.path, "".join(json.dumps(row) + "\n" for row in kept))
        self._file = self.path.open("a")
        run = TrackedRun(folder, config.model_dump(mode="json"), resume_step)
        self._trackers = open_trackers(config.run.trackers, run)

    def write(self, step: int, metrics: Mapping[str, MetricValue]) -> None:
        """Append one line, and pass its numbers to the trackers. Non-finite values (of a skipped step) become null.

        Raises:
            pydantic.ValidationError: a metric is not defined.
        """
        finite = {name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in metrics.items()}
        row = MetricsRow.model_validate({"step": step, **finite})
        with naming(self.path):
            self._file.write(json.dumps(row.model_dump(), allow_nan=False) + "\n")
            self._file.flush()
        numbers = {name: value for name, value in row.metrics.items() if isinstance(value, int | float)}
        with naming(self.path.parent):
            for tracker in self._trackers:
                tracker.write(step, numbers)

    def close(self) -> None:
        """Close the file and all trackers."""
        with naming(self.path):
            self._file.close()
        with naming(self.path.parent):
            for tracker in self._trackers:
                tracker.close()

    @staticmethod
    def read(folder: Path) -> list[dict[str, Any]]:
        """Read all rows of a run's metrics.jsonl, up to the first that is no step's, as an interrupted write may leave."""
        path = folder / "metrics.jsonl"
        rows = JsonLines(path).scan() if path.exists() else iter(())
        complete: list[dict[str, Any]] = []
        for _, row in rows:
            if not isinstance(row, dict) or type(row.get("step")) is not int:
                break
            complete.append(row)
        return complete
