"""The training rows of a run: one source, or a mixture of several in exact proportions, with counts of what became of every row.

Sources of a mixture take turns by the Webster/Sainte-Lague method: the next one is the source with the lowest (used + 1/2) / weight. After
any number of records each source is within about one record of its share, and has exactly its share wherever all shares are whole
numbers. A row that cannot be used is replaced by the next row of the same source.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from rlsys.config.sources import Data, Source
from rlsys.data.accounts import RowCounts, sum_counts
from rlsys.data.datasets import Rows, open_rows, sample_rows
from rlsys.data.readers import DataError
from rlsys.data.records import Record
from rlsys.data.sampler import Sampler
from rlsys.prompts.rendering import seed_for

CHUNK_ROWS = 256
"""Rows read per call when a whole epoch is read."""

EpochRecords = list[tuple[int, Record]]
"""(epoch, record) of each sampled record."""
Convert = Callable[[EpochRecords, RowCounts], list[Any]]
"""Turns sampled records into the items to return. It may drop some, which it then counts in the `RowCounts`."""


def keep_records(sampled: EpochRecords, account: RowCounts) -> list[Record]:
    """Return every record unchanged."""
    return [record for _, record in sampled]


@dataclass
class MixturePart:
    """One source of a mixture: its rows, the position in their order, and the counts of the rows read."""

    name: str
    rows: Rows
    sampler: Sampler
    weight: float = 1.0
    prefix: str = ""
    """Prefix of `Record.source`, so that records of two parts differ in it."""
    account: RowCounts = field(default_factory=RowCounts)

    def take(self, count: int, convert: Convert) -> list[Any]:
        """Return the next `count` items that `convert` yields.

        Raises:
            DataError: a whole epoch (one per record of a row) yielded none.
        """
        items: list[Any] = []
        aside, unused_rows, max_records = Counter(self.account.aside), 0, 1
        while len(items) < count:
            missing = count - len(items)
            rows = sample_rows(self.rows, self.sampler, missing, self.account)
            max_records = max([max_records, *(len(records) for _, records in rows)])
            kept = self._convert(rows, convert)
            items += kept
            unused_rows = 0 if kept else unused_rows + missing
            if unused_rows > max_records * len(self.rows):
                counts = ", ".join(f"{number:,} {reason}" for reason, number in (self.account.aside - aside).items())
                raise DataError(
                    f"{self.name}: no row is left to use ({counts}). Raise prompt.max_tokens, exclude fewer rows (data.exclude), or "
                    "remove this source."
                )
        return items

    def once(self, convert: Convert) -> Iterator[Any]:
        """Yield the items of one epoch, from its beginning."""
        self.sampler = Sampler(self.sampler.size, self.sampler.seed)
        while self.sampler.epoch == 0:
            count = min(CHUNK_ROWS, self.sampler.size - self.sampler.position)
            yield from self._convert(sample_rows(self.rows, self.sampler, count, self.account), convert)

    def scan(self) -> Iterator[Record]:
        """Yield all usable records in the source's own order; the caller counts what becomes of each."""
        return map(self._with_prefix, self.rows.scan(self.account))

    def find(self, ids: Set[str]) -> Iterator[Record]:
        """Yield the records with one of the `ids`, without counting them; all rows are read for this, except generated ones."""
        return map(self._with_prefix, self.rows.find(ids))

    def _convert(self, rows: list[tuple[int, list[Record]]], convert: Convert) -> list[Any]:
        items = convert([(epoch, self._with_prefix(records[epoch % len(records)])) for epoch, records in rows], self.account)
        self.account.used += len(items)
        return items

    def _with_prefix(self, record: Record) -> Record:
        return replace(record, source=self.prefix + record.source) if self.prefix else record

    def state_dict(self) -> dict[str, Any]:
        return self.sampler.state_dict() | {"account": self.account.to_json()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        state = dict(state)
        # States saved by earlier versions have no account.
        self.account = RowCounts.from_json(state.pop("account", RowCounts().to_json()))
        self.sampler.load_state_dict(state)


class Mixture:
    """One source or several. What is sampled depends only on the seed and the mixture's state."""

    def __init__(self, parts: Sequence[MixturePart]):
        self.parts = list(parts)

    def __len__(self) -> int:
        """Number of rows of all sources, usable or not."""
        return sum(len(part.rows) for part in self.parts)

    @property
    def account(self) -> RowCounts:
        """Counts of all sources together."""
        return sum_counts(part.account for part in self.parts)

    def fresh(self) -> Mixture:
        """Return a mixture of the same sources at the beginning of their order, with zero counts."""
        parts = [replace(part, sampler=Sampler(part.sampler.size, part.sampler.seed), account=RowCounts()) for part in self.parts]
        return Mixture(parts)

    def take(self, count: int, convert: Convert = keep_records) -> list[Any]:
        """Return the next `count` items that `convert` yields, alternating between sources as if taken one by one.

        Raises:
            DataError: as `MixturePart.take`.
        """
        turns = self._turns(count)
        items = [iter(part.take(turns.count(i), convert)) for i, part in enumerate(self.parts)]
        return [next(items[i]) for i in turns]

    def once(self, convert: Convert = keep_records) -> Iterator[Any]:
        """Yield the items of one epoch of every source; the sources take turns until all are exhausted."""
        remaining = {i: part.once(convert) for i, part in enumerate(self.parts)}
        yielded = [0] * len(self.parts)
        while remaining:
            turn = self._next(yielded, list(remaining))
            try:
                item = next(remaining[turn])
            except StopIteration:
                del remaining[turn]
                continue
            yielded[turn] += 1
            yield item

    def scan(self) -> Iterator[tuple[MixturePart, Record]]:
        """Yield (part, record) for all usable records in their sources' own order, one of each source in turn."""
        remaining = [(part, part.scan()) for part in self.parts]
        while remaining:
            for part, records in list(remaining):
                record = next(records, None)
                if record is None:
                    remaining.remove((part, records))
                else:
                    yield part, record

    def part_of(self, source: str) -> MixturePart:
        """Return the part that a record with this source comes from."""
        return max((part for part in self.parts if source.startswith(part.prefix)), key=lambda part: len(part.prefix))

    def metrics(self, groups: Sequence[tuple[str, float]]) -> dict[str, float]:
        """Return {source/NAME/rows, source/NAME/reward} of a step: rows of each part of a mixture, and their mean reward if any.

        Args:
            groups: (source, mean reward of its samples) of each row of the step.
        """
        if len(self.parts) == 1:
            return {}
        rewards: dict[str, list[float]] = {part.name: [] for part in self.parts}
        for source, reward in groups:
            rewards[self.part_of(source).name].append(reward)
        rows = {f"source/{name}/rows": len(own) for name, own in rewards.items()}
        return rows | {f"source/{name}/reward": sum(own) / len(own) for name, own in rewards.items() if own}

    def state_dict(self) -> dict[str, Any]:
        """Return the sampler state and counts of every source; for a single source they are at the top level."""
        if len(self.parts) == 1:
            return self.parts[0].state_dict()
        return {"sources": {part.name: part.state_dict() for part in self.parts}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state`.

        Raises:
            ValueError: it belongs to other sources, or to another number of rows or seed.
        """
        states = state.get("sources", {self.parts[0].name: state} if len(self.parts) == 1 else {})
        if states.keys() != {part.name for part in self.parts}:
            own, saved = (", ".join(names) or "a single file" for names in ([part.name for part in self.parts], states))
            raise ValueError(f"the saved run sampled {saved}, this one samples {own}: restore data.train, or start a new run folder.")
        for part in self.parts:
            part.load_state_dict(states[part.name])

    def _turns(self, count: int) -> list[int]:
        """Return the index of the part whose turn each of the next `count` items is."""
        used = [part.account.used for part in self.parts]
        turns = []
        for _ in range(count):
            turn = self._next(used, range(len(self.parts)))
            used[turn] += 1
            turns.append(turn)
        return turns

    def _next(self, used: Sequence[int], candidates: Sequence[int]) -> int:
        return min(candidates, key=lambda i: ((used[i] + 0.5) / self.parts[i].weight, i))


def data_report(train: Mixture, heldout: Mixture) -> dict[str, Any]:
    """Return the content of data_report.json: {train, heldout}, each {source name: {rows_in_source, rows, used, set_aside, file?}}.

    `rows` counts the rows sampled (train; again in each epoch) or read (held out) over all restarts of the run; used and set_aside (by
    reason) add up to it. `file` is `rlsys.data.readers.Report`, with messages, of the rows seen since the process started.
    """

    def entry(part: MixturePart) -> dict[str, Any]:
        report = getattr(part.rows, "report", None)
        file = {} if report is None else {"file": report.to_json()}
        return {"rows_in_source": len(part.rows), **part.account.to_json(), **file}

    return {name: {part.name: entry(part) for part in mixture.parts} for name, mixture in (("train", train), ("heldout", heldout))}


def without_files(report: dict[str, Any]) -> dict[str, Any]:
    """Return the result of `data_report` without its `file` entries."""

    def plain(part: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in part.items() if name != "file"}

    return {side: {name: plain(part) for name, part in report[side].items()} for side in ("train", "heldout")}


def single_source(rows: Rows, seed: int, name: str = "") -> Mixture:
    """Return a mixture of a single source, sampled in the order of `seed`."""
    return Mixture([MixturePart(name, rows, Sampler(len(rows), seed))])


def open_mixture(data: Data, which: Literal["train", "heldout"], seed: int) -> Mixture:
    """Open the rows of `data.train` or `data.heldout`; each of several sources has its own order.

    Raises:
        rlsys.data.readers.DataError, ValueError: as `open_rows`.
    """
    sources = data.sources(which)
    if len(sources) == 1:
        return single_source(open_source_rows(sources[0], data, seed), seed, str(sources[0].path))
    parts = []
    for source in sources:
        rows = open_source_rows(source, data, seed)
        name = source.name or str(source.path)
        sampler = Sampler(len(rows), seed_for("mixture", seed, name))
        parts.append(MixturePart(name, rows, sampler, source.weight, f"{name}/"))
    return Mixture(parts)


def open_source_rows(source: Source, data: Data, seed: int) -> Rows:
    """Open the rows of one of `data.sources`; raises as `open_rows`."""
    return open_rows(source.path, data.model_copy(update={"format": source.format, "columns": source.columns}), seed)
