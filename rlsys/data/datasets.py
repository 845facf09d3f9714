"""Rows by number, whether from a file or from the task generator, and the records that a sampler draws from them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence, Set
from pathlib import Path
from typing import Protocol

from rlsys.config.schema import Data
from rlsys.data.accounts import RowCounts
from rlsys.data.records import Record
from rlsys.data.sampler import Sampler

TASKS = "tasks:"
TASK_ROWS = {"train": 1_000_000, "heldout": 4096}
"""Rows that a generated split is said to hold; they are made when asked for."""
TASK_SEEDS = {"heldout": 20_250_403}
"""The held-out tasks are the same for every run, so that runs with different seeds can be compared."""
AHEAD = 8192
"""Rows drawn next that `Rows.fetch` is told of: what a Parquet file keeps in memory, some kilobytes each."""


class Rows(Protocol):
    """A finite sequence of rows, at least one of them usable."""

    def __len__(self) -> int:
        """Number of rows, usable or not."""
        ...

    def __iter__(self) -> Iterator[Record]:
        """The records of all usable rows, in the order of the rows."""
        ...

    def scan(self, account: RowCounts) -> Iterator[Record]:
        """The same; counts in `account`, a fresh one, how many were read, and those set aside by reason."""
        ...

    def why(self, index: int) -> str:
        """The reason why row `index`, in which `fetch` found no record, is set aside."""
        ...

    def sources_of(self, ids: Set[str]) -> dict[str, set[str]]:
        """id -> the sources of the records that have it, of those of `ids` that occur."""
        ...

    def fetch(self, indices: Sequence[int], upcoming: Sequence[int] = ()) -> list[list[Record]]:
        """The records of each of the rows `indices`: none where it is set aside, several in some formats.

        `upcoming`: the rows that will be fetched next, for a source that reads many rows at once.
        """
        ...


def sample_rows(rows: Rows, sampler: Sampler, count: int, account: RowCounts) -> list[tuple[int, list[Record]]]:
    """(epoch, records) of the usable ones of the next `count` rows in the sampler's order; `sampler.size` is len(rows).

    Counts the rows, and those set aside by reason, in `account`.
    """
    places = [(sampler.epoch, *sampler.next(1)) for _ in range(count)]
    found = rows.fetch([index for _, index in places], sampler.peek(min(AHEAD, len(rows))))
    account.rows += count
    account.aside.update(rows.why(index) for (_, index), records in zip(places, found, strict=True) if not records)
    return [(epoch, records) for (epoch, _), records in zip(places, found, strict=True) if records]


def sample_records(rows: Rows, sampler: Sampler, count: int) -> list[tuple[int, Record]]:
    """(epoch, record) of the next `count` usable rows in the sampler's order; `sampler.size` is len(rows).

    A row that is set aside leaves its place to the one drawn after it. A row of several records gives one an epoch, in turn. What is drawn
    depends on where the sampler stands alone, and since some row is usable, no epoch goes by in vain.
    """
    drawn: list[tuple[int, Record]] = []
    while len(drawn) < count:
        found = sample_rows(rows, sampler, count - len(drawn), RowCounts())
        drawn += [(epoch, records[epoch % len(records)]) for epoch, records in found]
    return drawn


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
        from rlsys.data.tasks import generate

        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        options = {"families": self.data.families, "level": self.data.level, "responses": self.data.responses}
        return next(iter(generate(self.split, 1, self.seed, start=index, **options)))

    def __iter__(self) -> Iterator[Record]:
        return (self[index] for index in range(len(self)))

    def scan(self, account: RowCounts) -> Iterator[Record]:
        for record in self:
            account.rows += 1
            yield record

    def why(self, index: int) -> str:
        raise LookupError(f"row {index}: every generated row is usable")

    def sources_of(self, ids: Set[str]) -> dict[str, set[str]]:
        # An id holds the row's number: a million rows need not be made.
        numbers = {name: int(match[1]) for name in ids if (match := re.match(rf"{self.split}-(\d+)-", name))}
        made = {name: self[number] for name, number in numbers.items() if number < len(self)}
        return {name: {record.source} for name, record in made.items() if record.id == name}

    def fetch(self, indices: Sequence[int], upcoming: Sequence[int] = ()) -> list[list[Record]]:
        return [[self[index]] for index in indices]


def open_rows(source: Path, data: Data, seed: int) -> Rows:
    """Rows of one `source`: a file in `data.format`, or `tasks:SPLIT`.

    Raises:
        rlsys.data.readers.DataError: the file is missing, unreadable, without a usable row, or (with data.strict) has a malformed one.
        ValueError: no such split.
    """
    name = str(source)
    if name.startswith(TASKS):
        return TaskRows(name.removeprefix(TASKS), data, seed)
    from rlsys.data.readers import RecordFile

    return RecordFile(source, data.format, data.strict, data.columns, data.max_unusable)
