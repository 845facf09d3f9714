"""Drawing by inversion, against sums in exact arithmetic, and beside vLLM's own way of drawing."""

from __future__ import annotations

from fractions import Fraction
from itertools import accumulate

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from actors.cpu.sampler import BLOCK, sample, sample_tokens, self_certainty

NEARLY_ONE = 1 - 2**-53


def place(probabilities: torch.Tensor, uniform: float) -> tuple[int, float]:
    """First token whose exact running sum exceeds the share, and how far the nearest boundary is, as a share of the sum."""
    sums = list(accumulate(Fraction(p) for p in probabilities.tolist()))
    target = Fraction(uniform) * sums[-1]
    return next(i for i, total in enumerate(sums) if total > target), float(min(abs(total - target) for total in sums[:-1]) / sums[-1])


@given(
    st.integers(2, 3 * BLOCK + 7),
    st.lists(st.one_of(st.floats(0, NEARLY_ONE), st.sampled_from([0.0, 0.5, NEARLY_ONE])), min_size=1, max_size=40),
    st.integers(0, 2**31),
    st.sampled_from([0.0, 0.5, 0.99]),
)
def test_the_first_token_whose_running_sum_exceeds_the_number(vocabulary, uniforms, seed, forbidden):
    generator = torch.Generator().manual_seed(seed)
    logits = 4 * torch.randn(len(uniforms), vocabulary, generator=generator)
    keep = torch.rand(len(uniforms), vocabulary, generator=generator) >= forbidden
    keep[:, vocabulary // 2] = True
    logprobs = logits.where(keep, -torch.inf).log_softmax(-1)
    sampled = sample_tokens(logprobs, torch.tensor(uniforms, dtype=torch.float64)).tolist()
    for row, (token, uniform) in enumerate(zip(sampled, uniforms)):
        wanted, distance = place(logprobs[row].exp(), uniform)
        assert keep[row, token]
        # Block sums are float32: at a boundary either side will do.
        assert token == wanted or distance < 1e-6


@pytest.mark.parametrize("vocabulary", [5, BLOCK, 1000])
def test_tokens_come_as_often_as_they_are_likely(vocabulary):
    count = 40_000
    logits = torch.randn(vocabulary, generator=torch.Generator().manual_seed(3))
    uniforms = torch.rand(count, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    sampled = sample_tokens(logits.log_softmax(-1).expand(count, -1), uniforms)
    expected = count * logits.double().softmax(-1)
    assert chisquare(torch.bincount(sampled, minlength=vocabulary).numpy(), expected.numpy()).pvalue > 1e-3


def test_a_seed_draws_the_same_wherever_its_row_stands_and_others_go_on_by_chance():
    logits = torch.zeros(3, 50_000)
    first, logprobs = sample(logits, {1: torch.Generator().manual_seed(7)})
    second, _ = sample(logits, {2: torch.Generator().manual_seed(7)})
    assert first[1] == second[2]
    assert len({*first.tolist(), *second.tolist()}) == 5
    assert torch.equal(logprobs, logits.log_softmax(-1))


def test_self_certainty_is_the_divergence_from_a_uniform_draw():
    logits = torch.randn(5, 300, generator=torch.Generator().manual_seed(1))
    uniform = torch.full((300,), 1 / 300, dtype=torch.float64)
    for row, found in zip(logits, self_certainty(logits)):
        expected = torch.nn.functional.kl_div(row.double().log_softmax(-1), uniform, reduction="sum")
        assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    assert self_certainty(torch.zeros(1, 7)).item() == pytest.approx(0, abs=1e-6)
    forbidden = torch.tensor([[0.3, -torch.inf, 1.0]])
    assert self_certainty(forbidden).item() == pytest.approx(self_certainty(forbidden[:, [0, 2]]).item())
