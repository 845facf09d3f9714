"""GRPO (DeepSeekMath, arXiv 2402.03300, Eq. 3 and 4; used by SPCT, arXiv 2504.02495, section 3.3): advantages, loss, metrics.

Pure functions on flat tensors: one entry per completion token, M of them, whatever sequence or micro-batch they came from.
Every loss is a sum of `weight` times a per-token term. With weight = 1 / (N * |o_i|), N the number of samples of the WHOLE
batch over all ranks, summing over micro-batches and ranks gives the batch's loss, however it was cut. Whether N counts samples
of groups that carry no advantage is `rl.equal_groups`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

Metrics = dict[str, float]


@dataclass(frozen=True)
class LossInputs:
    """What the GRPO loss of one micro-batch needs; all tensors are float [M], one entry per completion token.

    Log-probabilities are those of the token that was sampled, at the sampling temperature.
    """

    logprob: Tensor
    """Of the policy being trained; carries the gradient."""
    rollout_logprob: Tensor
    """As the inference engine reported it when it sampled the token."""
    advantage: Tensor
    """Of the token's sample, by `group_advantages`."""
    weight: Tensor
    """1 / (N * |o_i|); see the module's docstring."""
    old_logprob: Tensor | None = None
    """Of the trainer's policy before the first update on this batch. None: this is the first update, so the ratio is 1."""
    reference_logprob: Tensor | None = None
    """Of the frozen reference; needed when beta > 0."""
    entropy: Tensor | None = None
    """Of the policy's next-token distribution, detached; None leaves the metric out."""
    clip: float = 0.2
    """eps of the clipped surrogate."""
    beta: float = 0.01
    """Weight of the KL penalty."""
    importance_cap: float | None = 2.0
    """Largest importance weight between the rollout engine and the trainer; None: no importance weights."""


def group_advantages(rewards: Tensor) -> Tensor:
    """(r - mean) / std within each group; `rewards` float [G] or [N, G], result float32 of the same shape.

    The standard deviation is the sample one (divisor G - 1): DeepSeekMath does not say which, and `torch.std`, hence the
    common implementations, takes this one. No epsilon is added, so the result is invariant under
    any positive affine map of the rewards. A group of equal rewards, or of one sample, gets zeros: it carries no
    preference.

    Raises:
        ValueError: a reward is not finite, or `rewards` has neither one nor two dimensions.
    """
    if rewards.ndim not in (1, 2):
        raise ValueError(f"rewards: expected shape [G] or [N, G], found {list(rewards.shape)}.")
    values = rewards.to(torch.float64)
    if not torch.isfinite(values).all():
        raise ValueError("rewards: every reward must be finite; score parse failures as -1 before taking advantages.")
    equal = (values == values[..., :1]).all(dim=-1, keepdim=True)
    if values.shape[-1] < 2:
        return torch.zeros_like(values, dtype=torch.float32)
    std = torch.where(equal, 1.0, values.std(dim=-1, keepdim=True))
    advantages = (values - values.mean(dim=-1, keepdim=True)) / std
    return torch.where(equal, 0.0, advantages).to(torch.float32)


def k3_kl(logprob: Tensor, reference_logprob: Tensor) -> Tensor:
    """Per-token estimate exp(d) - d - 1, d = reference - logprob, of KL(policy || reference); unbiased on the policy's samples.

    At least 0, and 0 only where the two agree (Schulman, "Approximating KL divergence"; DeepSeekMath Eq. 4).
    """
    difference = reference_logprob - logprob
    # expm1 keeps precision where the two are close, which is where RL spends its time
    return torch.expm1(difference) - difference


def importance_weights(old_logprob: Tensor, rollout_logprob: Tensor, cap: float | None) -> Tensor:
    """min(exp(trainer - rollout), cap), detached: corrects for the engine that sampled not being quite the policy trained.

    The truncation bounds the variance at the price of a small bias (truncated importance sampling, Ionides 2008). Without a cap there
    is no correction: all ones.
    """
    if cap is None:
        return torch.ones_like(old_logprob)
    return torch.exp(old_logprob - rollout_logprob).clamp(max=cap).detach()


def clipped_surrogate(ratio: Tensor, advantage: Tensor, clip: float) -> Tensor:
    """min(ratio * A, clip(ratio, 1 - eps, 1 + eps) * A) per token: to be maximised (PPO, arXiv 1707.06347, Eq. 7)."""
    return torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage)


def grpo_loss(inputs: LossInputs) -> tuple[Tensor, Metrics]:
    """Sum over tokens of weight * (-w * surrogate + beta * k3), and metrics as sums.

    w is the truncated importance weight; the KL term is not multiplied by it, as it penalises the policy being trained,
    whatever sampled the token.

    Returns:
        the loss (a scalar that carries the gradient; 0 for a micro-batch without completion tokens), and metrics to be
        combined with `merge_metrics` over micro-batches and ranks and read after `finalise_metrics`.

    Raises:
        ValueError: beta > 0 without reference log-probabilities.
    """
    logprob = inputs.logprob
    current = logprob.detach()
    old = current if inputs.old_logprob is None else inputs.old_logprob.detach()
    importance = importance_weights(old, inputs.rollout_logprob, inputs.importance_cap)
    ratio = torch.exp(logprob - old)
    surrogate = clipped_surrogate(ratio, inputs.advantage, inputs.clip)
    per_token = -importance * surrogate
    if inputs.beta > 0:
        if inputs.reference_logprob is None:
            raise ValueError(f"beta is {inputs.beta}, so reference_logprob is needed; pass it, or set beta to 0.")
        per_token = per_token + inputs.beta * k3_kl(logprob, inputs.reference_logprob)
    loss = (inputs.weight * per_token).sum()
    return loss, _metrics(inputs, loss.detach(), ratio.detach(), importance, old)


def sft_loss(logprob: Tensor, weight: Tensor) -> tuple[Tensor, Metrics]:
    """Sum over tokens of -weight * logprob, both float [M]; metrics as `grpo_loss` gives them.

    `weight` is 1 / (N * |o_i|) here as well, so each sample counts the same however long it is: the loss is the mean over
    samples of the mean negative log-likelihood of their tokens, in nats.
    """
    loss = -(weight * logprob).sum()
    return loss, _floats({"tokens": torch.ones_like(logprob), "nll": -logprob.detach()}) | {"loss": loss.item()}


MEAN_OVER_TOKENS = frozenset(
    ("kl", "entropy", "nll", "clip_fraction", "ratio", "mismatch", "mismatch_k3", "importance_weight", "importance_truncated")
)
"""Metrics that are divided by the number of tokens at the end; `*_max` are maxima; `loss` and `tokens` stay sums."""


def merge_metrics(parts: Iterable[Metrics]) -> Metrics:
    """Combine metrics of micro-batches or ranks: maxima for keys that end in `_max`, sums for all others."""
    merged: Metrics = {}
    for part in parts:
        for name, value in part.items():
            if name.endswith("_max"):
                merged[name] = max(merged.get(name, -math.inf), value)
            else:
                merged[name] = merged.get(name, 0.0) + value
    return merged


def finalise_metrics(merged: Metrics) -> Metrics:
    """Turn merged sums into what a person reads: means over all tokens, maxima, the batch's loss, the token count.

    - `kl`: k3 estimate against the reference, nats per token; `entropy`: nats per token; `nll`: nats per token (SFT).
    - `clip_fraction`: share of tokens whose gradient the clip cut off; `ratio`: mean of policy / old policy.
    - `mismatch`: mean |trainer - rollout| log-probability; `mismatch_k3`: k3 estimate of KL(rollout || trainer);
      `mismatch_max`: the largest difference.
    - `importance_weight`: mean after truncation; `importance_truncated`: share of tokens that the cap cut.
    """
    tokens = max(merged.get("tokens", 0.0), 1.0)
    return {name: value / tokens if name in MEAN_OVER_TOKENS else value for name, value in merged.items()}


def _metrics(inputs: LossInputs, loss: Tensor, ratio: Tensor, importance: Tensor, old: Tensor) -> Metrics:
    with torch.no_grad():
        advantage = inputs.advantage
        clipped = ((advantage > 0) & (ratio > 1 + inputs.clip)) | ((advantage < 0) & (ratio < 1 - inputs.clip))
        mismatch = (old - inputs.rollout_logprob).abs()
        values = {
            "tokens": torch.ones_like(ratio),
            "clip_fraction": clipped,
            "ratio": ratio,
            "mismatch": mismatch,
            "mismatch_k3": k3_kl(inputs.rollout_logprob, old),
            "importance_weight": importance,
            "importance_truncated": importance >= (math.inf if inputs.importance_cap is None else inputs.importance_cap),
        }
        if inputs.reference_logprob is not None:
            values["kl"] = k3_kl(inputs.logprob, inputs.reference_logprob)
        if inputs.entropy is not None:
            values["entropy"] = inputs.entropy
        metrics = _floats(values) | {"loss": loss.item()}
        metrics["mismatch_max"] = mismatch.max().item() if mismatch.numel() else 0.0
    return metrics


def _floats(values: dict[str, Tensor]) -> Metrics:
    """Sums as Python floats, fetched from the device in one go."""
    sums = torch.stack([value.double().sum() for value in values.values()]).tolist()
    return dict(zip(values, sums, strict=True))
