"""The GRPO arithmetic, checked against numbers worked out by hand, finite differences and its invariants."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlsys.algorithms.grpo import (
    LossInputs,
    clipped_surrogate,
    finalise_metrics,
    group_advantages,
    grpo_loss,
    importance_weights,
    k3_kl,
    merge_metrics,
    sft_loss,
)

LOG2 = math.log(2)
rewards = st.lists(st.sampled_from([-1.0, 1.0]) | st.floats(-100, 100, width=16), min_size=2, max_size=16)


def inputs(**changes: object) -> LossInputs:
    """Two tokens of one sample and one of another: N = 2, so weights 1/4, 1/4 and 1/2."""
    given_values = {
        "logprob": [-1.0, -2.0, -0.5],
        "rollout_logprob": [-1.0, -2.0, -0.5],
        "advantage": [1.0, 1.0, -1.0],
        "weight": [0.25, 0.25, 0.5],
    } | changes
    return LossInputs(**{k: torch.tensor(v, dtype=torch.float64) if isinstance(v, list) else v for k, v in given_values.items()})


def test_advantages_of_a_group_by_hand() -> None:
    # mean 0, sample variance (1 + 1 + 1 + 1) / 3
    expected = math.sqrt(3) / 2
    assert group_advantages(torch.tensor([1.0, -1.0, 1.0, -1.0])).tolist() == pytest.approx([expected, -expected, expected, -expected])


def test_each_row_is_its_own_group() -> None:
    both = torch.tensor([[1.0, -1.0, -1.0], [5.0, 5.0, 5.0]])
    assert torch.equal(group_advantages(both)[0], group_advantages(both[0]))
    assert group_advantages(both)[1].tolist() == [0, 0, 0]


@given(rewards)
def test_advantages_sum_to_zero_and_have_unit_variance(values: list[float]) -> None:
    advantages = group_advantages(torch.tensor(values))
    assert advantages.sum().item() == pytest.approx(0, abs=1e-4)
    if len(set(values)) > 1:
        assert advantages.std().item() == pytest.approx(1, rel=1e-4)
    else:
        assert not advantages.any()


@given(rewards, st.sampled_from([0.5, 2.0, 8.0]), st.integers(-8, 8))
def test_advantages_are_invariant_under_affine_maps_of_rewards(values: list[float], factor: float, shift: int) -> None:
    plain = group_advantages(torch.tensor(values, dtype=torch.float64))
    moved = group_advantages(torch.tensor(values, dtype=torch.float64) * factor + shift)
    if len({v * factor + shift for v in values}) == len(set(values)) and (len(set(values)) == 1 or max(values) - min(values) > 1e-3):
        torch.testing.assert_close(plain, moved, rtol=1e-4, atol=1e-4)


def test_a_single_sample_or_equal_rewards_give_zero_advantage() -> None:
    assert group_advantages(torch.tensor([0.1])).tolist() == [0]
    assert group_advantages(torch.full((7,), 0.1)).tolist() == [0] * 7  # although the mean of seven 0.1 is not quite 0.1


def test_rewards_that_are_not_finite_are_rejected() -> None:
    with pytest.raises(ValueError, match="finite"):
        group_advantages(torch.tensor([1.0, math.nan]))


@given(st.floats(-20, 0), st.floats(-20, 0))
def test_k3_is_never_negative(a: float, b: float) -> None:
    assert k3_kl(torch.tensor(a), torch.tensor(b)).item() >= 0


def test_k3_by_hand_and_as_an_estimate_of_the_divergence() -> None:
    assert k3_kl(torch.tensor(-1.0), torch.tensor(-1.0)).item() == 0
    assert k3_kl(torch.tensor(-1.0), torch.tensor(-1.0 + LOG2)).item() == pytest.approx(2 - LOG2 - 1)
    p, q = torch.randn(2, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).softmax(-1)
    expected = (p * (p / q).log()).sum()
    torch.testing.assert_close((p * k3_kl(p.log(), q.log())).sum(), expected)  # its mean under the policy is the divergence


def test_importance_weights_are_truncated_and_carry_no_gradient() -> None:
    trainer = torch.tensor([-1.0, -1.0, -1.0], requires_grad=True)
    weights = importance_weights(trainer, torch.tensor([-1.0, -1.0 - 5 * LOG2, -1.0 + LOG2]), cap=2.0)
    assert weights.tolist() == pytest.approx([1, 2, 0.5])
    assert not weights.requires_grad


def test_without_a_cap_nothing_is_corrected() -> None:
    corrected, with_cap = grpo_loss(inputs(rollout_logprob=[-3.0, -1.0, -2.0], importance_cap=2.0, beta=0.0))
    plain, without = grpo_loss(inputs(rollout_logprob=[-3.0, -1.0, -2.0], importance_cap=None, beta=0.0))
    as_sampled, _ = grpo_loss(inputs(importance_cap=2.0, beta=0.0))  # the engine agrees, so that every weight is 1
    assert plain.item() == as_sampled.item() != corrected.item()
    assert finalise_metrics(without)["mismatch"] == finalise_metrics(with_cap)["mismatch"] > 0  # still measured
    assert finalise_metrics(without)["importance_weight"] == 1 and finalise_metrics(without)["importance_truncated"] == 0


@pytest.mark.parametrize(
    ("ratio", "advantage", "expected"),
    [(1.5, 1.0, 1.2), (0.5, 1.0, 0.5), (1.5, -1.0, -1.5), (0.5, -1.0, -0.8), (1.1, 2.0, 2.2)],
)
def test_surrogate_is_clipped_only_where_it_would_gain(ratio: float, advantage: float, expected: float) -> None:
    value = clipped_surrogate(torch.tensor(ratio), torch.tensor(advantage), 0.2)
    assert value.item() == pytest.approx(expected)


def test_loss_of_a_first_update_by_hand() -> None:
    # ratio and importance are 1: -(1/4 + 1/4 - 1/2) = 0 for the surrogate; k3 is 2 - ln 2 - 1 where the reference is ln 2 higher
    loss, metrics = grpo_loss(inputs(reference_logprob=[-1.0, -2.0 + LOG2, -0.5], beta=0.1))
    assert loss.item() == pytest.approx(0.1 * 0.25 * (1 - LOG2))
    final = finalise_metrics(metrics)
    assert final["kl"] == pytest.approx((1 - LOG2) / 3)
    assert (final["ratio"], final["clip_fraction"], final["mismatch"], final["tokens"]) == (1, 0, 0, 3)


def test_loss_of_a_later_update_by_hand() -> None:
    # ratios 2 (clipped to 1.2), 1/2 (kept: the minimum), 1; importance 2 (its cap), 1, 1/2
    values = inputs(
        logprob=[-1.0, -2.0, -0.5],
        old_logprob=[-1.0 - LOG2, -2.0 + LOG2, -0.5],
        rollout_logprob=[-1.0 - 4 * LOG2, -2.0 + LOG2, -0.5 + LOG2],
        beta=0.0,
        entropy=[0.5, 1.0, 1.5],
    )
    loss, metrics = grpo_loss(values)
    assert loss.item() == pytest.approx(-(0.25 * 2 * 1.2 + 0.25 * 1 * 0.5 + 0.5 * 0.5 * -1))
    final = finalise_metrics(metrics)
    assert final["clip_fraction"] == pytest.approx(1 / 3)
    assert final["ratio"] == pytest.approx((2 + 0.5 + 1) / 3)
    assert final["importance_weight"] == pytest.approx((2 + 1 + 0.5) / 3)
    assert final["importance_truncated"] == pytest.approx(1 / 3)
    assert final["mismatch"] == pytest.approx((3 + 0 + 1) / 3 * LOG2)
    assert final["mismatch_max"] == pytest.approx(3 * LOG2)
    assert final["entropy"] == pytest.approx(1)
    assert "kl" not in final


@given(st.lists(st.tuples(st.floats(-1, 1, width=16), st.sampled_from([-2.0, 0.0, 0.5])), min_size=1, max_size=8), st.floats(0.05, 0.5))
def test_clip_fraction_counts_the_tokens_whose_gradient_the_clip_cut_off(tokens: list[tuple[float, float]], clip: float) -> None:
    """What the clip cut off is read from autograd, token by token: an advantage, and yet no gradient."""
    logprob = torch.tensor([difference - 2 for difference, _ in tokens], dtype=torch.float64, requires_grad=True)
    old, advantage = torch.full_like(logprob, -2.0), torch.tensor([advantage for _, advantage in tokens], dtype=torch.float64)
    loss, metrics = grpo_loss(LossInputs(logprob, old, advantage, torch.ones_like(logprob), old_logprob=old, clip=clip, beta=0.0))
    loss.backward()
    cut = (logprob.grad == 0) & (advantage != 0)
    assert metrics["clip_fraction"] == cut.sum().item()
    assert finalise_metrics(metrics)["clip_fraction"] == pytest.approx(cut.double().mean().item())


@pytest.mark.parametrize(("difference", "advantage"), [(LOG2 / 2, 1.0), (-LOG2 / 2, -1.0)])
def test_at_the_clip_nothing_is_cut_off_yet(difference: float, advantage: float) -> None:
    """The clip is set to the ratio itself, to the last bit; a clip smaller by one in a million cuts, and the other sign never does."""
    logprob = torch.tensor([difference], dtype=torch.float64, requires_grad=True)
    zero = torch.zeros(1, dtype=torch.float64)
    exact = abs(torch.exp(logprob).item() - 1)

    def fraction(clip: float, sign: float = 1.0) -> float:
        value = LossInputs(logprob, zero, sign * advantage + zero, 1 + zero, old_logprob=zero, clip=clip, beta=0.0)
        return grpo_loss(value)[1]["clip_fraction"]

    assert (fraction(exact), fraction(exact - 1e-6), fraction(exact - 1e-6, -1.0), fraction(exact - 1e-6, 0.0)) == (0, 1, 0, 0)


def test_gradient_equals_finite_differences() -> None:
    generator = torch.Generator().manual_seed(1)
    base = {name: -torch.rand(40, dtype=torch.float64, generator=generator) * 2 for name in ("logprob", "old", "rollout", "reference")}
    advantage = torch.randn(40, dtype=torch.float64, generator=generator)
    weight = torch.rand(40, dtype=torch.float64, generator=generator)

    def loss(logprob: torch.Tensor) -> torch.Tensor:
        return grpo_loss(LossInputs(logprob, base["rollout"], advantage, weight, base["old"], base["reference"], beta=0.3))[0]

    assert torch.autograd.gradcheck(loss, base["logprob"].requires_grad_())


def test_first_update_has_the_policy_gradient() -> None:
    """With ratio 1 the gradient is -weight * importance * advantage: the ratio's value is 1, not its derivative."""
    values = inputs(rollout_logprob=[-1.0 - LOG2, -2.0, -0.5], beta=0.0)
    values.logprob.requires_grad_()
    grpo_loss(values)[0].backward()
    assert values.logprob.grad.tolist() == pytest.approx([-0.25 * 2, -0.25, 0.5])


def test_parts_of_a_batch_add_up_to_the_batch() -> None:
    whole = inputs(reference_logprob=[-1.5, -1.0, -0.7], entropy=[1.0, 2.0, 3.0], rollout_logprob=[-1.1, -2.3, -0.4])
    loss, metrics = grpo_loss(whole)
    tensors = ("logprob", "rollout_logprob", "advantage", "weight", "reference_logprob", "entropy")
    cuts = [slice(0, 1), slice(1, 3), slice(3, 3)]
    parts = [grpo_loss(replace(whole, **{name: getattr(whole, name)[cut] for name in tensors})) for cut in cuts]
    torch.testing.assert_close(sum(part[0] for part in parts), loss)
    assert finalise_metrics(merge_metrics(part[1] for part in parts)) == pytest.approx(finalise_metrics(metrics))


def test_nothing_to_score_is_a_loss_of_zero() -> None:
    nothing = inputs(**{name: torch.zeros(0) for name in ("logprob", "rollout_logprob", "advantage", "weight", "reference_logprob")})
    loss, metrics = grpo_loss(nothing)
    assert loss.item() == 0
    assert all(value == 0 for value in finalise_metrics(metrics).values())


def test_a_penalty_without_a_reference_is_refused() -> None:
    with pytest.raises(ValueError, match="reference_logprob"):
        grpo_loss(inputs(beta=0.1))


def test_supervised_loss_is_the_mean_over_samples_of_their_mean() -> None:
    logprob, weight = torch.tensor([-1.0, -3.0, -5.0]), torch.tensor([0.25, 0.25, 0.5])
    loss, metrics = sft_loss(logprob, weight)
    assert loss.item() == pytest.approx(((1 + 3) / 2 + 5) / 2)
    assert finalise_metrics(metrics)["nll"] == pytest.approx(3)
