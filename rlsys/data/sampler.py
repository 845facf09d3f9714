"""The order in which rows are drawn: a fresh permutation per epoch, a function of the seed alone, resumable from four integers.

No permutation is held. Each index is computed by a swap-or-not shuffle (Hoang, Morris and Rogaway, "An Enciphering Scheme Based on a Card
Shuffle", CRYPTO 2012, arXiv 1208.1176): every round pairs the cards x and (key - x) mod size, and a pseudo-random bit of the pair says
whether they change places. It permutes any range, small ones included, in some 100 rounds, worked out for a block of indices at a time.
"""

from __future__ import annotations

from functools import lru_cache
from hashlib import blake2b

import numpy as np

BLOCK = 4096
"""Indices worked out at a time."""


class Sampler:
    """Endless indices 0 .. size - 1: every index exactly once per epoch, in another order each epoch.

    Args:
        size: number of rows, 1 to 2^62.
        seed: any integer; equal (size, seed) give equal orders on every machine and in every process.
    """

    def __init__(self, size: int, seed: int):
        if not 1 <= size <= 1 << 62:
            raise ValueError(f"a sampler needs 1 to 2^62 rows to draw from, got {size}. An empty file?")
        self.size = size
        self.seed = seed
        self.epoch = 0
        self.position = 0
        """Indices already drawn from this epoch, 0 .. size - 1."""

    def next(self, count: int) -> list[int]:
        """The next `count` indices; they run on into the next epoch where this one ends."""
        indices = self.peek(count)
        epochs, self.position = divmod(self.position + count, self.size)
        self.epoch += epochs
        return indices

    def peek(self, count: int) -> list[int]:
        """What `next(count)` would return, without drawing it."""
        if count < 0:
            raise ValueError(f"cannot draw {count} rows.")
        indices: list[int] = []
        while len(indices) < count:
            epochs, position = divmod(self.position + len(indices), self.size)
            block = _block(self.size, self.seed, self.epoch + epochs, position // BLOCK)
            start = position % BLOCK
            indices += block[start : start + count - len(indices)]
        return indices

    def state_dict(self) -> dict[str, int]:
        """Where the sampler stands: {size, seed, epoch, position}."""
        return {"size": self.size, "seed": self.seed, "epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on from `state`. Raises ValueError if it belongs to another size or seed, or is not a state at all."""
        expected = ("size", "seed", "epoch", "position")
        if sorted(state) != sorted(expected) or any(type(state[key]) is not int for key in expected):
            raise ValueError(f"expected a sampler state of integers {', '.join(expected)}, found {state}.")
        for key, own in (("size", self.size), ("seed", self.seed)):
            if state[key] != own:
                raise ValueError(
                    f"the saved sampler had {key} {state[key]}, this one has {own}: the data or the seed of the run has changed. "
                    "Restore it, or start a new run folder."
                )
        if state["epoch"] < 0 or not 0 <= state["position"] < self.size:
            raise ValueError(f"the saved sampler stands outside its {self.size} rows: {state}.")
        self.epoch, self.position = state["epoch"], state["position"]


@lru_cache(maxsize=8)
def _block(size: int, seed: int, epoch: int, number: int) -> list[int]:
    """The indices at positions number * BLOCK and on, to the end of the block or the epoch."""
    x = np.arange(number * BLOCK, min(size, (number + 1) * BLOCK), dtype=np.uint64)
    for pairing, key in _round_keys(size, seed, epoch):
        partner = np.where(x <= pairing, pairing - x, pairing + np.uint64(size) - x)
        x = np.where(_bits(np.maximum(x, partner), key), partner, x)
    return x.tolist()


def _round_keys(size: int, seed: int, epoch: int) -> list[tuple[np.uint64, np.uint64]]:
    """(pairing key in [0, size), key of the bits) of each round of an epoch."""
    keys = []
    for number in range(32 + 4 * size.bit_length()):
        digest = blake2b(f"{seed}/{epoch}/{number}".encode(), digest_size=24).digest()
        # 128 bits modulo the size: the bias is below size / 2^128.
        keys.append((np.uint64(int.from_bytes(digest[:16], "big") % size), np.uint64(int.from_bytes(digest[16:], "big"))))
    return keys


def _bits(values: np.ndarray, key: np.uint64) -> np.ndarray:
    """A pseudo-random bit of each of the uint64 `values`: splitmix64's finalizer (Steele, Lea and Flood, OOPSLA 2014)."""
    z = values * np.uint64(0x9E3779B97F4A7C15) + key
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (z >> np.uint64(63)).astype(bool)
