"""Sampled judgements as arrays, and random subsets of them for curves over k."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Samples:
    """k judgements of n responses each, over any leading dimensions (rows, or rows and draws); k >= 1 and n >= 1.

    Unknown fields are None. Known fields are finite for samples that parsed, and may be NaN for parse failures.

    Raises:
        ValueError: the shapes are inconsistent.
    """

    scores: Floats
    """[..., k, n], in the record's own order, not the order shown. All n are NaN after a parse failure."""
    meta_reward: Floats | None = None
    """[..., k], the meta RM's logit that the judgement is correct."""
    logprob: Floats | None = None
    """[..., k], in nats, summed over the generated tokens."""
    certainty: Floats | None = None
    """[..., k], self-certainty: mean over the generated tokens (arXiv 2502.18581)."""
    tokens: Floats | None = None
    """[..., k], number of generated tokens."""

    def __post_init__(self) -> None:
        if self.scores.ndim < 2 or 0 in self.scores.shape[-2:]:
            raise ValueError(f"scores: expected shape [..., k, n], k and n at least 1; found {list(self.scores.shape)}.")
        for name in OPTIONAL:
            value = getattr(self, name)
            if value is not None and value.shape != self.scores.shape[:-1]:
                raise ValueError(f"{name}: expected shape {list(self.scores.shape[:-1])}, one per sample; found {list(value.shape)}.")

    @property
    def parsed(self) -> Bools:
        """[..., k]: whether the sample parsed."""
        return ~np.isnan(self.scores[..., 0])


OPTIONAL = tuple(field.name for field in fields(Samples))[1:]
"""Fields of `Samples` that may be unknown."""


def take(samples: Samples, index: NDArray[np.integer]) -> Samples:
    """Select the samples at `index`, integers [..., k'] below k; the dimensions of `index` replace the dimension k.

    With scores [rows, k, n] and index [draws, k'], the result has scores [rows, draws, k', n].
    """
    taken = {name: np.take(value, index, axis=-1) for name in OPTIONAL if (value := getattr(samples, name)) is not None}
    return Samples(np.take(samples.scores, index, axis=-2), **taken)


def subsets(k_max: int, k: int, draws: int, seed: int) -> NDArray[np.int64]:
    """Draw random subsets, [draws, k]: k distinct indices of 0 .. k_max - 1 in random order. Depends on the arguments alone.

    Each draw is a prefix of a permutation: with equal k_max, draws and seed, a smaller k gives a prefix of the subset for a larger
    k. With k = k_max every draw contains all samples.

    Raises:
        ValueError: unless 1 <= k <= k_max.
    """
    if not 1 <= k <= k_max:
        raise ValueError(f"k = {k}: expected 1 to k_max = {k_max} samples.")
    permutations = np.random.default_rng(seed).permuted(np.tile(np.arange(k_max), (draws, 1)), axis=1)
    return permutations[:, :k]
