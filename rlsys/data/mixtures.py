"""Where a run's records come from: one source or several, drawn in a seed's order and in exact shares, with an account of every row.

Sources of a mixture take turns by the method of Webster and Sainte-Lague: next is the one with the lowest (used + 1/2) / weight. So after
any number of records each source has had its share to within about one, and exactly its share wherever all shares are whole numbers. A row
that cannot be used gives its turn to the next row of the same source.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from rlsys.config.sources import Data, Source
from rlsys.data.accounts import RowCounts, sum_counts
from rlsys.data.datasets import Rows, open_rows, sample_rows
from rlsys.data.readers import DataError
from rlsys.data.records import Record
from rlsys.data.sampler import Sampler
from rlsys.prompts.rendering import seed_for

AT_ONCE = 256
"""Rows drawn together where all of them are."""

Found = list[tuple[int, Record]]
"""(epoch, record)."""
Keep = Callable[[Found, RowCounts], list[Any]]
"""What is made of records that were drawn; fewer, where some are set aside, which it counts in the account."""


def keep_records(found: Found, account: RowCounts) -> list[Record]:
    """Every record, as it is."""
    return [record for _, record in found]


@dataclass
class MixturePart:
    """One source: its rows, where their order stands, and what became of those that were read."""

    name: str
    rows: Rows
    sampler: Sampler
    weight: float = 1.0
    prefix: str = ""
    """What stands before the source of its records, so that those of two parts are told apart."""
    account: RowCounts = field(default_factory=RowCounts)

    def take(self, count: int, keep: Keep) -> list[Any]:
        """The next `count` that `keep` keeps.

        Raises:
            DataError: a whole epoch (of a row's records, all) went by without one.
        """
        taken: list[Any] = []
        aside, barren, most = Counter(self.account.aside), 0, 1
        while len(taken) < count:
            places = count - len(taken)
            drawn = sample_rows(self.rows, self.sampler, places, self.account)
            most = max([most, *(len(records) for _, records in drawn)])
            kept = self._kept(drawn, keep)
            taken += kept
            barren = 0 if kept else barren + places
            if barren > most * len(self.rows):
                told = ", ".join(f"{number:,} {reason}" for reason, number in (self.account.aside - aside).items())
                raise DataError(
                    f"{self.name}: no row is left to use ({told}). Raise prompt.max_tokens, leave out fewer rows (data.exclude), or do "
                    "without this source."
                )
        return taken

    def once(self, keep: Keep) -> Iterator[Any]:
        """What is kept of one epoch, from its beginning."""
        self.sampler = Sampler(self.sampler.size, self.sampler.seed)
        while self.sampler.epoch == 0:
            places = min(AT_ONCE, self.sampler.size - self.sampler.position)
            yield from self._kept(sample_rows(self.rows, self.sampler, places, self.account), keep)

    def scan(self) -> Iterator[Record]:
        """All usable records in the source's own order; what becomes of each is up to whoever asks for the next one."""
        return map(self._own, self.rows.scan(self.account))

    def _kept(self, drawn: list[tuple[int, list[Record]]], keep: Keep) -> list[Any]:
        kept = keep([(epoch, self._own(records[epoch % len(records)])) for epoch, records in drawn], self.account)
        self.account.used += len(kept)
        return kept

    def _own(self, record: Record) -> Record:
        return replace(record, source=self.prefix + record.source) if self.prefix else record

    def state_dict(self) -> dict[str, Any]:
        return self.sampler.state_dict() | {"account": self.account.to_json()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        state = dict(state)
        # A run of before there were accounts has none.
        self.account = RowCounts.from_json(state.pop("account", RowCounts().to_json()))
        self.sampler.load_state_dict(state)


class Mixture:
    """One source or several. What is drawn depends on the seed and on where the mixture stands alone."""

    def __init__(self, parts: Sequence[MixturePart]):
        self.parts = list(parts)

    def __len__(self) -> int:
        """Rows of all sources, usable or not."""
        return sum(len(part.rows) for part in self.parts)

    @property
    def account(self) -> RowCounts:
        """Of all sources together."""
        return sum_counts(part.account for part in self.parts)

    def fresh(self) -> Mixture:
        """The same sources, from the beginning of their order, with nothing counted."""
        parts = [replace(part, sampler=Sampler(part.sampler.size, part.sampler.seed), account=RowCounts()) for part in self.parts]
        return Mixture(parts)

    def take(self, count: int, keep: Keep = keep_records) -> list[Any]:
        """The next `count` that `keep` keeps, the sources in turn, as they would be if they were taken one by one.

        Raises:
            DataError: as `MixturePart.take`.
        """
        turns = self._turns(count)
        taken = [iter(part.take(turns.count(place), keep)) for place, part in enumerate(self.parts)]
        return [next(taken[place]) for place in turns]

    def once(self, keep: Keep = keep_records) -> Iterator[Any]:
        """What is kept of one epoch of every source; the sources take turns until each has come to its end."""
        left = {place: part.once(keep) for place, part in enumerate(self.parts)}
        given = [0] * len(self.parts)
        while left:
            place = self._next(given, list(left))
            try:
                one = next(left[place])
            except StopIteration:
                del left[place]
                continue
            given[place] += 1
            yield one

    def scan(self) -> Iterator[tuple[MixturePart, Record]]:
        """All usable records in their sources' own order, one of each source in turn, with the part that each belongs to."""
        left = [(part, part.scan()) for part in self.parts]
        while left:
            for one in list(left):
                record = next(one[1], None)
                if record is None:
                    left.remove(one)
                else:
                    yield one[0], record

    def part_of(self, source: str) -> MixturePart:
        """The part that a record with this source comes from."""
        return max((part for part in self.parts if source.startswith(part.prefix)), key=lambda part: len(part.prefix))

    def metrics(self, groups: Sequence[tuple[str, float]]) -> dict[str, float]:
        """{source/NAME/rows, source/NAME/reward} of a step: rows of each part of a mixture, and their mean reward where there are any.

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
        """Where every source stands, and its account; of one source alone what `Sampler.state_dict` says, and its account."""
        if len(self.parts) == 1:
            return self.parts[0].state_dict()
        return {"sources": {part.name: part.state_dict() for part in self.parts}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state`.

        Raises:
            ValueError: it belongs to other sources, or to rows of another number or seed.
        """
        states = state.get("sources", {self.parts[0].name: state} if len(self.parts) == 1 else {})
        if states.keys() != {part.name for part in self.parts}:
            own, saved = (", ".join(names) or "one file alone" for names in ([part.name for part in self.parts], states))
            raise ValueError(f"the saved run drew from {saved}, this one draws from {own}: restore data.train, or start a new run folder.")
        for part in self.parts:
            part.load_state_dict(states[part.name])

    def _turns(self, count: int) -> list[int]:
        """Whose turn each of the next `count` is."""
        used = [part.account.used for part in self.parts]
        turns = []
        for _ in range(count):
            place = self._next(used, range(len(self.parts)))
            used[place] += 1
            turns.append(place)
        return turns

    def _next(self, used: Sequence[int], places: Sequence[int]) -> int:
        return min(places, key=lambda place: ((used[place] + 0.5) / self.parts[place].weight, place))


def data_report(train: Mixture, heldout: Mixture) -> dict[str, Any]:
    """What data_report.json holds: {train, heldout}, each by the name of the source {rows_in_source, rows, used, set_aside, file?}.

    `rows` are those that were drawn (train; again in each epoch) or read (held out), in all starts of the run; used and set_aside (by
    reason) add up to them. `file` is `rlsys.data.readers.Report`, of the rows that were seen since the process began, with messages.
    """

    def told(part: MixturePart) -> dict[str, Any]:
        report = getattr(part.rows, "report", None)
        file = {} if report is None else {"file": report.to_json()}
        return {"rows_in_source": len(part.rows), **part.account.to_json(), **file}

    return {name: {part.name: told(part) for part in mixture.parts} for name, mixture in (("train", train), ("heldout", heldout))}


def without_files(report: dict[str, Any]) -> dict[str, Any]:
    """The accounts alone of what `data_report` gave."""

    def plain(part: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in part.items() if name != "file"}

    return {side: {name: plain(part) for name, part in report[side].items()} for side in ("train", "heldout")}


def single_source(rows: Rows, seed: int, name: str = "") -> Mixture:
    """A single source, drawn in the order of `seed`."""
    return Mixture([MixturePart(name, rows, Sampler(len(rows), seed))])


def open_mixture(data: Data, which: Literal["train", "heldout"], seed: int) -> Mixture:
    """The rows of `data.train` or `data.heldout`. Of several sources each has an order of its own.

    Raises:
        rlsys.data.readers.DataError, ValueError: as `open_rows`.
    """
    sources = data.sources(which)
    if len(sources) == 1:
        return single_source(open_source_rows(sources[0], data, seed), seed, str(sources[0].path))
    parts = []
    for source in sources:
        rows = open_source_rows(source, data, seed)
        sampler = Sampler(len(rows), seed_for("mixture", seed, source.name))
        parts.append(MixturePart(source.name, rows, sampler, source.weight, f"{source.name}/"))
    return Mixture(parts)


def open_source_rows(source: Source, data: Data, seed: int) -> Rows:
    """The rows of one of `data.sources`; raises as `open_rows`."""
    return open_rows(source.path, data.model_copy(update={"format": source.format, "columns": source.columns}), seed)
