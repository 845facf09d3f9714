"""Tables of samples read from JSON rows, and the verdicts on them.

A sample is {"order", "scores", "meta_reward"?, "logprob"?, "certainty"?, "tokens"?, ...}: `order[p]` is the index of the response shown
at place p, and `scores[p]` its score; scores are null after a parse failure. A row is one sample with an "id", or all samples of an id:
{"id", "samples": [sample, ...]}. Ids are distinguished by their "source", if a row has one. Other keys are ignored.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from rlsys.data.readers.fields import DataError, as_integer, as_list, as_number, as_object, optional_text, required, wrong
from rlsys.judging.voting.samples import OPTIONAL, Samples
from rlsys.judging.voting.strategy import Options, Strategy
from rlsys.judging.voting.verdict import NO_VERDICT, best, tied

CELLS = 1 << 20
"""Maximum number of scores aggregated at a time; bounds the memory of a strategy's intermediate results."""
MAX_MAGNITUDE = 1e100
"""Largest absolute score, reward or log-probability of a sample, so that sums and products do not overflow."""

Row = dict[str, Any]
_NAN = float("nan")


@dataclass
class _Columns:
    """All samples with n responses, in the order in which they were added."""

    owner: array[int] = field(default_factory=lambda: array("q"))
    scores: array[float] = field(default_factory=lambda: array("d"))
    optional: dict[str, array[float]] = field(default_factory=lambda: {name: array("d") for name in OPTIONAL})


class SampleTable:
    """Collects the samples of many ids, in any order, in about 50 + 8 n bytes per sample.

    Args:
        needs: fields that every parsed sample must have (`Strategy.needs`).
    """

    def __init__(self, needs: tuple[str, ...] = ()):
        self.needs = needs
        self.ids: dict[tuple[str | None, str | int], int] = {}
        """(source, id) -> position, in the order of first appearance."""
        self._whole: set[int] = set()
        """Positions whose samples were added in a single row."""
        self._responses: list[int] = []
        """Number of responses, by position."""
        self._columns: dict[int, _Columns] = {}

    def add(self, row: Row) -> None:
        """Add the sample or samples of a row.

        Raises:
            DataError: the row is invalid; the message names the key. The table must not be used afterwards.
        """
        row_id = required(row, "id", "text or an integer")
        if isinstance(row_id, bool) or not isinstance(row_id, str | int):
            raise wrong("id", "text or an integer", row_id)
        key = optional_text(row, "source"), row_id
        known = self.ids.get(key)
        if known in self._whole or (known is not None and "samples" in row):
            named = f"{row_id!r}" if key[0] is None else f"{row_id!r} of source {key[0]!r}"
            raise DataError(
                f"id: {named} is also the id of an earlier row, and one of the two has all samples of a record: two records that cannot be "
                "distinguished. Give each its own id, or a source; `rlsys judge` writes both.",
                key="id",
            )
        if "samples" not in row:
            return self._add(key, row, "")
        for number, sample in enumerate(as_list(row["samples"], "samples")):
            self._add(key, as_object(sample, f"samples[{number}]"), f"samples[{number}].")
        self._whole.add(self.ids[key])

    def _add(self, key: tuple[str | None, str | int], sample: Row, prefix: str) -> None:
        order = as_list(required(sample, "order", "the index of the response at each place", prefix), f"{prefix}order")
        n = len(order)
        if set(map(type, order)) != {int} or sorted(order) != list(range(n)):
            expected = f"each of 0 .. {n - 1} once, the index of the response at each place"
            raise DataError(f"{prefix}order: expected {expected}, found {ascii(order)[:60]}.", key=f"{prefix}order")
        position = self.ids.setdefault(key, len(self.ids))
        if position == len(self._responses):
            self._responses.append(n)
        if n != self._responses[position]:
            known = self._responses[position]
            raise DataError(f"{prefix}order: {n} responses, but earlier samples of id {key[1]!r} have {known}.", key=f"{prefix}order")
        scores = self._scores(sample, n, prefix)
        columns = self._columns.setdefault(n, _Columns())
        columns.owner.append(position)
        columns.scores.extend([_NAN] * n if scores is None else [score for _, score in sorted(zip(order, scores))])
        for name, column in columns.optional.items():
            column.append(self._optional(sample, name, prefix, scores is not None and name in self.needs))

    def _scores(self, sample: Row, n: int, prefix: str) -> list[float] | None:
        key = f"{prefix}scores"
        if "scores" not in sample:
            raise DataError(f"{key}: expected one number per response, or null for a parse failure, found nothing.", key=key)
        scores = sample["scores"]
        if scores is None:
            return None
        if not isinstance(scores, list) or len(scores) != n:
            raise wrong(key, f"a list of {n}, one score per place of order, or null", scores)
        return [_bounded_number(score, f"{key}[{place}]") for place, score in enumerate(scores)]

    def _optional(self, sample: Row, name: str, prefix: str, needed: bool) -> float:
        """Return the number under `name`, or NaN if it is unknown."""
        value = sample.get(name)
        if value is None and not needed:
            return _NAN
        if value is None:
            key = prefix + name
            raise DataError(f"{key}: the strategy needs a number in every sample that parsed, found nothing.", key=key)
        return as_integer(value, prefix + name, 0, 1 << 40) if name == "tokens" else _bounded_number(value, prefix + name)

    def __len__(self) -> int:
        """Return the number of samples in the table."""
        return sum(len(columns.owner) for columns in self._columns.values())

    def groups(self, k: int | None = None) -> Iterator[tuple[list[int], Samples]]:
        """Yield (positions in `ids` [rows], samples [rows, k, n]) of ids with equal k and n, in portions of bounded size.

        Args:
            k: use the first k samples of each id; None means all.

        Raises:
            DataError: an id has fewer than k samples.
        """
        names = [name for _, name in self.ids]
        for n, columns in self._columns.items():
            owner = np.frombuffer(columns.owner, np.int64)
            by_owner = np.argsort(owner, kind="stable")
            positions, starts, counts = np.unique(owner[by_owner], return_index=True, return_counts=True)
            if k is not None:
                if (counts < k).any():
                    short = counts.argmin()
                    found = f"id {names[positions[short]]!r}: {counts[short]} samples, fewer than k = {k}"
                    raise DataError(f"{found}; lower k, or leave it out to use all samples of each id.")
                counts = np.full_like(counts, k)
            scores = np.frombuffer(columns.scores).reshape(-1, n)
            for size in np.unique(counts):
                chosen = np.flatnonzero(counts == size)
                for portion in np.split(chosen, range(0, chosen.size, max(1, CELLS // (size * n)))[1:]):
                    index = by_owner[starts[portion, None] + np.arange(size)]
                    optional = {name: np.frombuffer(column)[index] for name, column in columns.optional.items()}
                    known = {name: value for name, value in optional.items() if not np.isnan(value).all()}
                    yield positions[portion].tolist(), Samples(scores[index], **known)


def decide(table: SampleTable, strategy: Strategy, options: Options, k: int | None = None, seed: int = 0) -> Iterator[Row]:
    """Yield the verdict on each id of the table, in the order of first appearance, with ties broken by (seed, id).

    {id; source, if the rows have one; totals: one per response in the record's own order, null if nothing parsed; best: index of the best
    response, null without a verdict; tied: whether another response had the same total; abstained; samples: number of samples used;
    parsed: number of those that parsed; tokens: of those, null if unknown}

    Raises:
        ValueError: as `SampleTable.groups` and the strategy raise.
    """
    names = [name for _, name in table.ids]
    verdicts: list[tuple[Any, ...]] = [()] * len(names)
    for positions, samples in table.groups(k):
        outcome = strategy(samples, options)
        choice = best(outcome, [(seed, names[position]) for position in positions])
        tokens = np.full(len(positions), _NAN) if samples.tokens is None else np.where(outcome.used, samples.tokens, 0.0).sum(axis=-1)
        columns = (
            outcome.totals,
            choice,
            tied(outcome.totals).sum(axis=-1) > 1,
            outcome.abstained,
            outcome.used.sum(axis=-1),
            (outcome.used & samples.parsed).sum(axis=-1),
            tokens,
        )
        for position, *verdict in zip(positions, *(column.tolist() for column in columns)):
            verdicts[position] = verdict
    for (source, name), (totals, choice, several, abstained, spent, parsed, tokens) in zip(table.ids, verdicts):
        yield {
            "id": name,
            **({} if source is None else {"source": source}),
            "totals": None if math.isnan(totals[0]) else totals,
            "best": None if choice == NO_VERDICT else choice,
            "tied": several,
            "abstained": abstained,
            "samples": spent,
            "parsed": parsed,
            "tokens": None if math.isnan(tokens) else int(tokens),
        }


def _bounded_number(value: Any, key: str) -> float:
    """Return a number whose sums over samples cannot overflow."""
    number = as_number(value, key)
    if abs(number) > MAX_MAGNITUDE:
        raise wrong(key, f"a number up to {MAX_MAGNITUDE:g}", value)
    return number
