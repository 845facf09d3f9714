"""Attention over a tree of token segments, registered with transformers as `rlsys_tree` and `rlsys_flex`.

Nodes with the same parent are computed together: one batched product of their queries with their ancestors' keys and their own, and one
softmax. No [T, T] mask or score matrix is ever built. Training uses matrix products and a softmax rather than fused attention, whose
backward pass is slow on CPUs for blocks of a hundred tokens; passes without a gradient, such as the reference pass, use fused attention.

Each attention function has a mask function, which transformers calls for every layer type with that type's rule (causal, sliding window,
chunk). It returns a `TreeMask`, which is passed to the attention layers in place of a mask, also on recomputation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache, partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx
from torch.nn.attention.flex_attention import AuxRequest, flex_attention
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, causal_mask_function

from rlsys.models.fused_layers import wide_dtype
from rlsys.models.tree_layout import BlockIndex, Layout, MaskRule, TreeMask

NAMES = {"blocks": "rlsys_tree", "flex": "rlsys_flex"}
"""Names under which the implementations are registered with transformers."""
UNSUPPORTED = ("position_bias", "indices", "block_indices")
"""Arguments of transformers' attention functions that change the scores and are not supported here."""


class Scoring(NamedTuple):
    """Transformation of a layer's scores before the softmax."""

    scale: float
    """Factor applied to scores, usually D ** -0.5."""
    cap: float | None = None
    """Scores become cap * tanh(score / cap), as in Gemma 2 (arXiv 2408.00118)."""
    sinks: Tensor | None = None
    """[H]: an additional score per head, without a value, as in GPT-OSS (arXiv 2508.10925)."""


class _TreeAttention(torch.autograd.Function):
    """q [T * H, D], k [T * K, D], v [T * K, E], sinks [H] or None -> [T * H, E]."""

    @staticmethod
    def forward(
        ctx: FunctionCtx, q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None, rows: list[BlockIndex], scale: float, cap: float | None
    ) -> Tensor:
        out = v.new_empty(q.shape[0] + 1, v.shape[1])
        kept = []
        for block in rows:
            query, key, value = _gather(block, q, k, v, scale)
            p = _attention_weights(block, query, key, sinks, cap)
            out.index_copy_(0, block.result, torch.bmm(p[..., : key.shape[1]], value).flatten(0, 1))
            kept.append(p)
        ctx.rows, ctx.scale, ctx.cap = rows, scale, cap
        ctx.save_for_backward(q, k, v, sinks, *kept)
        return out[:-1]

    @staticmethod
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, sinks, *kept = ctx.saved_tensors
        dq = q.new_empty(q.shape[0] + 1, q.shape[1])
        # Gradients of a shared prefix are summed over many nodes, which needs more precision than bfloat16.
        wide = wide_dtype(k)
        dk, dv = k.new_zeros(k.shape, dtype=wide), v.new_zeros(v.shape, dtype=wide)
        d_sinks = None if sinks is None else sinks.new_zeros(sinks.shape, dtype=wide)
        for block, p in zip(ctx.rows, kept, strict=True):
            key_heads, group, n, width, prefix = block.shape
            query, key, value = _gather(block, q, k, v, ctx.scale)
            upstream = gradient.index_select(0, block.query)
            if block.real is not None:
                upstream = upstream.view(key_heads, n, group, width, -1) * block.real
            upstream = upstream.view(*query.shape[:2], -1)
            dp = torch.bmm(upstream, value.transpose(1, 2))
            if sinks is not None:  # the sink has no value
                dp = F.pad(dp, (0, 1))
            ds = torch._softmax_backward_data(dp, p, -1, p.dtype)
            if sinks is not None:
                d_sinks += ds[..., -1].view(key_heads, n, group, width).sum(dim=(1, 3), dtype=wide).flatten()
                p, ds = p[..., :-1], ds[..., :-1]
            if ctx.cap is not None:
                share = torch.bmm(query, key.transpose(1, 2)).div_(ctx.cap).tanh_()
                ds = ds * share.square_().neg_().add_(1)
            for total, part in ((dv, torch.bmm(p.transpose(1, 2), upstream)), (dk, torch.bmm(ds.transpose(1, 2), query))):
                part = part.view(key_heads, n, prefix + width, -1)
                total.index_add_(0, block.own, part[:, :, prefix:].to(wide).flatten(0, 2))
                if prefix:
                    total.index_add_(0, block.prefix, part[:, :, :prefix].sum(dim=1, dtype=wide).flatten(0, 1))
            dq.index_copy_(0, block.result, torch.bmm(ds, key).mul_(ctx.scale).flatten(0, 1))
        return dq[:-1], dk.to(k.dtype), dv.to(v.dtype), None if d_sinks is None else d_sinks.to(sinks.dtype), None, None, None


def _gather(block: BlockIndex, q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """Gather the block's scaled queries [K * n, R * L, D], keys [K * n, P + L, D] and values [K * n, P + L, E]."""
    key_heads, group, n, width, prefix = block.shape
    query = q.index_select(0, block.query).mul_(scale).view(key_heads * n, group * width, -1)
    key, value = (x.index_select(0, block.key).view(key_heads * n, prefix + width, -1) for x in (k, v))
    return query, key, value


def _attention_weights(block: BlockIndex, query: Tensor, key: Tensor, sinks: Tensor | None, cap: float | None) -> Tensor:
    """Compute the softmax of the block's scores [K * n, R * L, P + L]; with sinks, it has one more column for them."""
    if cap is None:
        scores = torch.baddbmm(block.mask, query, key.transpose(1, 2))
    else:
        scores = torch.bmm(query, key.transpose(1, 2)).div_(cap).tanh_().mul_(cap).add_(block.mask)
    if sinks is not None:
        key_heads, group, n, width, _ = block.shape
        column = sinks.to(scores.dtype).view(key_heads, 1, group, 1).expand(-1, n, -1, width)
        scores = torch.cat([scores, column.reshape(*scores.shape[:2], 1)], dim=-1)
    return torch.softmax(scores, dim=-1)


def _without_gradient(
    q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None, rows: list[BlockIndex], scale: float, cap: float | None
) -> Tensor:
    """Compute `_TreeAttention` without saving activations, by PyTorch's fused attention unless there are sinks or caps."""
    out = v.new_empty(q.shape[0] + 1, v.shape[1])
    for block in rows:
        query, key, value = _gather(block, q, k, v, scale)
        if sinks is None and cap is None:
            result = F.scaled_dot_product_attention(query[:, None], key[:, None], value[:, None], attn_mask=block.mask, scale=1.0)[:, 0]
        else:
            result = torch.bmm(_attention_weights(block, query, key, sinks, cap)[..., : key.shape[1]], value)
        out.index_copy_(0, block.result, result.flatten(0, 1))
    return out[:-1]


def tree_attention(query: Tensor, key: Tensor, value: Tensor, mask: TreeMask, scoring: Scoring) -> Tensor:
    """Compute attention for one packed row.

    Args:
        query: [1, H, T, D], T = mask.layout.length.
        key: [1, K, T, D], K a divisor of H.
        value: [1, K, T, E].

    Returns:
        [1, T, H, E].
    """
    heads, key_heads = query.shape[1], key.shape[1]
    q, k, v = (x.transpose(1, 2).reshape(-1, x.shape[-1]) for x in (query, key, value))
    attend = _TreeAttention.apply if torch.is_grad_enabled() else _without_gradient
    rows = mask.rows(heads, key_heads, query.dtype)
    return attend(q, k, v, scoring.sinks, rows, scoring.scale, scoring.cap).view(1, -1, heads, v.shape[-1])


def flex_tree_attention(query: Tensor, key: Tensor, value: Tensor, mask: TreeMask, scoring: Scoring) -> Tensor:
    """Compute `tree_attention` by PyTorch's flex attention (arXiv 2412.05496), which skips fully masked blocks.

    On a GPU it is one compiled kernel per direction. On a CPU, where PyTorch has no backward pass for it, it materialises all scores and
    serves as a reference.

    Raises:
        ValueError: a gradient is requested on a CPU.
    """
    if query.requires_grad and not query.is_cuda:
        raise ValueError(f"learner.attention=flex trains only on GPUs, found {query.device}; set learner.attention=blocks.")
    attend = _compiled_flex() if query.is_cuda else flex_attention
    cap, sinks = scoring.cap, scoring.sinks

    def capped(score: Tensor, *_: Tensor) -> Tensor:
        return cap * torch.tanh(score / cap)

    extra = {"block_mask": mask.blocks(), "scale": scoring.scale, "enable_gqa": True, "score_mod": None if cap is None else capped}
    if sinks is None:
        return attend(query, key, value, **extra).transpose(1, 2)
    out, aux = attend(query, key, value, return_aux=AuxRequest(lse=True), **extra)
    # A sink adds exp(sink) to the softmax denominator exp(lse).
    return (out * torch.sigmoid(aux.lse - sinks[:, None])[..., None].to(out.dtype)).transpose(1, 2)


@cache
def _compiled_flex() -> Callable[..., Tensor]:
    # Micro-batches differ in length; dynamic shapes need only one kernel.
    compiled: Callable[..., Tensor] = torch.compile(flex_attention, dynamic=True)
    return compiled


def _attention_function(
    compute: Callable[[Tensor, Tensor, Tensor, TreeMask, Scoring], Tensor],
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: object,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **kwargs: object,
) -> tuple[Tensor, None]:
    """Adapt `compute` to transformers' attention interface; the `sliding_window` argument is ignored, as the mask's rule covers it."""
    if not isinstance(attention_mask, TreeMask):
        raise ValueError(f"{type(module).__name__} did not receive the mask of a packed row; pass packed micro-batches through Policy.")
    shape, length = list(query.shape), attention_mask.layout.length
    if shape[0] != 1 or shape[2] != length or key.shape[2] != length:
        raise ValueError(f"{type(module).__name__}: queries {shape} and keys {list(key.shape)} for a packed row of {length} tokens.")
    requested = [name for name in UNSUPPORTED if kwargs.get(name) is not None]
    if requested:
        raise ValueError(f"{type(module).__name__} attends with {', '.join(requested)}, which packed rows do not support.")
    if dropout:
        raise ValueError(f"attention dropout is {dropout}; training on log-probabilities requires 0.")
    if getattr(module, "attn_temperature_tuning", False) and not module.use_rope:
        query = query * _llama4_temperature(module, attention_mask.layout).to(query.dtype)
    attention_mask.used += 1
    scoring = Scoring(query.shape[-1] ** -0.5 if scaling is None else scaling, softcap, s_aux)
    return compute(query, key, value, attention_mask, scoring), None


def _llama4_temperature(module: nn.Module, layout: Layout) -> Tensor:
    """Return the correction, [T, 1], of a query scale computed from the index in the packed row instead of the position on the path."""

    def factor(position: Tensor) -> Tensor:
        return torch.log1p(torch.floor((position.float() + 1) / module.floor_scale)) * module.attn_scale + 1

    return (factor(layout.position) / factor(torch.arange(layout.length, device=layout.position.device)))[:, None]


_packed: ContextVar[tuple[Layout, list[TreeMask]]] = ContextVar("packed")


@contextmanager
def packed(layout: Layout) -> Iterator[list[TreeMask]]:
    """Declare that forward passes within the block run on one packed row; yield the list of masks that they request."""
    token = _packed.set((layout, []))
    try:
        yield _packed.get()[1]
    finally:
        _packed.reset(token)


def _mask_function(*_: object, mask_function: MaskRule, **__: object) -> TreeMask:
    current = _packed.get(None)
    if current is None:
        raise ValueError("expected a packed row; pass packed micro-batches through Policy.")
    layout, masks = current
    masks.append(TreeMask(layout, None if mask_function is causal_mask_function else mask_function))
    return masks[-1]


def exclude_from_compilation() -> None:
    """Exclude `rlsys_tree` from torch.compile in this process, which would trace the indices of each micro-batch's layout."""
    AttentionInterface.register(NAMES["blocks"], torch.compiler.disable(partial(_attention_function, tree_attention)))


AttentionInterface.register(NAMES["blocks"], partial(_attention_function, tree_attention))
AttentionInterface.register(NAMES["flex"], partial(_attention_function, flex_tree_attention))
for _name in NAMES.values():
    AttentionMaskInterface.register(_name, _mask_function)
