"""Random access to rows, of a file or of the task generator, and sampling of records from them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence, Set
from pathlib import Path
from typing import Protocol

from rlsys.config.sources import Data
from rlsys.data.accounts import RowCounts
from rlsys.data.records import Record
from rlsys.data.sampler import Sampler

TASKS, WRITING = "tasks:", "writing:"
GENERATED = (TASKS, WRITING)
"""How the names of generated sources begin; for `str.startswith`."""
TASK_ROWS = {"train": 1_000_000, "heldout": 4096}
"""Nominal size of the generated splits; rows are generated on demand."""
TASK_SEEDS = {"heldout": 20_250_403}
"""Fixed seeds: the held-out tasks are the same in every run, so that runs with different seeds are comparable."""
PREFETCH_ROWS = 8192
"""Number of upcoming rows passed to `Rows.fetch` for prefetching: what a Parquet file caches, some kilobytes each."""


class Rows(Protocol):
    """A finite sequence of rows, at least one of them usable."""

    def __len__(self) -> int:
        """Number of rows, usable or not."""
        ...

    def __iter__(self) -> Iterator[Record]:
        """Yield the records of all usable rows, in row order."""
        ...

    def scan(self, account: RowCounts) -> Iterator[Record]:
        """Like `__iter__`; counts the rows read and set aside in `account`, which must be new."""
        ...

    def skip_reason(self, index: int) -> str:
        """Return why row `index`, for which `fetch` returned no record, is set aside."""
        ...

    def find(self, ids: Set[str]) -> Iterator[Record]:
        """Yield the records with one of the `ids`, in row order; an id may occur in several sources."""
        ...

    def fetch(self, indices: Sequence[int], upcoming: Sequence[int] = ()) -> list[list[Record]]:
        """Return the records of each of the rows `indices`: none if it is set aside, several in some formats.

        `upcoming`: the rows that will be fetched next, for prefetching.
        """
        ...


def sample_rows(rows: Rows, sampler: Sampler, count: int, account: RowCounts) -> list[tuple[int, list[Record]]]:
    """Return (epoch, records) of the usable rows among the next `count` in the sampler's order; `sampler.size` is len(rows).

    Counts the rows, and the rows set aside by reason, in `account`.
    """
    positions = [(sampler.epoch, *sampler.next(1)) for _ in range(count)]
    fetched = rows.fetch([index for _, index in positions], sampler.peek(min(PREFETCH_ROWS, len(rows))))
    account.rows += count
    account.aside.update(rows.skip_reason(index) for (_, index), records in zip(positions, fetched, strict=True) if not records)
    return [(epoch, records) for (epoch, _), records in zip(positions, fetched, strict=True) if records]


def sample_records(rows: Rows, sampler: Sampler, count: int) -> list[tuple[int, Record]]:
    """Return (epoch, record) of the next `count` usable rows in the sampler's order; `sampler.size` is len(rows).

    A row that is set aside is replaced by the next one. A row of several records yields one per epoch, in turn. The result depends only on
    the sampler's state; since at least one row is usable, this terminates.
    """
    sampled: list[tuple[int, Record]] = []
    while len(sampled) < count:
        found = sample_rows(rows, sampler, count - len(sampled), RowCounts())
        sampled += [(epoch, records[epoch % len(records)]) for epoch, records in found]
    return sampled


class TaskRows:
    """A split of the generated tasks as a sequence: row i depends only on (split, seed, i).

    Args:
        name: `tasks:SPLIT`, or `writing:SPLIT` for the families whose records carry checks only.

    Raises:
        ValueError: there is no such split, or `data.families` of `writing:` has a family without checks.
    """

    def __init__(self, name: str, data: Data, seed: int):
        kind, _, split = name.partition(":")
        if split not in TASK_ROWS:
            raise ValueError(
                f"data: {name} is not a generated split; expected one of {', '.join(f'{kind}:{known}' for known in TASK_ROWS)}."
            )
        if name.startswith(WRITING):
            from rlsys.data.tasks import CHECKED

            if unknown := [family for family in data.families if family not in CHECKED]:
                raise ValueError(f"data.families: {name} has no {', '.join(unknown)}; expected some of {', '.join(CHECKED)}.")
            data = data.model_copy(update={"families": data.families or CHECKED})
        self.split, self.data, self.seed = split, data, TASK_SEEDS.get(split, seed)

    def __len__(self) -> int:
        return TASK_ROWS[self.split]

    def __getitem__(self, index: int) -> Record:
        from rlsys.data.tasks import generate

        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        data = self.data
        return next(generate(self.split, 1, self.seed, data.families, data.level, data.responses, start=index))

    def __iter__(self) -> Iterator[Record]:
        return (self[index] for index in range(len(self)))

    def scan(self, account: RowCounts) -> Iterator[Record]:
        for record in self:
            account.rows += 1
            yield record

    def skip_reason(self, index: int) -> str:
        raise LookupError(f"row {index}: every generated row is usable")

    def find(self, ids: Set[str]) -> Iterator[Record]:
        # Ids include the row number, so only these rows are generated.
        numbers = {int(match[1]) for name in ids if (match := re.match(rf"{self.split}-(\d+)-", name))}
        generated = (self[number] for number in sorted(numbers) if number < len(self))
        return (record for record in generated if record.id in ids)

    def fetch(self, indices: Sequence[int], upcoming: Sequence[int] = ()) -> list[list[Record]]:
        return [[self[index]] for index in indices]


def open_rows(source: Path, data: Data, seed: int) -> Rows:
    """Open the rows of one `source`: a file in `data.format`, or `tasks:SPLIT` or `writing:SPLIT`.

    Raises:
        rlsys.data.readers.DataError: the file is missing, unreadable, has no usable row or (with data.strict) has a malformed one.
        ValueError: there is no such split.
    """
    name = str(source)
    if name.startswith(GENERATED):
        return TaskRows(name, data, seed)
    from rlsys.data.readers import RecordFile

    return RecordFile(source, data.format, data.strict, data.columns, data.max_unusable)
