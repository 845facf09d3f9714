"""The numbers of a run: one JSON line per step in metrics.jsonl, and the same in TensorBoard."""

from __future__ import annotations

import json
import math
from itertools import takewhile
from pathlib import Path
from typing import Any

from rlsys.data.readers.json_files import JsonLines
from rlsys.io.files import write_text_atomically


class MetricsLog:
    """Appends step metrics; on resume it first drops the lines of steps that will be taken again.

    Args:
        folder: the run's folder; metrics.jsonl and tensorboard/ are written in it.
        resume_step: last step whose metrics stand (0 for a fresh run).
    """

    def __init__(self, folder: Path, resume_step: int = 0):
        from torch.utils.tensorboard import SummaryWriter

        self.path = folder / "metrics.jsonl"
        kept = [row for row in self.read(folder) if row["step"] <= resume_step]
        write_text_atomically(self.path, "".join(json.dumps(row) + "\n" for row in kept))
        self.file = self.path.open("a")
        self.board = SummaryWriter(str(folder / "tensorboard"), purge_step=resume_step + 1)

    def write(self, step: int, metrics: dict[str, Any]) -> None:
        """Append one line; numbers also go to TensorBoard under their own names. What is not finite (a skipped step's) becomes null."""
        finite = {name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in metrics.items()}
        self.file.write(json.dumps({"step": step, **finite}, allow_nan=False) + "\n")
        self.file.flush()
        for name, value in finite.items():
            if isinstance(value, int | float):
                self.board.add_scalar(name, value, step)
        self.board.flush()

    def close(self) -> None:
        self.file.close()
        self.board.close()

    @staticmethod
    def read(folder: Path) -> list[dict[str, Any]]:
        """All rows of a run's metrics.jsonl; a last line cut off by a kill is left out."""
        path = folder / "metrics.jsonl"
        rows = JsonLines(path).scan() if path.exists() else iter(())
        return list(takewhile(lambda row: isinstance(row, dict), (row for _, row in rows)))
