"""Turn totals into verdicts: which response is picked for each item, and whether that is correct."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rlsys.evaluation.benchmarks.core import Benchmark
from rlsys.judging.voting import Outcome, best, tied
from rlsys.judging.voting.verdict import NO_VERDICT


@dataclass(frozen=True)
class Verdicts:
    """Verdicts on all items of a benchmark, for all resamples at once."""

    benchmark: Benchmark
    totals: tuple[np.ndarray, ...]
    """For each item, float64 [resamples, n] in the record's own order; a row with NaN has no verdict."""
    pick: np.ndarray
    """int64 [items, resamples]: the response with the highest total, or NO_VERDICT. Ties are broken at random."""
    tied: np.ndarray
    """bool [items, resamples]: several responses share the highest total."""
    right: np.ndarray
    """bool [items, resamples]: the pick has the highest reward; False without a verdict."""
    reward: np.ndarray
    """float64 [items, resamples]: the reward of the pick; 0 without a verdict."""

    @property
    def resamples(self) -> int:
        items, resamples = self.pick.shape
        return int(resamples)

    def mean(self, values: np.ndarray) -> np.ndarray:
        """Average [items, resamples] over each cluster's items: float64 [resamples, clusters]."""
        counts = np.diff(self.benchmark.starts, append=len(self.benchmark.items))
        return (np.add.reduceat(values.astype(np.float64), self.benchmark.starts, axis=0) / counts[:, None]).T

    def every(self, values: np.ndarray) -> np.ndarray:
        """Return 1.0 where bool [items, resamples] holds for all of a cluster's items, else 0.0: [resamples, clusters]."""
        return np.logical_and.reduceat(values, self.benchmark.starts, axis=0).T.astype(np.float64)

    def agree(self, decisions: np.ndarray) -> np.ndarray:
        """Return 1.0 where all items of a cluster have a verdict and equal `decisions` [items, resamples], else 0.0."""
        counts = np.diff(self.benchmark.starts, append=len(self.benchmark.items))
        first = np.repeat(decisions[self.benchmark.starts], counts, axis=0)
        return self.every((decisions == first) & (self.pick != NO_VERDICT))


def verdicts(benchmark: Benchmark, totals: Sequence[np.ndarray], seed: int = 0) -> Verdicts:
    """Pick the highest total of every item and resample; ties: shuffle, then argmax (arXiv 2504.02495, section 5).

    Args:
        totals: for each item of `benchmark.items`, an array [resamples, n]; a row with NaN has no verdict.
        seed: for the shuffles, which also depend on the item's id and the resample.

    Raises:
        ValueError: there is not one array per item, or one has the wrong shape.
    """
    totals = _checked(benchmark, totals)
    items, shape = benchmark.items, (len(benchmark.items), len(totals[0]))
    pick, several, right, reward = np.empty(shape, int), np.empty(shape, bool), np.empty(shape, bool), np.empty(shape)
    sizes = np.array([item.record.n for item in items])
    for n in np.unique(sizes):
        members = np.flatnonzero(sizes == n)
        block = np.stack([totals[member] for member in members])  # [items, resamples, n]
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
    resamples = arrays[0].shape[0] if arrays[0].ndim else 0
    for item, array in zip(benchmark.items, arrays):
        if array.shape != (resamples, item.record.n) or not resamples:
            expected = f"[{resamples or 'resamples'}, {item.record.n}]"
            raise ValueError(f"benchmark {benchmark.name}, item {item.id}: expected totals of shape {expected}, found {list(array.shape)}.")
    return arrays
