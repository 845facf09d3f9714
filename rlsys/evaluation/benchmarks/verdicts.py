"""From totals to verdicts: which response was picked for each item, and whether that was right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rlsys.evaluation.benchmarks.core import Benchmark
from rlsys.judging.voting import Outcome, best, tied
from rlsys.judging.voting.verdict import NO_VERDICT


@dataclass(frozen=True)
class Verdicts:
    """Verdicts on all items of a benchmark, for every draw at once."""

    benchmark: Benchmark
    totals: tuple[np.ndarray, ...]
    """Per item float64 [draws, n], in the record's own order; a row with NaN is no verdict."""
    pick: np.ndarray
    """int64 [items, draws]: the response with the highest total, or NO_VERDICT. Ties at the top are broken at random."""
    tied: np.ndarray
    """bool [items, draws]: another response had the same highest total."""
    right: np.ndarray
    """bool [items, draws]: the pick has the highest reward; False without a verdict."""
    reward: np.ndarray
    """float64 [items, draws]: the reward of the pick; 0 without a verdict."""

    @property
    def draws(self) -> int:
        return self.pick.shape[1]

    def mean(self, values: np.ndarray) -> np.ndarray:
        """[items, draws] -> float64 [draws, units]: the mean over each unit's items."""
        counts = np.diff(self.benchmark.starts, append=len(self.benchmark.items))
        return (np.add.reduceat(values.astype(np.float64), self.benchmark.starts, axis=0) / counts[:, None]).T

    def every(self, values: np.ndarray) -> np.ndarray:
        """bool [items, draws] -> float64 [draws, units]: 1 where it holds for each of the unit's items, else 0."""
        return np.logical_and.reduceat(values, self.benchmark.starts, axis=0).T.astype(np.float64)

    def agree(self, decisions: np.ndarray) -> np.ndarray:
        """float64 [draws, units]: 1 where all items of the unit have a verdict and their `decisions` [items, draws] are equal, else 0."""
        counts = np.diff(self.benchmark.starts, append=len(self.benchmark.items))
        first = np.repeat(decisions[self.benchmark.starts], counts, axis=0)
        return self.every((decisions == first) & (self.pick != NO_VERDICT))


def verdicts(benchmark: Benchmark, totals: Sequence[np.ndarray], seed: int = 0) -> Verdicts:
    """Pick the highest total of every item and draw; ties at the top: shuffle, then argmax (arXiv 2504.02495, section 5).

    Args:
        totals: per item of `benchmark.items` an array [draws, n]; a row with NaN is no verdict.
        seed: the shuffles depend on it, the item's id and the draw.

    Raises:
        ValueError: not one array per item, or one of another shape.
    """
    totals = _checked(benchmark, totals)
    items, draws = benchmark.items, len(totals[0])
    pick, several, right = np.empty((len(items), draws), int), np.empty((len(items), draws), bool), np.empty((len(items), draws), bool)
    reward = np.empty((len(items), draws))
    sizes = np.array([item.record.n for item in items])
    for n in np.unique(sizes):
        members = np.flatnonzero(sizes == n)
        block = np.stack([totals[member] for member in members])  # [items, draws, n]
        unused, none_abstained = np.ones((*block.shape[:2], 0), bool), np.zeros(block.shape[:2], bool)
        chosen = best(Outcome(block, unused, none_abstained), [(seed, items[member].id) for member in members])
        rewards = np.array([items[member].record.rewards for member in members])  # [items, n]
        worth = np.take_along_axis(rewards, chosen, axis=1)
        given = chosen != NO_VERDICT
        pick[members], several[members] = chosen, tied(block).sum(axis=2) > 1
        right[members] = given & (worth == rewards.max(axis=1, keepdims=True))
        reward[members] = np.where(given, worth, 0.0)
    return Verdicts(benchmark, totals, pick, several, right, reward)


def _checked(benchmark: Benchmark, totals: Sequence[np.ndarray]) -> tuple[np.ndarray, ...]:
    if len(totals) != len(benchmark.items):
        raise ValueError(f"benchmark {benchmark.name}: expected totals for its {len(benchmark.items)} items, found {len(totals)}.")
    arrays = tuple(np.asarray(array, dtype=np.float64) for array in totals)
    draws = arrays[0].shape[0] if arrays[0].ndim else 0
    for item, array in zip(benchmark.items, arrays):
        if array.shape != (draws, item.record.n) or not draws:
            expected = f"[{draws or 'draws'}, {item.record.n}]"
            raise ValueError(f"benchmark {benchmark.name}, item {item.id}: expected totals of shape {expected}, found {list(array.shape)}.")
    return arrays
