"""The sampling order of rows: a new permutation per epoch, a function of the seed only, resumable from four integers.

No permutation is stored. Each index is computed by a swap-or-not shuffle (Hoang, Morris and Rogaway, "An Enciphering Scheme Based on a Card
Shuffle", CRYPTO 2012, arXiv 1208.1176): every round pairs x with (key - x) mod size, and a pseudo-random bit of the pair
decides whether they swap. It permutes a range of any size in about 100 rounds, computed for a block of indices at a time.
"""

from __future__ import annotations

from functools import lru_cache
from hashlib import blake2b

import numpy as np

BLOCK = 4096
"""Indices computed at a time."""


class Sampler:
    """An infinite sequence of indices 0 .. size - 1: every index exactly once per epoch, in a different order each epoch.

    Args:
        size: number of rows, 1 to 2^62.
        seed: any integer; equal (size, seed) give equal orders on every machine and in every process.
    """

    def __init__(self, size: int, seed: int):
        if not 1 <= size <= 1 << 62:
            raise ValueError(f"a sampler needs 1 to 2^62 rows, got {size}. Is the file empty?")
        self.size = size
        self.seed = seed
        self.epoch = 0
        self.position = 0
        """Number of indices already returned in this epoch, 0 .. size - 1."""

    def next(self, count: int) -> list[int]:
        """Return the next `count` indices, continuing into the next epoch."""
        indices = self.peek(count)
        epochs, self.position = divmod(self.position + count, self.size)
        self.epoch += epochs
        return indices

    def peek(self, count: int) -> list[int]:
        """Return what `next(count)` would return, without advancing."""
        if count < 0:
            raise ValueError(f"cannot sample {count} rows.")
        indices: list[int] = []
        while len(indices) < count:
            epochs, position = divmod(self.position + len(indices), self.size)
            block = _block(self.size, self.seed, self.epoch + epochs, position // BLOCK)
            start = position % BLOCK
            indices += block[start : start + count - len(indices)]
        return indices

    def state_dict(self) -> dict[str, int]:
        """Return {size, seed, epoch, position}."""
        return {"size": self.size, "seed": self.seed, "epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue from `state`; raise ValueError if it is malformed or belongs to another size or seed."""
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
            raise ValueError(f"the saved sampler state is out of range for {self.size} rows: {state}.")
        self.epoch, self.position = state["epoch"], state["position"]


@lru_cache(maxsize=8)
def _block(size: int, seed: int, epoch: int, number: int) -> list[int]:
    """Return the indices at positions number * BLOCK up to the end of the block or the epoch."""
    x = np.arange(number * BLOCK, min(size, (number + 1) * BLOCK), dtype=np.uint64)
    for pairing, key in _round_keys(size, seed, epoch):
        partner = np.where(x <= pairing, pairing - x, pairing + np.uint64(size) - x)
        x = np.where(_bits(np.maximum(x, partner), key), partner, x)
    return x.tolist()


def _round_keys(size: int, seed: int, epoch: int) -> list[tuple[np.uint64, np.uint64]]:
    """Return (pairing key in [0, size), key of the bits) of each round of an epoch."""
    keys = []
    for number in range(32 + 4 * size.bit_length()):
        digest = blake2b(f"{seed}/{epoch}/{number}".encode(), digest_size=24).digest()
        # 128 bits modulo the size: the bias is below size / 2^128.
        keys.append((np.uint64(int.from_bytes(digest[:16], "big") % size), np.uint64(int.from_bytes(digest[16:], "big"))))
    return keys


def _bits(values: np.ndarray, key: np.uint64) -> np.ndarray:
    """Return a pseudo-random bit for each of the uint64 `values`: splitmix64's finalizer (Steele, Lea and Flood, OOPSLA 2014)."""
    z = values * np.uint64(0x9E3779B97F4A7C15) + key
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (z >> np.uint64(63)).astype(bool)
