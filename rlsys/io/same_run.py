"""Whether a run folder holds the work of the run that is about to be written to it: the same settings, the same data."""

from __future__ import annotations

import tempfile
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from rlsys.config.files import load_config
from rlsys.config.resuming import may_change
from rlsys.config.schema import Config, ConfigError
from rlsys.documents.core import read_object
from rlsys.io.fingerprints import fingerprints
from rlsys.io.remote_copy import RemoteCopy

DATA_FILES = "data_files.json"
"""Fingerprints of the data files that the run was last started with, by file."""
WORK_PATTERNS = (
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
"""Results of training or sampling, which a run with another config may not discard. Empty files and folders do not count."""


def completed_work(folder: Path) -> list[str]:
    """List results of training or sampling in `folder`, which would have to be computed again.

    Evaluations of the base model, logs and incomplete results do not count.
    """
    return sorted(str(found.relative_to(folder)) for pattern in WORK_PATTERNS for found in folder.glob(pattern) if _has_content(found))


def _has_content(path: Path) -> bool:
    return any(path.iterdir()) if path.is_dir() else path.stat().st_size > 0


def require_same_run(config: Config) -> dict[str, str]:
    """Check that `run.dir` does not hold completed work of another config or of other data; returns the fingerprints of the data files.

    Raises:
        ConfigError: it does; the message names the settings, or the files, that differ.
    """
    folder, data = config.run.dir.absolute(), fingerprints(config)
    work = completed_work(folder)
    if work and changed_settings(config):
        raise ConfigError(
            f"{folder / 'config.yaml'}: the folder holds results ({work[0]}{', ...' if len(work) > 1 else ''}) of a run with "
            f"another config ({_all_differences(config)}). Choose another run.dir, or remove the folder."
        )
    if work and not config.data.may_change and (changed := changed_data(folder, data)):
        raise ConfigError(
            f"{'; '.join(changed)} since the run in {folder} began. Restore the data, choose another run.dir, or set data.may_change=true "
            "to continue with the data as they are now."
        )
    return data


def require_same_copy(config: Config, copy: RemoteCopy) -> None:
    """Check that `run.copy_to` does not hold completed work of another config, which would be overwritten.

    Raises:
        ConfigError: it does.
    """
    saved = copy.config()
    if saved is None or not any(fnmatch(name, pattern) for name in copy.names for pattern in WORK_PATTERNS):
        return
    with tempfile.NamedTemporaryFile(suffix=".yaml") as file:
        file.write(saved)
        file.flush()
        place = Path(file.name)
        if changed_settings(config, place):
            differences = _all_differences(config, place)
            raise ConfigError(f"run.copy_to={config.run.copy_to}: holds a run with another config ({differences}). Choose another URL.")


def changed_settings(config: Config, saved: Path | None = None) -> list[str]:
    """Describe differences from the `saved` config (None: that of the folder) in settings that may not change."""
    return _describe_differences(config, saved)[0]


def _all_differences(config: Config, saved: Path | None = None) -> str:
    fixed, free = _describe_differences(config, saved)
    return "; ".join(fixed) + (f"; these may change: {'; '.join(free)}" if free else "")


def _describe_differences(config: Config, saved: Path | None) -> tuple[list[str], list[str]]:
    """Describe the settings that differ from the `saved` config: those that may not change, and those that may."""
    saved = saved or config.run.dir.absolute() / "config.yaml"
    if not saved.exists():
        return [], []
    try:
        old = load_config(saved)
    except ConfigError as error:
        return [f"its config cannot be read: {error}"], []
    fixed, free = list[str](), list[str]()
    for key, before, after in _differences(old.model_dump(mode="json"), config.model_dump(mode="json")):
        if key != "run.dir":  # the folder may have been moved
            (free if may_change(key) else fixed).append(f"{key}: {before!r} before, {after!r} now")
    return fixed, free


def _differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[tuple[str, Any, Any]]:
    found = []
    for key in old.keys() | new.keys():
        before, after = old.get(key), new.get(key)
        if isinstance(before, dict) and isinstance(after, dict):
            found.extend(_differences(before, after, f"{prefix}{key}."))
        elif before != after:
            found.append((f"{prefix}{key}", before, after))
    return sorted(found, key=lambda item: item[0])


def changed_data(folder: Path, now: dict[str, str]) -> list[str]:
    """Describe the data files that differ from those that the run in `folder` was last started with, as far as it recorded them."""
    record = folder / DATA_FILES
    before = read_object(record) if record.exists() else now
    return [
        f"{name} {'is missing' if name not in now else 'is new' if name not in before else 'has changed'}"
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name)
    ]
