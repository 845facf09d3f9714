"""What a run folder says about its run, running or finished, read in bounded time: the ends of its files, and short columns."""

from __future__ import annotations

import json
import re
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import psutil
import pyarrow.compute as pc

from rlsys.config.files import load_config
from rlsys.config.schema import ConfigError
from rlsys.data.readers import DataError
from rlsys.data.trajectories import HELDOUT_FILES, read_trajectories
from rlsys.documents.progress import Progress
from rlsys.io.progress import read_progress
from rlsys.monitoring.definitions import STEP_PHASES
from rlsys.reporting.page.collect import heldout_tables
from rlsys.system.printable import printable

TAIL = 256_000
"""Bytes read from the end of metrics.jsonl."""
LOG_TAIL = 32_000
"""Bytes read from the end of each log."""
ERRORS = 6
"""Errors shown, the newest."""
ERROR = re.compile(r"\b(?:ERROR|CRITICAL)\b|^\w*(?:Error|Exception|ActorFailed)\b.*:|\b(?:OOM|[Oo]ut of memory|Killed)\b")


@dataclass(frozen=True)
class Actor:
    """An actor of a run, or of a cluster."""

    name: str
    about: str
    """Device, threads, versions."""
    state: str = ""
    """Ray's state of the actor; empty without a cluster."""
    calls: str = ""
    """Calls that run and wait at the actor; empty without a cluster."""
    quiet_s: float | None = None
    """Seconds since its log last grew."""


@dataclass(frozen=True)
class Heldout:
    stage: str
    rows: int
    reward: float
    accuracy: float
    failed: int
    """Parse failures."""


@dataclass(frozen=True)
class Snapshot:
    """A run at one moment. Texts are sanitised."""

    name: str
    model: str
    state: str
    """complete, running, ended, failed, killed, or unknown."""
    doing: str
    elapsed_s: float | None
    """Since the phase began, or since the run ended."""
    restarts: int
    """Times that the run was started again."""
    steps: int
    """Of the config."""
    metrics: list[dict[str, Any]]
    """The last steps, oldest first."""
    heldout: list[Heldout]
    actors: list[Actor]
    lines: list[str]
    """Last lines of the screen."""
    errors: list[str]

    @property
    def step(self) -> int:
        return int(self.metrics[-1]["step"]) if self.metrics else 0

    @property
    def is_rl(self) -> bool:
        """Whether the steps are those of RL, which `steps` counts."""
        return bool(self.metrics) and "reward" in self.metrics[-1]

    @property
    def phases(self) -> dict[str, float]:
        """Seconds of the last step by phase."""
        last = self.metrics[-1] if self.metrics else {}
        return {name: last[f"seconds/{name}"] for name in STEP_PHASES if last.get(f"seconds/{name}") is not None}

    def series(self, name: str) -> list[float]:
        """Return a metric's values over the last steps, without the steps that lack it."""
        return [float(row[name]) for row in self.metrics if isinstance(row.get(name), int | float)]


def take(folder: Path, others: Sequence[Actor] = ()) -> Snapshot:
    """Return a snapshot of the run in `folder`.

    Args:
        others: actors of the cluster that the run uses, with their states and calls.

    Raises:
        DataError: `folder` is not a run folder, or its config.yaml or progress.json is not valid.
    """
    if not (folder / "config.yaml").is_file():
        raise DataError(f"{folder}: not a run folder (no config.yaml in it); give the run.dir of `rlsys train`.")
    model, steps = _config(folder / "config.yaml", (folder / "config.yaml").stat().st_mtime_ns)
    progress = read_progress(folder)
    state = "complete" if _is_complete(folder / "summary.json", progress) else _state(progress)
    return Snapshot(
        name=printable(folder.resolve().name),
        model=printable(model),
        state=state,
        doing=printable(progress.doing if progress else ""),
        elapsed_s=_elapsed(progress),
        restarts=progress.restarts if progress else 0,
        steps=steps,
        metrics=read_tail(folder / "metrics.jsonl"),
        heldout=_heldout(folder / "trajectories"),
        actors=_actors(folder, others),
        lines=[printable(line) for line in progress.lines] if progress else [],
        errors=_errors(folder / "logs", progress),
    )


@lru_cache(maxsize=8)
def _config(path: Path, changed: int) -> tuple[str, int]:
    """Return model and number of steps of a config that was `changed` at that time."""
    try:
        config = load_config(path)
    except ConfigError as error:
        raise DataError(f"{path}: cannot be read: {error}") from error
    return str(config.model.path), config.rl.steps


def _state(progress: Progress | None) -> str:
    """Return the state of a run without a summary."""
    if progress is None:
        return "unknown"
    if progress.ended is not None:
        return "failed" if progress.error else "ended"
    if progress.host != socket.gethostname():
        return "running"
    try:
        # A process that began later has taken over the id.
        alive = psutil.Process(progress.pid).create_time() <= progress.started + 1
    except psutil.Error:
        alive = False
    return "running" if alive else "killed"


def _elapsed(progress: Progress | None) -> float | None:
    if progress is None:
        return None
    return max(0.0, time.time() - (progress.ended or progress.since))


def read_tail(path: Path) -> list[dict[str, Any]]:
    """Return the rows at the end of a JSON Lines file, without a cut one at either end; [] if there is no file."""
    found = []
    for line in tail(path, TAIL).splitlines():
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict) and isinstance(row.get("step"), int):
            found.append(row)
    return found


def tail(path: Path, size: int) -> str:
    """Return at most the last `size` bytes of a file as text; "" if there is no file."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, 2) - size))
            return file.read(size).decode("utf-8", "replace")
    except FileNotFoundError:
        return ""


def _is_complete(summary: Path, progress: Progress | None) -> bool:
    """Whether the run has written its summary since its process began; an older one is that of a run with fewer steps."""
    return summary.is_file() and (progress is None or summary.stat().st_mtime >= progress.started)


# --- results, actors, errors ----------------------------------------------------------------------------------------


def _heldout(folder: Path) -> list[Heldout]:
    """Return the held-out results in order of evaluation."""
    found = [_result(path, path.stat().st_mtime_ns) for path in heldout_tables(folder).values()]
    return [result for result in found if result is not None]


@lru_cache(maxsize=256)
def _result(path: Path, changed: int) -> Heldout | None:
    """Return the result in a table that was `changed` at that time; None if it cannot be read."""
    try:
        table = read_trajectories(path, ["reward", "correct", "parse_failure"], others=False)
    except DataError:
        return None
    if not table.num_rows:
        return None
    reward, correct = pc.mean(table["reward"]).as_py(), pc.mean(table["correct"].cast("int8")).as_py()
    failed = table.num_rows - table["parse_failure"].null_count
    return Heldout(printable(path.stem.removeprefix(HELDOUT_FILES)), table.num_rows, reward or 0.0, correct or 0.0, failed)


def _actors(folder: Path, others: Sequence[Actor]) -> list[Actor]:
    """Return the actors of actors.json and those of the cluster, which know their states."""
    try:
        found = json.loads((folder / "actors.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        found = {}
    described = {name: about for name, about in found.items() if isinstance(about, dict)} if isinstance(found, dict) else {}
    live = {actor.name: actor for actor in others}
    names = list(dict.fromkeys([*described, *live]))
    return [_actor(name, described.get(name, {}), live.get(name), folder / "logs" / f"{name}.log") for name in names]


def _actor(name: str, described: dict[str, Any], live: Actor | None, log: Path) -> Actor:
    parts = [str(described[key]) for key in ("device",) if key in described]
    parts += [f"{key} {str(described[key]).strip('[]')}" for key in ("vllm", "threads", "kv_blocks", "zero_stage") if key in described]
    quiet = max(0.0, time.time() - log.stat().st_mtime) if log.is_file() else None
    about = ", ".join(parts) or (live.about if live else "")
    return Actor(printable(name), printable(about), live.state if live else "", live.calls if live else "", quiet)


def _errors(logs: Path, progress: Progress | None) -> list[str]:
    """Return the last errors: what ended the run, then lines of its logs, those of the newest log last."""
    found = []
    for path in sorted(logs.glob("*.log"), key=lambda path: path.stat().st_mtime_ns) if logs.is_dir() else []:
        found += [f"{path.name}: {line.strip()[:300]}" for line in tail(path, LOG_TAIL).splitlines() if ERROR.search(line)]
    ended = [progress.error] if progress and progress.error else []
    return [printable(line) for line in [*found, *ended][-ERRORS:]]
