"""The order in which rows are drawn: a fresh permutation per epoch, a function of the seed alone, resumable from four integers.

No permutation is held. Each index is computed by a swap-or-not shuffle (Hoang, Morris and Rogaway, "An Enciphering Scheme Based on a Card
Shuffle", CRYPTO 2012, arXiv 1208.1176): every round pairs the cards x and (key - x) mod size, and a pseudo-random bit of the pair says
whether they change places. It permutes any range, small ones included, and takes some 100 rounds of a few operations an index.
"""

from __future__ import annotations

from hashlib import blake2b

_MASK = (1 << 64) - 1


class Sampler:
    """Endless indices 0 .. size - 1: every index exactly once per epoch, in another order each epoch.

    Args:
        size: number of rows, at least 1.
        seed: any integer; equal (size, seed) give equal orders on every machine and in every process.
    """

    def __init__(self, size: int, seed: int):
        if size < 1:
            raise ValueError(f"a sampler needs at least one row to draw from, got {size}. Were all rows set aside?")
        self.size = size
        self.seed = seed
        self.epoch = 0
        self.position = 0
        """Indices already drawn from this epoch, 0 .. size - 1."""
        self._keys = self._round_keys()

    def next(self, count: int) -> list[int]:
        """The next `count` indices; they run on into the next epoch where this one ends."""
        if count < 0:
            raise ValueError(f"cannot draw {count} rows.")
        indices = []
        for _ in range(count):
            indices.append(self._permute(self.position))
            self.position += 1
            if self.position == self.size:
                self.epoch, self.position = self.epoch + 1, 0
                self._keys = self._round_keys()
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
        self._keys = self._round_keys()

    def _round_keys(self) -> list[tuple[int, int]]:
        """(pairing key in [0, size), key of the bits) of each round of this epoch."""
        keys = []
        for number in range(32 + 4 * self.size.bit_length()):
            digest = blake2b(f"{self.seed}/{self.epoch}/{number}".encode(), digest_size=24).digest()
            # 128 bits modulo the size: the bias is below size / 2^128.
            keys.append((int.from_bytes(digest[:16], "big") % self.size, int.from_bytes(digest[16:], "big")))
        return keys

    def _permute(self, x: int) -> int:
        for pairing, key in self._keys:
            partner = (pairing - x) % self.size
            if _bit(max(x, partner), key):
                x = partner
        return x


def _bit(value: int, key: int) -> int:
    """A pseudo-random bit: splitmix64's finalizer (Steele, Lea and Flood, OOPSLA 2014)."""
    z = (value * 0x9E3779B97F4A7C15 + key) & _MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return z >> 63
