"""The policy: a causal language model that answers with log-probabilities of chosen tokens, never with full logits."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from rlsys.backbone import Attention, Layers, prepare_backbone
from rlsys.fused_layers import wide_dtype
from rlsys.packing import MicroBatch

CHUNK = 2**20  # logits that exist at the same time: tokens * vocabulary entries; few enough to stay near the caches


class Logprobs(NamedTuple):
    """Flat over a micro-batch's M completion tokens, in its order."""

    logprob: Tensor
    """float32 [M] (float64 of such a model), carries the gradient."""
    entropy: Tensor | None
    """float32 [M] (float64 of such a model), detached; None unless asked for."""


class LogprobHead(nn.Linear):
    """A language model's output layer that can also answer log-probabilities of given tokens, logits never kept.

    Called with hidden states alone, it is the linear layer that it replaces; its weight is the same parameter (tied or not).
    It stays a module with one weight and one autograd node, so that ZeRO-3 gathers the weight around both passes.
    """

    def __init__(self, linear: nn.Linear) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias

    def forward(self, hidden: Tensor, target: Tensor | None = None, temperature: float = 1.0, with_entropy: bool = False):  # noqa: ANN201
        """Hidden [..., H] -> logits [..., V]; or, with target [M], hidden [M, H] -> (logprob [M], entropy [M] or None)."""
        if target is None:
            return super().forward(hidden)
        logprob, entropy = _ChosenLogprobs.apply(hidden, self.weight, target, temperature, with_entropy)
        return logprob, entropy if with_entropy else None


class _ChosenLogprobs(torch.autograd.Function):
    """log_softmax(hidden @ weight.T / temperature)[target] in chunks of the vocabulary; the backward pass computes logits again.

    Chunks of the vocabulary rather than of tokens: each part of the weight's gradient is then written once, by one product
    over all tokens, and nothing is accumulated in bfloat16.
    """

    @staticmethod
    def forward(ctx, hidden: Tensor, weight: Tensor, target: Tensor, temperature: float, with_entropy: bool):  # noqa: ANN001, ANN205
        zeros = torch.zeros(target.shape, dtype=wide_dtype(weight), device=hidden.device)
        logit, normaliser, expectation = zeros.clone(), zeros - torch.inf, zeros.clone()
        for part, logits, spare in _chunks(hidden, weight, temperature):
            rows, columns = _inside(target, part)
            logit[rows] = logits[rows, columns]
            # The largest logit and its share of the chunk give the chunk's normaliser; the share is never below 1 / width.
            share = torch.softmax(logits, dim=-1, out=spare)
            of_part = logits.amax(dim=-1) - share.amax(dim=-1).log()
            both = torch.logaddexp(normaliser, of_part)
            if with_entropy:  # the mean logit, chunk after chunk
                mean = torch.linalg.vecdot(share, logits)
                expectation = expectation * torch.exp(normaliser - both) + mean * torch.exp(of_part - both)
            normaliser = both
        entropy = normaliser - expectation
        ctx.save_for_backward(hidden, weight, target, normaliser)
        ctx.temperature = temperature
        ctx.mark_non_differentiable(entropy)
        return logit - normaliser, entropy

    @staticmethod
    def backward(ctx, gradient: Tensor, _: Tensor):  # noqa: ANN001, ANN205
        hidden, weight, target, normaliser = ctx.saved_tensors
        # d logprob / d logits = onehot(target) - probabilities; the token's own factor goes to the narrow side of each product
        factor = (-gradient / ctx.temperature)[:, None]
        scaled = (hidden * factor).to(hidden.dtype)
        d_hidden = torch.zeros(hidden.shape, dtype=wide_dtype(weight), device=hidden.device)
        d_weight = torch.empty_like(weight)
        for part, logits, spare in _chunks(hidden, weight, ctx.temperature):
            d_logits = logits.sub_(normaliser[:, None]).exp_()
            rows, columns = _inside(target, part)
            d_logits[rows, columns] -= 1  # before rounding: 1 - p may be small
            if d_logits.dtype != weight.dtype:
                d_logits = spare.view(weight.dtype).view(-1)[: d_logits.numel()].view_as(d_logits).copy_(d_logits)
            d_hidden += torch.mm(d_logits, weight[part])
            torch.mm(d_logits.T, scaled, out=d_weight[part])
        return d_hidden.mul_(factor).to(hidden.dtype), d_weight, None, None, None


def _chunks(hidden: Tensor, weight: Tensor, temperature: float) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """(slice of the vocabulary, its logits / temperature in `wide_dtype` [M, width], as much spare room), about CHUNK logits at a time.

    Both tensors are valid until the next chunk: memory that is asked for anew has to be mapped page by page, which took
    longer on a CPU than the arithmetic on it.
    """
    count = len(hidden)
    width = min(max(CHUNK // max(count, 1), 1), len(weight))
    product = torch.empty(count * width, dtype=weight.dtype, device=hidden.device)
    wide = product if product.dtype == wide_dtype(weight) else torch.empty_like(product, dtype=wide_dtype(weight))
    spare = torch.empty_like(wide)
    for start in range(0, len(weight), width):
        part = slice(start, min(start + width, len(weight)))
        shape = (count, part.stop - start)
        product_here, wide_here, spare_here = (room[: count * shape[1]].view(shape) for room in (product, wide, spare))
        torch.mm(hidden, weight[part].T, out=product_here)
        if wide is not product:
            wide_here.copy_(product_here)
        if temperature != 1:
            wide_here.div_(temperature)
        yield part, wide_here, spare_here


def _inside(target: Tensor, part: slice) -> tuple[Tensor, Tensor]:
    """Tokens whose target lies in this part of the vocabulary, and its column there."""
    rows = ((target >= part.start) & (target < part.stop)).nonzero()[:, 0]
    return rows, target[rows] - part.start


class Policy(nn.Module):
    """A Hugging Face causal language model, kept as `self.model` in its own form: save and load it as usual.

    Packed policies take packed micro-batches only, plain ones plain ones only. Dropout is off.

    Raises:
        ValueError: a model whose attention or output the policy would get wrong.
    """

    def __init__(self, model: PreTrainedModel, packing: bool = True, layers: Layers = "fused", attention: Attention = "blocks") -> None:
        super().__init__()
        self.model = model
        self.packing = packing
        prepare_backbone(model, packing, attention, layers)
        _take_over_head(model)

    def enable_activation_checkpointing(self) -> None:
        """Recompute each layer in the backward pass instead of keeping its activations: less memory, about 4/3 the work."""
        self.model.gradient_checkpointing_enable({"use_reentrant": False})

    def forward(self, micro_batch: MicroBatch, temperature: float = 1.0, with_entropy: bool = False) -> Logprobs:
        """Log-probabilities of the micro-batch's completion tokens at sampling temperature `temperature` (> 0)."""
        if (micro_batch.layout is not None) != self.packing:
            other = "plain" if self.packing else "packed"
            raise ValueError(f"policy with packing={self.packing} was given a {other} micro-batch; plan it likewise.")
        extra = {"layout": micro_batch.layout} if self.packing else {"attention_mask": micro_batch.attention_mask}
        hidden = self.model.get_decoder()(
            input_ids=micro_batch.input_ids, position_ids=micro_batch.position_ids, use_cache=False, **extra
        ).last_hidden_state
        chosen = hidden.flatten(0, 1).index_select(0, micro_batch.source)
        return Logprobs(*self.model.get_output_embeddings()(chosen, micro_batch.target, temperature, with_entropy))


def _take_over_head(model: PreTrainedModel) -> None:
    """Make the output layer a `LogprobHead`, in place.

    Raises:
        ValueError: logits that are capped or scaled, or an output layer that is not a plain bias-free linear one.
    """
    config, name = model.config.get_text_config(), type(model).__name__
    for setting in ("final_logit_softcapping", "logits_scaling", "logit_scale"):
        if getattr(config, setting, None) not in (None, 1, 1.0):
            raise ValueError(f"{name}: {setting} is {getattr(config, setting)}; only unscaled, uncapped logits are supported.")
    head = model.get_output_embeddings()
    if not isinstance(head, nn.Linear) or head.bias is not None:
        raise ValueError(f"{name}: expected a linear output layer without bias, found {head}.")
    if not isinstance(head, LogprobHead):
        model.set_output_embeddings(LogprobHead(head))


def load_policy(
    path: str | Path, dtype: torch.dtype, packing: bool = True, layers: Layers = "fused", attention: Attention = "blocks"
) -> Policy:
    """Load a Hugging Face folder or hub name as a policy in training mode, its weights in `dtype`."""
    return Policy(AutoModelForCausalLM.from_pretrained(path, dtype=dtype), packing, layers, attention).train()
