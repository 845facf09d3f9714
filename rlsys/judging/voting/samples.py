"""The judgements that were drawn for rows, as arrays; and random subsets of them, for curves over k."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Samples:
    """k judgements of n responses each, over any leading dimensions (rows, or rows and draws); k >= 1 and n >= 1.

    What is not known is None. A field that is given is finite wherever the sample parsed, and may be NaN elsewhere.

    Raises:
        ValueError: the shapes do not fit each other.
    """

    scores: Floats
    """[..., k, n], in the record's own order, whatever order the responses were shown in. All n are NaN where the text did not parse."""
    meta_reward: Floats | None = None
    """[..., k], the meta RM's logit that the judgement is correct."""
    logprob: Floats | None = None
    """[..., k], nats, summed over the generated tokens."""
    certainty: Floats | None = None
    """[..., k], self-certainty, the mean over the generated tokens (arXiv 2502.18581)."""
    tokens: Floats | None = None
    """[..., k], generated tokens."""

    def __post_init__(self) -> None:
        if self.scores.ndim < 2 or 0 in self.scores.shape[-2:]:
            raise ValueError(f"scores: expected shape [..., k, n], k and n at least 1; found {list(self.scores.shape)}.")
        for name in OPTIONAL:
            value = getattr(self, name)
            if value is not None and value.shape != self.scores.shape[:-1]:
                raise ValueError(f"{name}: expected shape {list(self.scores.shape[:-1])}, one per sample; found {list(value.shape)}.")

    @property
    def parsed(self) -> Bools:
        """[..., k]: whether the sample's text parsed."""
        return ~np.isnan(self.scores[..., 0])


OPTIONAL = tuple(field.name for field in fields(Samples))[1:]
"""The fields of `Samples` that may be unknown."""


def take(samples: Samples, index: NDArray[np.integer]) -> Samples:
    """The samples at `index`, integers [..., k'] below k: the k of each row is replaced by the dimensions of `index`.

    With rows [rows, k, n] and index [draws, k'], the result is [rows, draws, k', n]: each draw is one run over all rows.
    """
    taken = {name: np.take(value, index, axis=-1) for name in OPTIONAL if (value := getattr(samples, name)) is not None}
    return Samples(np.take(samples.scores, index, axis=-2), **taken)


def subsets(k_max: int, k: int, draws: int, seed: int) -> NDArray[np.int64]:
    """[draws, k]: in each draw, k different samples of 0 .. k_max - 1 in random order, a function of the arguments alone.

    A draw is the beginning of a permutation, so with equal k_max, draws and seed the subset of a smaller k opens that of a larger
    one. With k = k_max every draw holds all samples.

    Raises:
        ValueError: unless 1 <= k <= k_max.
    """
    if not 1 <= k <= k_max:
        raise ValueError(f"k = {k}: expected 1 to k_max = {k_max} samples.")
    permutations = np.random.default_rng(seed).permuted(np.tile(np.arange(k_max), (draws, 1)), axis=1)
    return permutations[:, :k]
