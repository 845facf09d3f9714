"""The sampler: a permutation per epoch, a function of the seed only, resumable anywhere from a few integers."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from collections import Counter
from hashlib import blake2b

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from rlsys.data.sampler import BLOCK, Sampler

SIZES = st.integers(1, 200)
SEEDS = st.integers(-(2**70), 2**70)


@given(SIZES, SEEDS)
@settings(max_examples=60, deadline=None)
def test_every_index_exactly_once_per_epoch(size, seed):
    sampler = Sampler(size, seed)
    for _ in range(3):
        assert sorted(sampler.next(size)) == list(range(size))


@given(SIZES, SEEDS, st.lists(st.integers(0, 70), max_size=8), st.integers(0, 60))
@settings(max_examples=60, deadline=None)
def test_resumed_anywhere_equals_uninterrupted(size, seed, counts, rest):
    whole = Sampler(size, seed).next(sum(counts) + rest)

    interrupted = Sampler(size, seed)
    drawn = list(itertools.chain.from_iterable(interrupted.next(count) for count in counts))
    resumed = Sampler(size, seed)
    resumed.load_state_dict(json.loads(json.dumps(interrupted.state_dict())))

    assert drawn + resumed.next(rest) == whole


def swap_or_not(size: int, seed: int, epoch: int, position: int) -> int:
    """The index at one position, computed as in figure 1 of the paper."""
    x = position
    for number in range(32 + 4 * size.bit_length()):
        digest = blake2b(f"{seed}/{epoch}/{number}".encode(), digest_size=24).digest()
        partner = (int.from_bytes(digest[:16], "big") - x) % size
        z = (max(x, partner) * 0x9E3779B97F4A7C15 + int.from_bytes(digest[16:], "big")) % 2**64
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) % 2**64
        if z >> 63:
            x = partner
    return x


@pytest.mark.parametrize("size", [1, 2, 3, 100, BLOCK - 1, BLOCK, BLOCK + 1, 10_000_000, 2**62])
def test_blocks_of_indices_equal_one_index_at_a_time(size):
    sampler = Sampler(size, -7)
    sampler.load_state_dict({"size": size, "seed": -7, "epoch": 3, "position": max(0, min(size, BLOCK) - 20)})
    places = [(sampler.epoch, sampler.position, *sampler.next(1)) for _ in range(40)]  # past the end of the block or the epoch
    assert [index for _, _, index in places] == [swap_or_not(size, -7, epoch, position) for epoch, position, _ in places]


@given(SIZES, SEEDS, st.integers(0, 300), st.integers(0, 500))
@settings(max_examples=60, deadline=None)
def test_peek_returns_the_next_indices_without_advancing(size, seed, before, count):
    sampler = Sampler(size, seed)
    sampler.next(before)
    state = sampler.state_dict()
    foretold = sampler.peek(count)
    assert sampler.state_dict() == state
    assert sampler.next(count) == foretold


def test_epochs_and_seeds_give_different_orders():
    sampler = Sampler(500, 1)
    first, second = sampler.next(500), sampler.next(500)
    other = Sampler(500, 2).next(500)
    # Independent random orders agree in one position of 500 on average; 8 or more occur once in 100,000 trials.
    for one, two in ((first, second), (first, other), (first, list(range(500)))):
        assert sum(a == b for a, b in zip(one, two, strict=True)) < 8


def test_the_order_does_not_depend_on_the_process():
    code = "from rlsys.data.sampler import Sampler; print(Sampler(10_000_000, 7).next(20))"
    outputs = {subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout for _ in range(2)}
    assert outputs == {f"{Sampler(10_000_000, 7).next(20)}\n"}


@pytest.mark.parametrize("size", [2, 3, 4])
def test_every_order_of_a_few_rows_is_equally_likely(size):
    orders = list(itertools.permutations(range(size)))
    seen = Counter(tuple(Sampler(size, seed).next(size)) for seed in range(100 * len(orders)))
    assert chisquare([seen[order] for order in orders]).pvalue > 1e-3


def test_every_position_sees_every_index_equally_often():
    size, epochs = 20, 1000
    sampler = Sampler(size, 3)
    places = [Counter() for _ in range(size)]
    for _ in range(epochs):
        for place, index in enumerate(sampler.next(size)):
            places[place][index] += 1
    assert chisquare([places[p][i] for p in range(size) for i in range(size)], ddof=2 * size - 2).pvalue > 1e-3


def test_adjacent_positions_are_not_adjacent_rows():
    order = Sampler(10_000, 0).next(10_000)
    gaps = [abs(a - b) for a, b in itertools.pairwise(order)]
    assert abs(sum(gaps) / len(gaps) - 10_000 / 3) < 100  # two random places are a third of the range apart


def test_huge_range_needs_no_memory_and_stays_in_range():
    size = 2**60 + 1
    drawn = Sampler(size, 0).next(200)
    assert len(set(drawn)) == 200 and all(0 <= index < size for index in drawn)
    assert max(drawn) > size * 0.9 and min(drawn) < size * 0.1


def test_state_is_a_few_integers():
    sampler = Sampler(10, 5)
    sampler.next(13)
    assert sampler.state_dict() == {"size": 10, "seed": 5, "epoch": 1, "position": 3}


@pytest.mark.parametrize("other, word", [(Sampler(11, 5), "size 11"), (Sampler(10, 6), "seed 6")])
def test_state_of_other_data_or_seed_is_rejected(other, word):
    with pytest.raises(ValueError, match=word):
        Sampler(10, 5).load_state_dict(other.state_dict())


@pytest.mark.parametrize(
    "change", [{"position": 10}, {"position": -1}, {"epoch": -1}, {"position": True}, {"epoch": "0"}, {"extra": 0}, {"epoch": None}]
)
def test_malformed_state_is_rejected(change):
    with pytest.raises(ValueError, match="sampler"):
        Sampler(10, 5).load_state_dict({"size": 10, "seed": 5, "epoch": 0, "position": 0} | change)


def test_invalid_requests_are_rejected():
    for size in (0, 2**62 + 1):
        with pytest.raises(ValueError, match=f"got {size}"):
            Sampler(size, 1)
    with pytest.raises(ValueError, match="-1"):
        Sampler(3, 1).next(-1)
    assert Sampler(3, 1).next(0) == []
