"""Advantages, loss and metrics of GRPO (DeepSeekMath, arXiv 2402.03300, Eq. 3 and 4; used by SPCT, arXiv 2504.02495, section 3.3).

All functions are pure and take flat tensors with one entry for each of M completion tokens, whatever sequence they belong to. Every loss is
a sum of `weight` times a per-token term. With weight = 1 / (N * |o_i|), where N is the number of samples in the WHOLE batch over all ranks,
the losses of micro-batches and ranks add up to the batch's loss, however it is split. `rl.equal_groups` decides whether N includes the
samples of groups with zero advantage.
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
    """Inputs of the GRPO loss for one micro-batch; all tensors are float [M], one entry per completion token.

    Log-probabilities are those of the sampled token at the sampling temperature.
    """

    logprob: Tensor
    """Under the policy being trained; carries the gradient."""
    rollout_logprob: Tensor
    """As reported by the inference engine when it sampled the token."""
    advantage: Tensor
    """Advantage of the token's sample, from `group_advantages`."""
    weight: Tensor
    """1 / (N * |o_i|); see the module docstring."""
    old_logprob: Tensor | None = None
    """Under the trainer's policy before the first update on this batch. None: this is the first update, so the ratio is 1."""
    reference_logprob: Tensor | None = None
    """Under the frozen reference model; required if beta > 0."""
    entropy: Tensor | None = None
    """Entropy of the policy's next-token distribution, detached; None omits the metric."""
    clip: float = 0.2
    """Clipping range eps of the surrogate."""
    beta: float = 0.01
    """Weight of the KL penalty."""
    importance_cap: float | None = 2.0
    """Upper bound of the importance weights between engine and trainer; None disables importance weights."""


def group_advantages(rewards: Tensor) -> Tensor:
    """Normalise rewards within each group: (r - mean) / std; `rewards` float [G] or [N, G], result float32 of the same shape.

    The standard deviation is the sample standard deviation (divisor G - 1): DeepSeekMath does not specify it, and common implementations
    use this default of `torch.std`. No epsilon is added, so the result is invariant under positive affine maps of the rewards. Groups with
    equal rewards, or with a single sample, get zero advantages.

    Raises:
        ValueError: a reward is not finite, or `rewards` has neither one nor two dimensions.
    """
    if rewards.ndim not in (1, 2):
        raise ValueError(f"rewards: expected shape [G] or [N, G], found {list(rewards.shape)}.")
    values = rewards.to(torch.float64)
    if not torch.isfinite(values).all():
        raise ValueError("rewards: every reward must be finite; assign -1 to parse failures before computing advantages.")
    equal = (values == values[..., :1]).all(dim=-1, keepdim=True)
    if values.shape[-1] < 2:
        return torch.zeros_like(values, dtype=torch.float32)
    std = torch.where(equal, 1.0, values.std(dim=-1, keepdim=True))
    advantages = (values - values.mean(dim=-1, keepdim=True)) / std
    return torch.where(equal, 0.0, advantages).to(torch.float32)


def k3_kl(logprob: Tensor, reference_logprob: Tensor) -> Tensor:
    """Estimate KL(policy || reference) per token by exp(d) - d - 1 with d = reference - logprob.

    The estimate is unbiased on samples of the policy, non-negative, and 0 only if the two agree (Schulman, "Approximating KL divergence";
    DeepSeekMath Eq. 4).
    """
    difference = reference_logprob - logprob
    # expm1 keeps precision when the two are close, which is the usual case in RL
    return torch.expm1(difference) - difference


def importance_weights(old_logprob: Tensor, rollout_logprob: Tensor, cap: float | None) -> Tensor:
    """Return min(exp(trainer - rollout), cap), detached: a correction for sampling from the engine instead of the trainer's policy.

    Truncation bounds the variance at the price of a small bias (truncated importance sampling, Ionides 2008). If `cap` is None, all weights
    are 1.
    """
    if cap is None:
        return torch.ones_like(old_logprob)
    return torch.exp(old_logprob - rollout_logprob).clamp(max=cap).detach()


def clipped_surrogate(ratio: Tensor, advantage: Tensor, clip: float) -> Tensor:
    """Return min(ratio * A, clip(ratio, 1 - eps, 1 + eps) * A) per token, the objective to maximise (PPO, arXiv 1707.06347, Eq. 7)."""
    return torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage)


def grpo_loss(inputs: LossInputs) -> tuple[Tensor, Metrics]:
    """Sum weight * (-w * surrogate + beta * k3) over tokens, where w is the truncated importance weight.

    The KL term is not multiplied by w, as it penalises the policy being trained, whichever policy sampled the token.

    Returns:
        the loss (a scalar that carries the gradient; 0 for a micro-batch without completion tokens), and metrics as sums, to be combined
        over micro-batches and ranks with `merge_metrics` and then passed to `finalise_metrics`.

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
            raise ValueError(f"beta is {inputs.beta}, which requires reference_logprob; pass it, or set beta to 0.")
        per_token = per_token + inputs.beta * k3_kl(logprob, inputs.reference_logprob)
    loss = (inputs.weight * per_token).sum()
    return loss, _metrics(inputs, loss.detach(), ratio.detach(), importance, old)


def sft_loss(logprob: Tensor, weight: Tensor) -> tuple[Tensor, Metrics]:
    """Sum -weight * logprob over tokens, both float [M]; returns the loss and metrics as `grpo_loss` does.

    As `weight` is 1 / (N * |o_i|), every sample counts the same regardless of its length: the loss is the mean over samples of their mean
    negative log-likelihood per token, in nats.
    """
    loss = -(weight * logprob).sum()
    return loss, _floats({"tokens": torch.ones_like(logprob), "nll": -logprob.detach()}) | {"loss": loss.item()}


MEAN_OVER_TOKENS = frozenset(
    ("kl", "entropy", "nll", "clip_fraction", "ratio", "mismatch", "mismatch_k3", "importance_weight", "importance_truncated")
)
"""Metrics that `finalise_metrics` divides by the number of tokens; `*_max` are maxima; `loss` and `tokens` remain sums."""


def merge_metrics(parts: Iterable[Metrics]) -> Metrics:
    """Combine metrics of micro-batches or ranks: maxima for keys that end in `_max`, sums for all other keys."""
    merged: Metrics = {}
    for part in parts:
        for name, value in part.items():
            if name.endswith("_max"):
                merged[name] = max(merged.get(name, -math.inf), value)
            else:
                merged[name] = merged.get(name, 0.0) + value
    return merged


def finalise_metrics(merged: Metrics) -> Metrics:
    """Convert merged sums to the reported metrics: means over all tokens, maxima, the batch's loss and the token count.

    - `kl`: k3 estimate against the reference; `entropy`; `nll` (SFT); all in nats per token.
    - `clip_fraction`: share of tokens whose gradient was clipped to zero; `ratio`: mean of policy / old policy.
    - `mismatch`: mean |trainer - rollout| log-probability; `mismatch_k3`: k3 estimate of KL(rollout || trainer);
      `mismatch_max`: the largest difference.
    - `importance_weight`: mean after truncation; `importance_truncated`: share of tokens at the cap.
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
    """Sum each tensor, and copy all sums from the device at once."""
    sums = torch.stack([value.double().sum() for value in values.values()]).tolist()
    return dict(zip(values, sums, strict=True))
