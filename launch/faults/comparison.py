"""Two runs of the same config, compared to the bit."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from rlsys.io.metrics import MetricsLog

TIMED = ("seconds/", "generated_tokens_per_s")
"""Beginnings of the names of metrics that measure time."""
STATED = ("model/model.safetensors", "optimizer/")
"""Files of a checkpoint that hold weights and moments; its others name the run."""


@dataclass
class Comparison:
    """What a run has lost, or has twice, and where it differs."""

    lost: int = 0
    """Samples of the reference that the run does not have at that place."""
    doubled: int = 0
    """Samples of the run that the reference does not have at that place."""
    different: list[str] = field(default_factory=list)
    """Files whose contents differ, with the names of columns, metrics or parts."""

    @property
    def equal(self) -> bool:
        return not (self.lost or self.doubled or self.different)


def compare(run: Path, reference: Path) -> Comparison:
    """Compare prompts, their order, samples, metrics (but times), and the final weights and moments of two complete runs."""
    found = Comparison()
    names = {path.name for folder in (run, reference) for path in (folder / "trajectories").glob("*.parquet")}
    ours, theirs = Counter[Any](), Counter[Any]()
    for name in sorted(names):
        mine, other = (_rows(folder / "trajectories" / name) for folder in (run, reference))
        ours.update(_keys(name, mine))
        theirs.update(_keys(name, other))
        columns = _differing(mine, other)
        if columns or len(mine) != len(other):
            found.different.append(f"{name}: {', '.join(sorted(columns)) or 'number of rows'}")
    found.lost, found.doubled = (theirs - ours).total(), (ours - theirs).total()
    mine, other = (_metrics(folder) for folder in (run, reference))
    if mine != other:
        found.different.append(f"metrics.jsonl: {', '.join(sorted(_differing(mine, other))) or 'number of steps'}")
    (last, mine_files), (last_other, other_files) = (_last_checkpoint(folder) for folder in (run, reference))
    files = sorted(name for name in mine_files.keys() | other_files.keys() if mine_files.get(name) != other_files.get(name))
    if files or last != last_other:
        found.different.append(f"{last}: {', '.join(files) or f'the reference ends with {last_other}'}")
    return found


def _differing(rows: list[dict[str, Any]], others: list[dict[str, Any]]) -> set[str]:
    """Return the names whose values differ in a row; by `repr`, which is exact for numbers, and in which nan equals itself."""
    pairs = list(zip(rows, others))
    return {name for row, other in pairs for name in row.keys() | other.keys() if repr(row.get(name)) != repr(other.get(name))}


def _rows(path: Path) -> list[dict[str, Any]]:
    return pq.read_table(path).to_pylist() if path.exists() else []


def _keys(table: str, rows: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    return [(table, row["group"], row["sample"], row["prompt_id"], tuple(row["order"])) for row in rows]


def _metrics(folder: Path) -> list[dict[str, Any]]:
    return [{name: value for name, value in row.items() if not name.startswith(TIMED)} for row in MetricsLog.read(folder)]


def _last_checkpoint(folder: Path) -> tuple[str, dict[str, str]]:
    """Return the name of a run's last checkpoint, and the SHA-256 of its files with weights and moments."""
    states = sorted((folder / "checkpoints").glob("step_*/state.json"))
    if not states:
        return "no checkpoint", {}
    files = json.loads(states[-1].read_text())["files"]
    return states[-1].parent.name, {name: digest for name, digest in files.items() if name.startswith(STATED)}
