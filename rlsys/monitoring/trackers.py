"""Where a run's metrics go: metrics.jsonl always, and what run.trackers names.

Everything is written into the run folder; the environment variables of each library (WANDB_MODE, MLFLOW_TRACKING_URI, TRACKIO_SPACE_ID)
send it to a server instead. A resumed run continues its own. Steps that are repeated after a kill are replaced in metrics.jsonl and
TensorBoard; the others hold both.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from rlsys.config.schema import ConfigError
from rlsys.documents.core import read_object
from rlsys.io.files import write_text_atomically

EXTRA = "rlsys[trackers]"
PROJECT = "rlsys"
"""Project of wandb and trackio, and experiment of MLflow."""


class Tracker(Protocol):
    """Receives the metrics of each step."""

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        """Log the finite metrics of a step."""

    def close(self) -> None:
        """Write everything that is pending."""


@dataclass(frozen=True)
class TrackedRun:
    """What a tracker needs to know of a run."""

    folder: Path
    settings: dict[str, Any] = field(default_factory=dict)
    """The run's config."""
    resume_step: int = 0
    """Last step that is kept; 0 for a new run."""

    @property
    def name(self) -> str:
        return self.folder.name

    def identifier(self, tracker: str, create: Callable[[], str]) -> str:
        """Return the tracker's own id of this run, created at its first start."""
        path = self.folder / "trackers.json"
        known = read_object(path) if path.exists() else {}
        if not isinstance(known.get(tracker), str):
            known[tracker] = create()
            write_text_atomically(path, json.dumps(known, indent=2) + "\n")
        return str(known[tracker])


class TensorBoard:
    """Event files in RUN/tensorboard."""

    def __init__(self, run: TrackedRun):
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(run.folder / "tensorboard"), purge_step=run.resume_step + 1)

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class Wandb:
    """Weights & Biases, offline in RUN/wandb (`wandb sync` uploads it) unless WANDB_MODE says otherwise."""

    def __init__(self, run: TrackedRun):
        import wandb

        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=run.name,
            id=run.identifier("wandb", lambda: uuid.uuid4().hex),
            resume="allow",
            dir=str(run.folder),
            config=run.settings,
            mode=os.environ.get("WANDB_MODE", "offline"),
            settings=wandb.Settings(silent=True, console="off"),
        )

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        self._run.log(dict(numbers), step=step)

    def close(self) -> None:
        import wandb

        self._run.finish()
        wandb.teardown()  # waits for the process that writes the file


class Mlflow:
    """MLflow, in the database RUN/mlflow.db (`mlflow ui --backend-store-uri sqlite:///RUN/mlflow.db`) or at MLFLOW_TRACKING_URI."""

    def __init__(self, run: TrackedRun):
        from mlflow import MlflowClient
        from mlflow.entities import Param

        self._client = MlflowClient(os.environ.get("MLFLOW_TRACKING_URI", f"sqlite:///{run.folder / 'mlflow.db'}"))

        def create() -> str:
            experiment = self._client.get_experiment_by_name(PROJECT)
            place = experiment.experiment_id if experiment else self._client.create_experiment(PROJECT)
            created: str = self._client.create_run(place, run_name=run.name).info.run_id
            self._client.log_batch(created, params=[Param(key, str(value)) for key, value in flat(run.settings)])
            return created

        self._id = run.identifier("mlflow", create)

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self._client.log_batch(self._id, [Metric(_mlflow_name(name), value, now, step) for name, value in numbers.items()])

    def close(self) -> None:
        self._client.set_terminated(self._id)


def _mlflow_name(name: str) -> str:
    """Replace characters that MLflow refuses."""
    return re.sub(r"[^\w./ :-]", "_", name)


def flat(tree: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Return the (dotted key, value) of nested settings."""
    pairs: list[tuple[str, Any]] = []
    for key, value in tree.items():
        pairs += flat(value, f"{prefix}{key}.") if isinstance(value, dict) and value else [(f"{prefix}{key}", value)]
    return pairs


class Trackio:
    """trackio, in RUN/trackio (`TRACKIO_DIR=RUN/trackio trackio show`) or in the Space TRACKIO_SPACE_ID."""

    def __init__(self, run: TrackedRun):
        os.environ.setdefault("TRACKIO_DIR", str(run.folder / "trackio"))  # read at import
        import trackio

        self._run = trackio.init(
            project=os.environ.get("TRACKIO_PROJECT", PROJECT), name=run.name, config=run.settings, resume="allow", embed=False,
            auto_log_gpu=False, auto_log_cpu=False,
        )  # fmt: skip

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        self._run.log(dict(numbers), step=step)

    def close(self) -> None:
        self._run.finish()


TRACKERS: dict[str, Callable[[TrackedRun], Tracker]] = {"tensorboard": TensorBoard, "wandb": Wandb, "mlflow": Mlflow, "trackio": Trackio}


def missing_libraries(names: Sequence[str]) -> list[str]:
    """Return a message for each tracker whose library is not installed."""
    return [
        f"run.trackers: {name} is not installed; install it with pip install '{EXTRA}', or remove it from run.trackers."
        for name in names
        if importlib.util.find_spec(name) is None
    ]


def open_trackers(names: Sequence[str], run: TrackedRun) -> list[Tracker]:
    """Open the trackers.

    Raises:
        ConfigError: a library is not installed.
    """
    if problems := missing_libraries(names):
        raise ConfigError(*problems)
    return [TRACKERS[name](run) for name in names]
