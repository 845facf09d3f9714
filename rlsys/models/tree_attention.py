"""Attention over a tree of token segments, as attention functions of transformers (`rlsys_tree`, `rlsys_flex`).

Nodes with the same parent are computed side by side as one batched product of their queries with their ancestors' keys and their own, and
one softmax. No [T, T] mask or score matrix exists. Training uses matrix products and a softmax rather than fused attention, whose backward
pass is slow on a CPU with blocks of a hundred tokens; where no gradient is wanted, as in the reference pass, it is the fused one.

With each function goes a mask function, which transformers calls for every kind of layer with that kind's rule (everything before, a
sliding window, a chunk). What it returns, a `TreeMask`, reaches every attention layer in the mask's place, also when it is recomputed.
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
from torch.nn.attention.flex_attention import AuxRequest, flex_attention
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, causal_mask_function

from rlsys.models.fused_layers import wide_dtype
from rlsys.models.tree_layout import BlockIndex, Layout, MaskRule, TreeMask

NAMES = {"blocks": "rlsys_tree", "flex": "rlsys_flex"}
"""Under which transformers knows the two ways to compute it."""
CHANGES_SCORES = ("position_bias", "indices", "block_indices")
"""Arguments of transformers' attention functions by which a layer asks for something that is not computed here."""


class Scoring(NamedTuple):
    """What a layer does to its scores before the softmax."""

    scale: float
    """Factor, usually D ** -0.5."""
    cap: float | None = None
    """Scores become cap * tanh(score / cap), as in Gemma 2 (arXiv 2408.00118)."""
    sinks: Tensor | None = None
    """[H]: a further score per head, which takes its share of the softmax and has no value, as in GPT-OSS (arXiv 2508.10925)."""


class _TreeAttention(torch.autograd.Function):
    """q [T * H, D], k [T * K, D], v [T * K, E], sinks [H] or None -> [T * H, E]."""

    @staticmethod
    def forward(
        ctx, q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None, rows: list[BlockIndex], scale: float, cap: float | None
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
    def backward(ctx, gradient: Tensor):
        q, k, v, sinks, *kept = ctx.saved_tensors
        dq = q.new_empty(q.shape[0] + 1, q.shape[1])
        # a shared prefix collects from many nodes: more precision than bfloat16 has
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
            if sinks is not None:  # its share meets no value
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
        return dq[:-1], dk.to(k.dtype), dv.to(v.dtype), None if sinks is None else d_sinks.to(sinks.dtype), None, None, None


def _gather(block: BlockIndex, q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """The block's scaled queries [K * n, R * L, D], its keys [K * n, P + L, D] and values [K * n, P + L, E]."""
    key_heads, group, n, width, prefix = block.shape
    query = q.index_select(0, block.query).mul_(scale).view(key_heads * n, group * width, -1)
    key, value = (x.index_select(0, block.key).view(key_heads * n, prefix + width, -1) for x in (k, v))
    return query, key, value


def _attention_weights(block: BlockIndex, query: Tensor, key: Tensor, sinks: Tensor | None, cap: float | None) -> Tensor:
    """The softmax of the block's scores [K * n, R * L, P + L]; with sinks, one more column for theirs."""
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
    """What `_TreeAttention` answers, and nothing is kept: by PyTorch's fused attention, where that has a place for all of it."""
    out = v.new_empty(q.shape[0] + 1, v.shape[1])
    for block in rows:
        query, key, value = _gather(block, q, k, v, scale)
        if sinks is None and cap is None:
            answer = F.scaled_dot_product_attention(query[:, None], key[:, None], value[:, None], attn_mask=block.mask, scale=1.0)[:, 0]
        else:
            answer = torch.bmm(_attention_weights(block, query, key, sinks, cap)[..., : key.shape[1]], value)
        out.index_copy_(0, block.result, answer.flatten(0, 1))
    return out[:-1]


def tree_attention(query: Tensor, key: Tensor, value: Tensor, mask: TreeMask, scoring: Scoring) -> Tensor:
    """Attention of one packed row.

    Args:
        query: [1, H, T, D]; key: [1, K, T, D]; value: [1, K, T, E]; K a divisor of H, T = mask.layout.length.

    Returns:
        [1, T, H, E].
    """
    heads, key_heads = query.shape[1], key.shape[1]
    q, k, v = (x.transpose(1, 2).reshape(-1, x.shape[-1]) for x in (query, key, value))
    attend = _TreeAttention.apply if torch.is_grad_enabled() else _without_gradient
    rows = mask.rows(heads, key_heads, query.dtype)
    return attend(q, k, v, scoring.sinks, rows, scoring.scale, scoring.cap).view(1, -1, heads, v.shape[-1])


def flex_tree_attention(query: Tensor, key: Tensor, value: Tensor, mask: TreeMask, scoring: Scoring) -> Tensor:
    """The same as `tree_attention` by PyTorch's flex attention (arXiv 2412.05496), which skips blocks of which no token sees another.

    On a card it is one compiled kernel each way. On a CPU, where PyTorch has no backward pass for it, all scores exist, to compare with.

    Raises:
        ValueError: a gradient is wanted on a CPU.
    """
    if query.requires_grad and not query.is_cuda:
        raise ValueError(f"learner.attention=flex trains on cards, found {query.device}; set learner.attention=blocks.")
    attend = _compiled_flex() if query.is_cuda else flex_attention
    cap, sinks = scoring.cap, scoring.sinks

    def capped(score: Tensor, *_: Tensor) -> Tensor:
        return cap * torch.tanh(score / cap)

    extra = {"block_mask": mask.blocks(), "scale": scoring.scale, "enable_gqa": True, "score_mod": None if cap is None else capped}
    if sinks is None:
        return attend(query, key, value, **extra).transpose(1, 2)
    out, aux = attend(query, key, value, return_aux=AuxRequest(lse=True), **extra)
    # A sink takes exp(sink) of a sum that was exp(lse) without it.
    return (out * torch.sigmoid(aux.lse - sinks[:, None])[..., None].to(out.dtype)).transpose(1, 2)


@cache
def _compiled_flex() -> Callable[..., Tensor]:
    # Every micro-batch has a length of its own: one kernel for all.
    return torch.compile(flex_attention, dynamic=True)


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
    """Called by every attention layer; a window's length comes as a kwarg, too, but what counts is the mask's rule."""
    if not isinstance(attention_mask, TreeMask):
        raise ValueError(f"{type(module).__name__} was given no mask of a packed row; pass packed micro-batches through Policy.")
    shape, length = list(query.shape), attention_mask.layout.length
    if shape[0] != 1 or shape[2] != length or key.shape[2] != length:
        raise ValueError(f"{type(module).__name__}: queries {shape} and keys {list(key.shape)} for a packed row of {length} tokens.")
    asked = [name for name in CHANGES_SCORES if kwargs.get(name) is not None]
    if asked:
        raise ValueError(f"{type(module).__name__} attends with {', '.join(asked)}, which packed rows do not support.")
    if dropout:
        raise ValueError(f"attention dropout is {dropout}; training by log-probabilities needs it to be 0.")
    if getattr(module, "attn_temperature_tuning", False) and not module.use_rope:
        query = query * _llama4_temperature(module, attention_mask.layout).to(query.dtype)
    attention_mask.used += 1
    scoring = Scoring(query.shape[-1] ** -0.5 if scaling is None else scaling, softcap, s_aux)
    return compute(query, key, value, attention_mask, scoring), None


def _llama4_temperature(module: nn.Module, layout: Layout) -> Tensor:
    """[T, 1]: what its queries were scaled by goes by the place in the row, and is to go by the position."""

    def factor(position: Tensor) -> Tensor:
        return torch.log1p(torch.floor((position.float() + 1) / module.floor_scale)) * module.attn_scale + 1

    return (factor(layout.position) / factor(torch.arange(layout.length, device=layout.position.device)))[:, None]


_packed: ContextVar[tuple[Layout, list[TreeMask]]] = ContextVar("packed")


@contextmanager
def packed(layout: Layout) -> Iterator[list[TreeMask]]:
    """Forward passes within are over one row laid out like this; yields the masks that they ask for, as they come."""
    token = _packed.set((layout, []))
    try:
        yield _packed.get()[1]
    finally:
        _packed.reset(token)


def _mask_function(*_: object, mask_function: MaskRule, **__: object) -> TreeMask:
    found = _packed.get(None)
    if found is None:
        raise ValueError("expected a packed row; pass packed micro-batches through Policy.")
    layout, masks = found
    masks.append(TreeMask(layout, None if mask_function is causal_mask_function else mask_function))
    return masks[-1]


def exclude_from_compilation() -> None:
    """Have torch.compile go round `rlsys_tree`, in this process: it would follow a layout's every index, of every micro-batch anew."""
    AttentionInterface.register(NAMES["blocks"], torch.compiler.disable(partial(_attention_function, tree_attention)))


AttentionInterface.register(NAMES["blocks"], partial(_attention_function, tree_attention))
AttentionInterface.register(NAMES["flex"], partial(_attention_function, flex_tree_attention))
for _name in NAMES.values():
    AttentionMaskInterface.register(_name, _mask_function)
