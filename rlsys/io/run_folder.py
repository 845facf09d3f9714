"""Layout, lock and checkpoints of a run folder.

RUN/config.yaml              resolved config
RUN/data_files.json          fingerprints of the files that rows are read from
RUN/progress.json            what the run is doing now
RUN/metrics.jsonl            one line per step (tensorboard/ holds the same)
RUN/trajectories/            step_000001.parquet ..., heldout_base.parquet, heldout_cold_start.parquet, heldout_rl.parquet
RUN/judgements/              step_000001.jsonl ...: the judge's, in runs of `rlsys policy`
RUN/checkpoints/cold_start/  model/ after the cold start: the frozen reference model of RL
RUN/checkpoints/step_000010/ model/ (Hugging Face format, rlsys.json, README.md), optimizer/ (one file per rank), state.json
RUN/checkpoints/best.json    name of the checkpoint with the best held-out reward
RUN/logs/                    logs of each actor, vLLM and DeepSpeed
RUN/summary.json             written last: the run is complete
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rlsys.config.files import load_config, save_config
from rlsys.config.schema import Config, ConfigError
from rlsys.data.readers import DataError
from rlsys.documents.core import AnyResult, Result, read_document, read_object, write_document
from rlsys.io.checksums import checksums, damage
from rlsys.io.files import atomic_write, write_text_atomically
from rlsys.io.model_form import form_of, read_form
from rlsys.io.progress import read_progress
from rlsys.io.remote_copy import RemoteCopy, RemoteCopyError
from rlsys.io.same_run import DATA_FILES, changed_data, changed_settings, completed_work, require_same_copy, require_same_run
from rlsys.models.loading import ensure_model
from rlsys.prompts.rendering import FORM_FILE

LEARNER_STATE = "optimizer/learner.json"
"""In a checkpoint: `learner_identity`, and the state of the learning-rate schedule."""


class CheckpointError(ValueError):
    """No checkpoint of a run can be used; the message names the folder and the damage."""


class RunFolder:
    """Open or create a run folder, and hold its lock until `close` or the end of the `with` block.

    `config`: the given one; learner.ranks=null becomes the number of ranks whose optimizer state is here, as only as many can load it.
    `was_reset`: the folder held another config, or other data, without completed work, and has been cleared.
    `judge`: whether the run trains a judge, and not a policy for a judge to reward.
    `restored`: number of files that came from `run.copy_to`, as the folder held no run.

    Raises:
        ConfigError: another process holds the lock, or the folder or its copy holds completed work of a different config or other data.
        RemoteCopyError: `run.copy_to` cannot be read.
        OSError: the folder cannot be created or written.
    """

    def __init__(self, config: Config, judge: bool = True):
        self.config, self.path, self._judge = config, config.run.dir.absolute(), judge
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock = (self.path / ".lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._copy = RemoteCopy(config.run.copy_to, self.path) if config.run.copy_to else None
            if self._copy:
                require_same_copy(config, self._copy)
            self.restored = self._copy.restore() if self._copy else 0
            data = require_same_run(config)
            # Without completed work, an evaluation of the base model on other rows may be there.
            self.was_reset = bool(changed_settings(config) or not completed_work(self.path) and changed_data(self.path, data))
            if self.was_reset:
                _clear(self.path)
            for name in ("trajectories", "checkpoints", "logs"):
                (self.path / name).mkdir(exist_ok=True)
            for partial in (self.path / "checkpoints").glob(".partial_*"):
                shutil.rmtree(partial, ignore_errors=True)
            save_config(config, self.path / "config.yaml")
            self.write_json(DATA_FILES, data)
            self.config = self._with_saved_ranks()
        except BlockingIOError as error:
            self._lock.close()
            raise ConfigError(
                f"{self.path}: another process is writing this run{_writer(self.path)}; wait for it or choose another run.dir."
            ) from error
        except (OSError, ConfigError, DataError, RemoteCopyError):
            self._lock.close()
            raise

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        try:
            self.close()
        except RemoteCopyError as failed:
            if error is None:
                raise
            error.add_note(str(failed))  # The first error is the one to report.

    def close(self) -> None:
        try:
            self.update_copy()
        finally:
            self._lock.close()

    def update_copy(self) -> None:
        """Bring `run.copy_to` up to date. Call it after each step; `close` does it, too."""
        if self._copy:
            self._copy.update()

    def _with_saved_ranks(self) -> Config:
        folders = [*self.checkpoints()[::-1], self.cold_start, *sorted(self.path.glob("round_*"), reverse=True)]
        ranks = next(filter(None, map(_saved_ranks, folders)), None)
        if self.config.learner.ranks is not None or ranks is None:
            return self.config
        return self.config.model_copy(update={"learner": self.config.learner.model_copy(update={"ranks": ranks})})

    # --- results -------------------------------------------------------------------------------------------------

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    def heldout_path(self, stage: str) -> Path:
        return self.path / "trajectories" / f"heldout_{stage}.parquet"

    def write(self, document: Result) -> None:
        """Write the file that completes the run."""
        write_document(self.path / document.FILE, document)

    def read(self, kind: type[AnyResult]) -> AnyResult | None:
        """Read the file that completes the run; None if it is not complete.

        Raises:
            DataError: the file does not hold such a document.
        """
        path = self.path / kind.FILE
        return read_document(path, kind) if path.exists() else None

    def write_json(self, name: str, value: Any) -> None:
        write_text_atomically(self.path / name, json.dumps(value, indent=2) + "\n")

    def read_json(self, name: str) -> dict[str, Any] | None:
        """Read a JSON object; None if there is no such file.

        Raises:
            DataError: the file holds something else.
        """
        path = self.path / name
        return read_object(path) if path.exists() else None

    # --- checkpoints ---------------------------------------------------------------------------------------------

    @property
    def model_files(self) -> dict[str, str]:
        """Text files that a model of this run carries beside its weights, by name: its form, if it is a judge."""
        return {FORM_FILE: form_of(self.config).to_text()} if self._judge else {}

    @property
    def cold_start(self) -> Path:
        return self.path / "checkpoints" / "cold_start"

    def cold_start_state(self) -> dict[str, Any] | None:
        """Return the content of cold_start.json, which is written after the weights; None if the cold start is not complete.

        Raises:
            CheckpointError: the file is damaged.
        """
        return _unsealed(self.path / "cold_start.json")

    def commit_cold_start(self, state: dict[str, Any]) -> None:
        """Complete the cold start, whose weights are saved: write cold_start.json."""
        self.write_json("cold_start.json", _sealed(state | {"files": checksums(self.cold_start)}))

    def require_intact_cold_start(self) -> None:
        """Check the files of the cold start, which RL starts from and keeps as its reference.

        Raises:
            CheckpointError: one is missing or has changed.
        """
        files = (self.cold_start_state() or {}).get("files", {})
        if not (self.cold_start / "optimizer").exists():  # removed with the first checkpoint
            files = {name: digest for name, digest in files.items() if not name.startswith("optimizer/")}
        if problem := damage(self.cold_start, files):
            raise CheckpointError(f"{self.cold_start}: {problem}. Restore it from a copy, or start a new run folder.")

    def checkpoint_path(self, step: int) -> Path:
        return self.path / "checkpoints" / f"step_{step:06d}"

    def begin_checkpoint(self, step: int) -> Path:
        """Create an empty temporary folder for a checkpoint, to be renamed by `commit_checkpoint`."""
        partial = self._partial_path(step)
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        return partial

    def _partial_path(self, step: int) -> Path:
        return self.path / "checkpoints" / f".partial_{step:06d}"

    def commit_checkpoint(self, step: int, state: dict[str, Any], keep: int, optimizer: str = "all") -> None:
        """Complete the folder of `begin_checkpoint`, rename it, and delete all but the newest `keep` checkpoints and the best one.

        Args:
            optimizer: as checkpoint.optimizer: whose optimizer state to keep.
        """
        partial = self._partial_path(step)
        # Written last: it makes the checkpoint complete.
        write_text_atomically(partial / "state.json", json.dumps(_sealed(state | {"files": checksums(partial)}), indent=2))
        shutil.rmtree(self.checkpoint_path(step), ignore_errors=True)
        os.replace(partial, self.checkpoint_path(step))
        for old in self.checkpoints()[:-keep]:
            if old.name != self.best().get("checkpoint"):
                self._remove(old)
        if optimizer == "last":
            for old in self.checkpoints()[:-1]:
                self._remove(old / "optimizer")
        # A resumed run starts from this checkpoint; only the model of the cold start is still needed, as the reference.
        self._remove(self.cold_start / "optimizer")

    def _remove(self, folder: Path) -> None:
        """Remove a folder as a whole: if the process is killed meanwhile, the next start removes the rest."""
        if folder.exists():
            aside = self.path / "checkpoints" / ".partial_removed"
            shutil.rmtree(aside, ignore_errors=True)
            os.replace(folder, aside)
            shutil.rmtree(aside, ignore_errors=True)

    def discard_checkpoint(self, step: int) -> None:
        """Remove the folder of `begin_checkpoint`, as the checkpoint could not be written."""
        shutil.rmtree(self._partial_path(step), ignore_errors=True)

    def checkpoints(self) -> list[Path]:
        """List complete checkpoints, oldest first."""
        return sorted(path for path in (self.path / "checkpoints").glob("step_*") if (path / "state.json").exists())

    def best(self) -> dict[str, Any]:
        """Return {"checkpoint": name, "reward": held-out reward} of the best checkpoint; empty before the first evaluation.

        Raises:
            CheckpointError: best.json is damaged.
        """
        return _best(self.path / "checkpoints")

    def is_best(self, reward: float) -> bool:
        best: float = self.best().get("reward", float("-inf"))
        return reward > best

    def set_best(self, step: int, reward: float) -> None:
        self.write_json("checkpoints/best.json", _sealed({"checkpoint": self.checkpoint_path(step).name, "reward": reward}))

    def latest_state(self, warn: Callable[[str], None]) -> tuple[Path, dict[str, Any]] | None:
        """Return the newest intact checkpoint and its state, or None for a run without checkpoints.

        Args:
            warn: called with a message about each newer checkpoint that is damaged.

        Raises:
            CheckpointError: all are damaged.
        """
        problems = {}
        for path in reversed(self.checkpoints()):
            state, problem = _read_state(path)
            if problem is None:
                break
            problems[path] = problem
        else:
            if problems:
                found = "; ".join(f"{path.name}: {problem}" for path, problem in problems.items())
                raise CheckpointError(
                    f"{self.path / 'checkpoints'}: no checkpoint can be continued from ({found}). Restore one from a copy, or move all "
                    "step_* folders away to start from the cold start."
                )
            return None
        for damaged, problem in problems.items():
            # Out of the way, so that it does not count as one of the newest.
            aside = damaged.with_name(f"damaged_{damaged.name}")
            shutil.rmtree(aside, ignore_errors=True)
            os.replace(damaged, aside)
            warn(f"{damaged.name} is damaged: {problem}. It is kept as {aside}; taking {path.name}")
        return path, state


def resolve_model(path: str | Path) -> tuple[str, Config | None]:
    """Resolve a run folder, a model inside one, or any other model to (model, the form in which it was trained or None).

    The model of a run is RUN/model, else its newest checkpoint, else its cold start. `RUN@best`, `RUN@cold_start` and `RUN@step_10` name
    one of its checkpoints. The form is that of rlsys.json beside the weights, else the config of the run.

    Raises:
        ConfigError: the run has no model yet, or not that one.
    """
    place = Path(path).absolute()
    name, at, which = str(path).rpartition("@")
    if at and not place.exists() and (Path(name) / "config.yaml").is_file():
        place, model = Path(name).absolute(), _chosen_model(Path(name).absolute(), which)
    elif (place / "config.yaml").is_file():
        model = _latest_model(place)
    else:
        form = read_form(place)
        runs = [folder for folder in list(place.parents)[:3] if (folder / "config.yaml").is_file() and (folder / ".lock").exists()]
        return str(path), form.config(place) if form else load_config(runs[0] / "config.yaml") if runs else None
    form = read_form(model)
    return str(model), form.config(model) if form else load_config(place / "config.yaml")


def _latest_model(run: Path) -> Path:
    newest = sorted(found for found in (run / "checkpoints").glob("step_*") if (found / "state.json").exists())
    candidates = [run, *newest[::-1], run / "checkpoints" / "cold_start"]
    model = next((folder / "model" for folder in candidates if (folder / "model").is_dir()), None)
    if model is None:
        raise ConfigError(f"{run}: this run has not saved a model yet; wait for its first checkpoint, or choose a model folder.")
    return model


def _chosen_model(run: Path, which: str) -> Path:
    """Return the model that `RUN@which` names."""
    checkpoints = run / "checkpoints"
    name = which
    if which == "best":
        name = _best(checkpoints).get("checkpoint", "best")
    elif which.startswith("step_") and which[5:].isdecimal():
        name = f"step_{int(which[5:]):06d}"
    found = {path.parent.name: path for path in sorted(checkpoints.glob("*/model")) if not path.parent.name.startswith(".")}
    if name not in found:
        best_too = ["best"] if (checkpoints / "best.json").is_file() else []
        raise ConfigError(f"{run}@{which}: this run has no such model. It has {', '.join([*best_too, *found]) or 'none yet'}.")
    return found[name]


def find_model(path: str) -> str:
    """Resolve `model.path` to a model folder or hub name, building a built-in model if it is absent."""
    return ensure_model(resolve_model(path)[0])


def learner_identity(ranks: int, zero_stage: int, dtype: str) -> dict[str, Any]:
    """Return the settings that must match for an optimizer state to be loaded."""
    return {"learner.ranks": ranks, "learner.zero_stage": zero_stage, "model.dtype": dtype}


def has_compatible_optimizer_state(folder: Path, config: Config, ranks: int) -> bool:
    """Check whether `folder` has an optimizer state that a learner of `ranks` ranks can load.

    Its fp32 master weights preserve updates that are too small for the bfloat16 weights of the saved model.
    """
    identity_file = folder / LEARNER_STATE
    if not identity_file.is_file():
        return False
    found = read_object(identity_file)
    required = learner_identity(ranks, config.learner.zero_stage, config.model.dtype)
    return all(found.get(name) == value for name, value in required.items())


ROW_GROUP = 1024
"""Rows in one row group of a Parquet file, so that `rlsys view` can read a few samples without decoding all texts."""


def write_parquet(table: pa.Table, path: Path) -> None:
    """Write `table` to `path` atomically."""
    with atomic_write(path) as temporary:
        # The size of a page is looked at once per batch: small batches, or a page takes a thousand long texts.
        pq.write_table(table, temporary, row_group_size=ROW_GROUP, write_batch_size=32)


def _saved_ranks(folder: Path) -> int | None:
    """Return the number of ranks whose state `folder` holds; None if it holds none that can be read."""
    with suppress(OSError, ValueError, LookupError, TypeError):
        return int(json.loads((folder / LEARNER_STATE).read_text())["learner.ranks"])
    return None


def _read_state(checkpoint: Path) -> tuple[dict[str, Any], str | None]:
    """Return the state of a checkpoint, and why it cannot be continued from (None: it can)."""
    try:
        state = _unsealed(checkpoint / "state.json") or {}
    except CheckpointError as error:
        return {}, f"state.json cannot be read ({error})"
    files = state.pop("files", {})  # absent in checkpoints of earlier versions
    if any(name.startswith("optimizer/") for name in files) and not (checkpoint / "optimizer").exists():
        return state, "it has no optimizer state (checkpoint.optimizer=last)"
    try:
        return state, damage(checkpoint, files)
    except OSError as error:
        return state, f"it cannot be read ({error})"


def _sealed(content: dict[str, Any]) -> dict[str, Any]:
    """Return what a file of state holds: `content`, and a digest by which a change of it is recognised."""
    return content | {"sha256": _digest(content)}


def _digest(content: dict[str, Any]) -> str:
    as_read = json.loads(json.dumps(content))  # tuples are lists, and keys text
    return hashlib.sha256(json.dumps(as_read, sort_keys=True).encode()).hexdigest()


def _unsealed(path: Path) -> dict[str, Any] | None:
    """Return the content of a file of state; None if there is no such file. `files` has the checksums of the files that belong to it.

    Raises:
        CheckpointError: it is damaged.
    """
    if not path.exists():
        return None
    try:
        content = read_object(path)
    except DataError as error:
        raise CheckpointError(str(error)) from error
    # Earlier versions wrote neither sha256 nor files.
    if "sha256" in content and content.pop("sha256") != _digest(content):
        raise CheckpointError(f"{path}: has changed since it was written. Restore it from a copy.")
    files = content.get("files", {})
    if not isinstance(files, dict) or not all(isinstance(digest, str) for digest in files.values()):
        raise CheckpointError(f"{path}: files: expected checksums by name. Restore it from a copy.")
    return content


def _best(checkpoints: Path) -> dict[str, Any]:
    path = checkpoints / "best.json"
    found = _unsealed(path)
    if found is None:
        return {}
    if not isinstance(found.get("checkpoint"), str) or not isinstance(found.get("reward"), int | float):
        raise CheckpointError(f"{path}: expected the name of a checkpoint and its reward. Restore it from a copy, or remove it.")
    return found


def _writer(folder: Path) -> str:
    """Name the process that progress.json says to write the run; empty if it does not."""
    with suppress(DataError):
        if (found := read_progress(folder)) is not None:
            return f" (process {found.pid} on {found.host})"
    return ""


def _clear(folder: Path) -> None:
    """Remove leftovers of a run without completed work."""
    trackers = ("tensorboard", "wandb", "trackio")
    for place in [folder / name for name in ("trajectories", "checkpoints", "logs", *trackers)] + list(folder.glob("round_*")):
        shutil.rmtree(place, ignore_errors=True)
    for name in ("progress.json", "actors.json", "data_report.json", "metrics.jsonl", "trackers.json", "mlflow.db"):
        (folder / name).unlink(missing_ok=True)
