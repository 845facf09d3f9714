"""A run's folder: what lies where, who may write in it, and its checkpoints.

RUN/config.yaml              resolved config
RUN/metrics.jsonl            one line per step (tensorboard/ holds the same)
RUN/trajectories/            step_000001.parquet ..., heldout_base.parquet, heldout_cold_start.parquet, heldout_rl.parquet
RUN/checkpoints/cold_start/  model/ after the cold start: the frozen reference of RL
RUN/checkpoints/step_000010/ model/ (Hugging Face format), optimizer/ (one file per rank), state.json
RUN/checkpoints/best.json    which checkpoint had the best held-out reward
RUN/logs/                    what each actor, vLLM and DeepSpeed said
RUN/summary.json             written last, when the run is complete
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rlsys.config.files import load_config, save_config
from rlsys.config.schema import Config, ConfigError, Learner
from rlsys.io.files import atomic_write, write_text_atomically
from rlsys.models.loading import ensure_model

MAY_CHANGE = {"run", "checkpoint", "rl.steps", "rl.eval_every"}
"""Keys that a resumed run may change; everything else would make another run of it."""

WORK = (
    "cold_start.json",
    "metrics.jsonl",
    "checkpoints/step_*/state.json",
    "trajectories/step_*.parquet",
    "trajectories/rft_round_*.parquet",
    "round_*/samples.jsonl",
    "round_*/samples.jsonl.part",
    "round_*/model",
    "model",
    "report.json",
    "summary.json",
)
"""What says that a run has done something that is worth keeping; an empty file or folder says nothing."""


class RunFolder:
    """Opens (or makes) the folder of a run and holds its lock until `close`, or the end of its `with` block.

    Raises:
        ConfigError: another process is using the folder, or something of a run with a different config was trained there.
        OSError: it cannot be made or written.
    """

    def __init__(self, config: Config):
        self.path = config.run.dir.absolute()
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock = (self.path / ".lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            require_same_config(config)
            self.was_reset = bool(_changed(config))
            if self.was_reset:
                _clear(self.path)
            for name in ("trajectories", "checkpoints", "logs"):
                (self.path / name).mkdir(exist_ok=True)
            save_config(config, self.path / "config.yaml")
        except BlockingIOError as error:
            self._lock.close()
            raise ConfigError(f"{self.path}: another process is writing this run; wait for it or choose another run.dir.") from error
        except (OSError, ConfigError):
            self._lock.close()
            raise

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._lock.close()

    # --- results -------------------------------------------------------------------------------------------------

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    def heldout_path(self, stage: str) -> Path:
        return self.path / "trajectories" / f"heldout_{stage}.parquet"

    def write_json(self, name: str, value: Any) -> None:
        write_text_atomically(self.path / name, json.dumps(value, indent=2) + "\n")

    def read_json(self, name: str) -> Any | None:
        path = self.path / name
        return json.loads(path.read_text()) if path.exists() else None

    # --- checkpoints ---------------------------------------------------------------------------------------------

    @property
    def cold_start(self) -> Path:
        return self.path / "checkpoints" / "cold_start"

    def cold_start_state(self) -> dict[str, Any] | None:
        """What cold_start.json holds; None until the cold start is complete, as the file is written after its weights."""
        return self.read_json("cold_start.json")

    def checkpoint_path(self, step: int) -> Path:
        return self.path / "checkpoints" / f"step_{step:06d}"

    def begin_checkpoint(self, step: int) -> Path:
        """An empty folder to write into; `commit_checkpoint` gives it its name."""
        aside = self.path / "checkpoints" / f".partial_{step:06d}"
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        return aside

    def commit_checkpoint(self, step: int, state: dict[str, Any], keep: int) -> None:
        """Complete the folder of `begin_checkpoint`, rename it, and drop all but the newest `keep` and the best."""
        aside = self.path / "checkpoints" / f".partial_{step:06d}"
        (aside / "state.json").write_text(json.dumps(state, indent=2))
        shutil.rmtree(self.checkpoint_path(step), ignore_errors=True)
        os.replace(aside, self.checkpoint_path(step))
        for old in self.checkpoints()[:-keep]:
            if old.name != self.best().get("checkpoint"):
                shutil.rmtree(old)
        # From here on a resumed run starts from this checkpoint; of the cold start only the model (the reference) is needed.
        shutil.rmtree(self.cold_start / "optimizer", ignore_errors=True)

    def checkpoints(self) -> list[Path]:
        """Complete checkpoints, oldest first."""
        return sorted(path for path in (self.path / "checkpoints").glob("step_*") if (path / "state.json").exists())

    def best(self) -> dict[str, Any]:
        """{"checkpoint": name, "reward": held-out reward} of the best so far; empty before the first evaluation."""
        return self.read_json("checkpoints/best.json") or {}

    def is_best(self, reward: float) -> bool:
        return reward > self.best().get("reward", float("-inf"))

    def set_best(self, step: int, reward: float) -> None:
        self.write_json("checkpoints/best.json", {"checkpoint": self.checkpoint_path(step).name, "reward": reward})

    def latest_state(self) -> tuple[Path, dict[str, Any]] | None:
        """The newest complete checkpoint and its state, or None for a fresh run."""
        found = self.checkpoints()
        return (found[-1], json.loads((found[-1] / "state.json").read_text())) if found else None


def resolve_model(path: str | Path) -> tuple[str, Config | None]:
    """(model, config of the run that it comes from) of a run's folder, a model in one, or any other model (None then).

    Of a run it is what lies in RUN/model, else the newest checkpoint, else the cold start.

    Raises:
        ConfigError: the folder of a run that has no model yet.
    """
    place = Path(path).absolute()
    if (place / "config.yaml").is_file():
        newest = sorted(found for found in (place / "checkpoints").glob("step_*") if (found / "state.json").exists())
        candidates = [place, *newest[::-1], place / "checkpoints" / "cold_start"]
        model = next((folder / "model" for folder in candidates if (folder / "model").is_dir()), None)
        if model is None:
            raise ConfigError(f"{path}: this run has saved no model yet; let it reach a checkpoint, or name a model's folder.")
        return str(model), load_config(place / "config.yaml")
    for folder in list(place.parents)[:3]:
        if (folder / "config.yaml").is_file() and (folder / ".lock").exists():
            return str(path), load_config(folder / "config.yaml")
    return str(path), None


def find_model(path: str) -> str:
    """Folder or hub name of the model that `model.path` stands for: a run's, or any other, which is made where that can be done."""
    return ensure_model(resolve_model(path)[0])


def learner_identity(ranks: int, zero_stage: int, dtype: str) -> dict[str, Any]:
    """What must be the same for an optimizer's state to be loaded, by the names of the settings."""
    return {"learner.ranks": ranks, "learner.zero_stage": zero_stage, "model.dtype": dtype}


def has_compatible_optimizer_state(folder: Path, learner: Learner, dtype: str) -> bool:
    """Whether an optimizer's state that such a learner can load lies in `folder`, beside the model.

    Its fp32 weights are finer than the saved model's: updates smaller than bfloat16 can tell apart are not lost.
    """
    about = folder / "optimizer" / "learner.json"
    wanted = learner_identity(learner.ranks, learner.zero_stage, dtype)
    return about.is_file() and wanted.items() <= json.loads(about.read_text()).items()


def write_parquet(table: pa.Table, path: Path) -> None:
    """Write `table` to `path` atomically."""
    with atomic_write(path) as temporary:
        pq.write_table(table, temporary)


def completed_work(folder: Path) -> list[str]:
    """What a run in `folder` has trained, sampled to learn from, or come to: nothing of it could be had again without the same work.

    An evaluation of the base model, logs, and whatever was cut off before it was complete do not count.
    """
    return sorted(str(found.relative_to(folder)) for pattern in WORK for found in folder.glob(pattern) if _is_full(found))


def _is_full(path: Path) -> bool:
    return any(path.iterdir()) if path.is_dir() else path.stat().st_size > 0


def require_same_config(config: Config) -> None:
    """See that `run.dir` may hold this run: a folder with another config's work may not.

    Raises:
        ConfigError: it names the settings that differ.
    """
    folder = config.run.dir.absolute()
    changed = _changed(config)
    if changed and (work := completed_work(folder)):
        raise ConfigError(
            f"{folder / 'config.yaml'}: the folder holds a run with another config ({'; '.join(changed)}), and what it came to "
            f"({work[0]}{', ...' if len(work) > 1 else ''}). Choose another run.dir, or remove the folder."
        )


def _changed(config: Config) -> list[str]:
    """How the settings that the folder was begun with differ, those apart that may change."""
    saved = config.run.dir.absolute() / "config.yaml"
    if not saved.exists():
        return []
    try:
        old = load_config(saved)
    except ConfigError as error:
        return [f"which cannot be read: {error}"]
    return [
        f"{key}: {before!r} there, {after!r} now"
        for key, before, after in _differences(old.model_dump(mode="json"), config.model_dump(mode="json"))
        if key not in MAY_CHANGE and key.partition(".")[0] not in MAY_CHANGE
    ]


def _clear(folder: Path) -> None:
    """Remove what an earlier config left where nothing was trained."""
    for place in [folder / name for name in ("trajectories", "checkpoints", "logs", "tensorboard")] + list(folder.glob("round_*")):
        shutil.rmtree(place, ignore_errors=True)
    for name in ("actors.json", "data_report.json", "metrics.jsonl"):
        (folder / name).unlink(missing_ok=True)


def _differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[tuple[str, Any, Any]]:
    found = []
    for key in old.keys() | new.keys():
        before, after = old.get(key), new.get(key)
        if isinstance(before, dict) and isinstance(after, dict):
            found.extend(_differences(before, after, f"{prefix}{key}."))
        elif before != after:
            found.append((f"{prefix}{key}", before, after))
    return sorted(found, key=lambda item: item[0])
