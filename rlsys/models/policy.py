"""The policy: a causal language model that returns log-probabilities of given tokens without materialising full logits."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx
from transformers import AutoModelForCausalLM, PreTrainedModel

from rlsys.models.backbone import Attention, Backbone, Layers, decoder_of, probe
from rlsys.models.fused_layers import wide_dtype
from rlsys.models.loading import ModelError, check_no_missing_weights, load_strictly
from rlsys.models.packing import MicroBatch

CPU_CHUNK, GPU_CHUNK = 2**20, 2**27
"""Logits (tokens * vocabulary entries) computed at a time. On a CPU they stay close to the caches; on a GPU they are large enough that
launching kernels takes no time: 1.5 GiB in bfloat16 and float32 together."""


class Logprobs(NamedTuple):
    """Values for the M completion tokens of a micro-batch, in its order."""

    logprob: Tensor
    """float32 [M] (float64 for float64 models), differentiable."""
    entropy: Tensor | None
    """float32 [M] (float64 for float64 models), detached; None unless requested."""


class OutputTransform(NamedTuple):
    """How a model computes logits from hidden states: cap * tanh(scale * (weight @ (inward * hidden) + bias) / cap)."""

    inward: float = 1.0
    """Factor applied to hidden states before the output layer."""
    scale: float = 1.0
    """Factor applied to logits."""
    cap: float | None = None
    """Soft cap of the logits; None: no cap."""


class LogprobHead(nn.Linear):
    """A language model's output layer that can also compute log-probabilities of given tokens without storing logits.

    Called with hidden states only, it acts as the linear layer that it replaces; its weight is the same parameter (tied or not). It is one
    module with one weight and one autograd node, so that ZeRO-3 gathers the weight for both passes.
    """

    def __init__(self, linear: nn.Linear, output: OutputTransform = OutputTransform()) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias, self.output = linear.weight, linear.bias, output

    def forward(
        self, hidden: Tensor, target: Tensor | None = None, temperature: float = 1.0, with_entropy: bool = False
    ) -> Tensor | tuple[Tensor, Tensor | None]:
        """Map hidden [..., H] to logits [..., V] or, with target [M], hidden [M, H] to (logprob [M], entropy [M] or None)."""
        if target is None:
            return super().forward(hidden)
        if self.output.inward != 1:
            hidden = hidden * self.output.inward
        logprob, entropy = _ChosenLogprobs.apply(hidden, self.weight, self.bias, target, self.output, temperature, with_entropy)
        return logprob, entropy if with_entropy else None


class _ChosenLogprobs(torch.autograd.Function):
    """log_softmax(logits / temperature)[target] in chunks of the vocabulary; the backward pass recomputes logits.

    Chunking over the vocabulary rather than over tokens writes each slice of the weight's gradient once, by a single product over all
    tokens, so nothing is accumulated in bfloat16.
    """

    @staticmethod
    def forward(
        ctx: FunctionCtx,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        target: Tensor,
        output: OutputTransform,
        temperature: float,
        with_entropy: bool,
    ) -> tuple[Tensor, Tensor]:
        zeros = torch.zeros(target.shape, dtype=wide_dtype(weight), device=hidden.device)
        logit, normaliser, expectation = zeros.clone(), zeros - torch.inf, zeros.clone()
        for part, logits, spare in _chunks(hidden, weight, bias, output, temperature):
            inside, column = _inside(target, part)
            logit = torch.where(inside, logits.gather(1, column)[:, 0], logit)
            # The chunk's logsumexp is its largest logit minus the log of that logit's probability, which is at least 1 / width.
            probability = torch.softmax(logits, dim=-1, out=spare)
            chunk_normaliser = logits.amax(dim=-1) - probability.amax(dim=-1).log()
            updated = torch.logaddexp(normaliser, chunk_normaliser)
            if with_entropy:  # running mean logit
                mean = torch.linalg.vecdot(probability, logits)
                expectation = expectation * torch.exp(normaliser - updated) + mean * torch.exp(chunk_normaliser - updated)
            normaliser = updated
        entropy = normaliser - expectation
        ctx.save_for_backward(hidden, weight, bias, target, normaliser)
        ctx.output, ctx.temperature = output, temperature
        ctx.mark_non_differentiable(entropy)
        return logit - normaliser, entropy

    @staticmethod
    def backward(ctx: FunctionCtx, gradient: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, target, normaliser = ctx.saved_tensors
        output, temperature = ctx.output, ctx.temperature
        # d logprob / d logits = onehot(target) - probabilities; per-token factors are applied to the narrow side of each product
        factor = (-gradient * (output.scale / temperature))[:, None]
        scaled = (hidden * factor).to(hidden.dtype)
        d_hidden = torch.zeros(hidden.shape, dtype=wide_dtype(weight), device=hidden.device)
        d_weight = torch.empty_like(weight)
        d_bias = None if bias is None else torch.empty_like(bias)
        for part, logits, spare in _chunks(hidden, weight, bias, output, temperature):
            slope = None if output.cap is None else (logits * (temperature / output.cap)).square_().neg_().add_(1)  # of the tanh
            d_logits = logits.sub_(normaliser[:, None]).exp_()
            inside, column = _inside(target, part)
            d_logits.scatter_add_(1, column, -inside.to(d_logits.dtype)[:, None])  # before rounding: 1 - p may be small
            if slope is not None:
                d_logits.mul_(slope)
            if d_bias is not None:
                d_bias[part] = torch.mv(d_logits.T, factor[:, 0].to(d_logits.dtype))
            if d_logits.dtype != weight.dtype:
                d_logits = spare.view(weight.dtype).view(-1)[: d_logits.numel()].view_as(d_logits).copy_(d_logits)
            d_hidden += torch.mm(d_logits, weight[part])
            torch.mm(d_logits.T, scaled, out=d_weight[part])
        return d_hidden.mul_(factor).to(hidden.dtype), d_weight, d_bias, None, None, None, None


def _chunks(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, output: OutputTransform, temperature: float
) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Yield (vocabulary slice, its logits / temperature in `wide_dtype` [M, width], scratch space of that shape), chunk by chunk.

    Both tensors are reused for the next chunk: on a CPU, mapping freshly allocated memory took longer than the arithmetic.
    """
    count = len(hidden)
    chunk = GPU_CHUNK if weight.is_cuda else CPU_CHUNK
    width = min(max(chunk // max(count, 1), 1), len(weight))
    product = torch.empty(count * width, dtype=weight.dtype, device=hidden.device)
    wide = product if product.dtype == wide_dtype(weight) else torch.empty_like(product, dtype=wide_dtype(weight))
    spare = torch.empty_like(wide)
    for start in range(0, len(weight), width):
        part = slice(start, min(start + width, len(weight)))
        shape = (count, part.stop - start)
        product_here, wide_here, spare_here = (room[: count * shape[1]].view(shape) for room in (product, wide, spare))
        if bias is None:
            torch.mm(hidden, weight[part].T, out=product_here)
        else:
            torch.addmm(bias[part], hidden, weight[part].T, out=product_here)
        if wide is not product:
            wide_here.copy_(product_here)
        if output.scale != 1:
            wide_here.mul_(output.scale)
        if output.cap is not None:
            wide_here.div_(output.cap).tanh_().mul_(output.cap)
        if temperature != 1:
            wide_here.div_(temperature)
        yield part, wide_here, spare_here


def _inside(target: Tensor, part: slice) -> tuple[Tensor, Tensor]:
    """Return which targets lie in this slice of the vocabulary, bool [M], and the column of each within it, [M, 1] (any, if outside).

    There is no `nonzero`, for whose result the host would wait at every chunk.
    """
    inside = (target >= part.start) & (target < part.stop)
    return inside, (target - part.start).clamp(0, part.stop - part.start - 1)[:, None]


class Policy(Backbone):
    """A Hugging Face causal language model, unchanged as `self.model`: save and load it as usual.

    Packed policies accept only packed micro-batches, and plain ones only plain micro-batches. It always runs in eval mode.

    Raises:
        ModelError: a model whose attention or output layer is not supported.
    """

    def __init__(self, model: PreTrainedModel, packing: bool = True, layers: Layers = "fused", attention: Attention = "blocks") -> None:
        super().__init__(model, decoder_of(model), packing, layers, attention)
        head = model.get_output_embeddings()
        output = self._read_output(head)
        if isinstance(head, LogprobHead):
            head.output = output
        else:
            model.set_output_embeddings(LogprobHead(head, output))

    def forward(self, micro_batch: MicroBatch, temperature: float = 1.0, with_entropy: bool = False) -> Logprobs:
        """Compute log-probabilities of the micro-batch's completion tokens at sampling temperature `temperature` (> 0)."""
        hidden = self.call(decoder_of(self.model), micro_batch).last_hidden_state
        selected = hidden.flatten(0, 1).index_select(0, micro_batch.source)
        return Logprobs(*self.model.get_output_embeddings()(selected, micro_batch.target, temperature, with_entropy))

    @torch.no_grad()
    def _read_output(self, head: nn.Module | None) -> OutputTransform:
        """Infer what the model's forward does between decoder and logits, by substituting known values for the output layer's result.

        Raises:
            ModelError: it is not of the form of `OutputTransform`.
        """
        name = type(self.model).__name__
        if not isinstance(head, nn.Linear):
            raise ModelError(f"{name}: expected a linear output layer, found {head}.")
        device = head.weight.device
        known = torch.tensor([0.0] + [sign * 10**power for power in range(-2, 5) for sign in (1.0, -1.0)], device=device)
        known = known.repeat(head.out_features // len(known) + 1)[: head.out_features]
        captured: dict[str, Tensor] = {}

        def keep_hidden(_: nn.Module, __: tuple[Tensor, ...], out: Any) -> None:
            captured["hidden"] = out[0] if isinstance(out, tuple) else out.last_hidden_state

        def substitute(_: nn.Module, inputs: tuple[Tensor], out: Tensor) -> Tensor:
            captured["head_input"] = inputs[0]
            return known.expand_as(out).clone()

        handles = [decoder_of(self.model).register_forward_hook(keep_hidden), head.register_forward_hook(substitute)]
        try:
            logits = self.call(self.model, probe(self.packing, device)).logits
        finally:
            for handle in handles:
                handle.remove()
        if captured.keys() != {"hidden", "head_input"}:
            raise ModelError(f"{name}: its logits are not computed from its decoder's output by its output layer.")
        output = _fit_output(captured["hidden"], captured["head_input"], known, logits.to(known.dtype))
        if output is None:
            raise ModelError(f"{name}: its logits are not scaled, capped products of hidden states and the output layer.")
        return output


def _fit_output(hidden: Tensor, head_input: Tensor, known: Tensor, logits: Tensor) -> OutputTransform | None:
    """Fit the transform to the values before and after each of its parts; None if they are not of its form."""
    if hidden.shape != head_input.shape:
        return None
    hidden, head_input = hidden.double(), head_input.double()
    inward = (torch.sum(hidden * head_input) / torch.sum(hidden * hidden)).item()
    inward = 1.0 if abs(inward - 1) < 1e-3 else inward
    if not torch.allclose(head_input, inward * hidden, rtol=2e-2, atol=1e-3 * float(head_input.abs().max())):
        return None
    small, large = known == 0.01, known == 10_000
    if not large.any():
        return None
    slope, limit = float(logits[..., small].mean() / 0.01), float(logits[..., large].mean())
    scale, cap = (limit / 10_000, None) if abs(limit) > 0.99 * abs(slope) * 10_000 else (slope, limit)
    scale = 1.0 if abs(scale - 1) < 1e-5 else scale
    expected = known * scale if cap is None else cap * torch.tanh(known * scale / cap)
    matches = torch.allclose(logits, expected.expand_as(logits), rtol=1e-3, atol=1e-5)
    return OutputTransform(inward, scale, cap) if matches else None


def load_policy(
    path: str | Path, dtype: torch.dtype, packing: bool = True, layers: Layers = "fused", attention: Attention = "blocks"
) -> Policy:
    """Load a Hugging Face folder or hub name as a policy in training mode, with weights in `dtype`."""
    return Policy(load_causal_model(path, dtype), packing, layers, attention).train()


def load_causal_model(path: str | Path, dtype: torch.dtype) -> PreTrainedModel:
    """Load transformers' causal language model, with all weights from the folder.

    Raises:
        ModelError: it cannot be loaded, or its weights do not match its config.
    """
    model, missing = load_strictly(AutoModelForCausalLM, path, dtype)
    check_no_missing_weights(path, missing)
    return model
