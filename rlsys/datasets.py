"""Rows by number, whether from a file or from the task generator: what the sampler's indices point into."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from rlsys.config import Data
from rlsys.records import Record

TASKS = "tasks:"
TASK_ROWS = {"train": 1_000_000, "heldout": 4096}
"""Rows that a generated split is said to hold; they are made when asked for."""
TASK_SEEDS = {"heldout": 20_250_403}
"""The held-out tasks are the same for every run, so that runs with different seeds can be compared."""


class Rows(Protocol):
    """A finite sequence of records."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Record: ...

    def take(self, indices: Sequence[int]) -> list[Record]: ...


class TaskRows:
    """A split of the generated tasks as a sequence: row i is made from (split, seed, i) alone."""

    def __init__(self, split: str, data: Data, seed: int):
        if split not in TASK_ROWS:
            raise ValueError(
                f"data: {TASKS}{split} is no generated split; expected one of {', '.join(TASKS + name for name in TASK_ROWS)}."
            )
        self.split, self.data, self.seed = split, data, TASK_SEEDS.get(split, seed)

    def __len__(self) -> int:
        return TASK_ROWS[self.split]

    def __getitem__(self, index: int) -> Record:
        from rlsys.tasks import generate

        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        options = {"families": self.data.families, "level": self.data.level, "responses": self.data.responses}
        return next(iter(generate(self.split, 1, self.seed, start=index, **options)))

    def take(self, indices: Sequence[int]) -> list[Record]:
        return [self[index] for index in indices]


def open_rows(source: Path, data: Data, seed: int) -> Rows:
    """Rows of `source`: a file in `data.format`, or `tasks:SPLIT`.

    Raises:
        rlsys.readers.DataError: the file is missing, unreadable, or (with data.strict) has a malformed row.
        ValueError: no row is usable.
    """
    name = str(source)
    if name.startswith(TASKS):
        return TaskRows(name.removeprefix(TASKS), data, seed)
    from rlsys.readers import RecordFile

    rows = RecordFile(source, data.format, strict=data.strict)
    if len(rows) == 0:
        raise ValueError(f"{source}: no usable row; `rlsys data check {source} --format {data.format}` says why.")
    return rows
