"""What a benchmark is: items to be judged, the units they count for, and the scheme that scores them."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from rlsys.data.readers import Report
from rlsys.data.records import Record

if TYPE_CHECKING:
    from rlsys.evaluation.benchmarks.schemes import Scheme

SCORES = (1, 10)
"""Lowest and highest score of every item, a single response's too (in training that is 0..1: `rlsys.rewards.extraction.score_range`)."""


@dataclass(frozen=True)
class Item:
    """One input of the judge."""

    id: str
    """Unique within the benchmark."""
    record: Record
    """Its rewards are the ground truth. Several responses may share the highest one (Reward Bench 2 Ties, best-of-K, a tied vote)."""
    unit: int
    """The unit it counts for: an index into `Benchmark.units`."""
    subset: str
    order: tuple[int, ...] | None = None
    """The order to show the responses in (order[p]: the response at place p), where the benchmark fixes one; None: shuffled afresh."""
    pairs: tuple[tuple[int, int], ...] | None = None
    """(better, worse) of the responses, where the benchmark scores pairs within one input."""


@dataclass(frozen=True)
class Unit:
    """What is counted once, and resampled as a whole: a row of the benchmark's file (in Ties, the two rows of one prompt)."""

    id: str
    subset: str
    section: str
    """The group of subsets it belongs to; its subset where the benchmark has no such groups."""


@dataclass(frozen=True)
class Rows:
    """What became of the rows of a benchmark's files: `read` is the sum of the four after it."""

    read: int
    used: int
    beyond_limit: int
    no_unique_best: int
    """Ties and splits, where the benchmark scores none."""
    malformed: int
    """`Benchmark.report` says why."""
    passed_over: tuple[tuple[str, str], ...] = ()
    """(file, why) of files that hold no rows of the benchmark; theirs are not counted."""


@dataclass(frozen=True)
class Benchmark:
    """A benchmark as read. The items of a unit are neighbours, and units are in the order of their first items."""

    name: str
    items: tuple[Item, ...]
    units: tuple[Unit, ...]
    scheme: Scheme
    """The published scoring."""
    best_first: bool = False
    """The format lists the best response first, so that the order in the file says nothing about presentation."""
    report: Report = field(default_factory=Report, compare=False)
    """What reading came to: rows, those set aside, and why."""
    rows: Rows = field(default=Rows(0, 0, 0, 0, 0), compare=False)

    @cached_property
    def starts(self) -> np.ndarray:
        """int64 [units]: the index of each unit's first item."""
        return np.searchsorted([item.unit for item in self.items], np.arange(len(self.units)))

    @cached_property
    def groups(self) -> dict[str, np.ndarray]:
        """Section or subset name -> int64 indices of its units, sections first. A name that is both means the same units."""
        names = [(unit.section, unit.subset) for unit in self.units]
        members: dict[str, list[int]] = {name: [] for column in zip(*names) for name in column}
        for index, pair in enumerate(names):
            for name in set(pair):
                members[name].append(index)
        return {name: np.array(indices) for name, indices in members.items()}
