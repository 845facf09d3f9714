"""Attention over a tree of token segments, as attention functions of transformers (`rlsys_tree`, `rlsys_flex`).

Every token attends to all tokens of its node's ancestors and causally to its own node. Nodes with the same parent are
computed side by side as one batched product of their queries with their ancestors' keys and their own, and one softmax. No
[T, T] mask or score matrix exists. Training uses matrix products and a softmax rather than fused attention, whose backward pass is slow
on a CPU with blocks of a hundred tokens; where no gradient is wanted, as in the reference pass, it is the fused one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache, partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention
from transformers import AttentionInterface

from rlsys.fused_layers import wide_dtype

NAMES = {"blocks": "rlsys_tree", "flex": "rlsys_flex"}
"""Under which transformers knows the two ways to compute it."""
MAX_NODE = 512  # longer nodes become chains, so that scores above the diagonal are hardly computed
MIN_FILL = 0.7  # shortest node of a block, as a share of its longest


@dataclass(frozen=True)
class Node:
    """A run of tokens start .. start + length - 1; `parent` is the number of an earlier node, or -1."""

    start: int
    length: int
    parent: int


@dataclass
class Block:
    """n sibling nodes, padded to L tokens, below ancestors of P tokens. All tensors long, entries are token numbers."""

    prefix: Tensor
    """[P]: the ancestors' tokens."""
    tokens: Tensor
    """[n, L]: the nodes' own tokens; padding repeats a node's first token."""
    lengths: Tensor
    """[n]."""

    @property
    def padded(self) -> bool:
        return bool((self.lengths < self.tokens.shape[1]).any())


@dataclass
class _Rows:
    """A block in terms of the rows of q [T * H, D] and of k and v [T * K, D]; R query heads share each of the K key heads."""

    shape: tuple[int, int, int, int, int]  # K, R, n, L, P
    query: Tensor  # [K * n * R * L]
    result: Tensor  # the same, with padding sent to row T * H
    key: Tensor  # [K * n * (P + L)]: the ancestors' tokens, then the node's own
    prefix: Tensor  # [K * P]
    own: Tensor  # [K * n * L]
    real: Tensor | None  # bool [1, n, 1, L, 1]; None without padding
    mask: Tensor  # float [R * L, P + L]: 0, and -inf above the diagonal of a node's own tokens


@dataclass
class Layout:
    """A tree of T tokens, every one of them in exactly one block."""

    blocks: list[Block]
    length: int
    until: Tensor
    """long [T]: the first token after the subtree of each token's node. In a tree laid out depth first, token i sees token j exactly
    where j <= i < until[j]."""
    _rows: dict[tuple[int, int, torch.dtype], list[_Rows]] = field(default_factory=dict, repr=False)
    _mask: BlockMask | None = field(default=None, repr=False)

    def to(self, device: torch.device | str) -> Layout:
        """The same layout on `device`."""
        blocks = [replace(b, prefix=b.prefix.to(device), tokens=b.tokens.to(device), lengths=b.lengths.to(device)) for b in self.blocks]
        return Layout(blocks, self.length, self.until.to(device))

    def mask(self) -> BlockMask:
        """Which blocks of tokens see which, for flex attention; computed once, used by all layers."""
        if self._mask is None:
            until = self.until
            self._mask = create_block_mask(
                lambda batch, head, i, j: (j <= i) & (i < until[j]), None, None, self.length, self.length, until.device
            )
        return self._mask

    def rows(self, heads: int, key_heads: int, dtype: torch.dtype) -> list[_Rows]:
        """Index tensors and masks for a model's numbers of heads; computed once, used by all of its layers."""
        key = (heads, key_heads, dtype)
        if key not in self._rows:
            self._rows[key] = [_index(block, heads, key_heads, self.length, dtype) for block in self.blocks]
        return self._rows[key]


def build_layout(nodes: list[Node]) -> Layout:
    """Group the nodes of a tree into blocks: siblings together, like lengths together.

    Args:
        nodes: depth first, and so that each begins where the one before ends.

    Raises:
        ValueError: an empty node, or nodes that are not laid out like this.
    """
    chained: list[Node] = []
    last_of: list[int] = []  # node -> the end of its chain
    open_nodes: list[int] = []  # from the root to the node before
    total = 0
    for number, node in enumerate(nodes):
        while open_nodes and open_nodes[-1] != node.parent:
            open_nodes.pop()
        if node.length < 1 or node.start != total or (node.parent >= 0 and not open_nodes):
            raise ValueError(f"node {number}: expected tokens from {total} on, below the node before or one above that, found {node}.")
        open_nodes.append(number)
        total += node.length
        parent = -1 if node.parent < 0 else last_of[node.parent]
        for offset in range(0, node.length, MAX_NODE):
            chained.append(Node(node.start + offset, min(MAX_NODE, node.length - offset), parent))
            parent = len(chained) - 1
        last_of.append(parent)
    children: dict[int, list[Node]] = {}
    for node in chained:
        children.setdefault(node.parent, []).append(node)
    blocks = []
    for parent, siblings in children.items():
        path: list[Tensor] = []
        while parent >= 0:
            path.insert(0, torch.arange(chained[parent].start, chained[parent].start + chained[parent].length))
            parent = chained[parent].parent
        prefix = torch.cat(path) if path else torch.empty(0, dtype=torch.long)
        blocks.extend(_block(prefix, bucket) for bucket in _buckets(siblings))
    ends = [node.start + node.length for node in nodes]
    for number in reversed(range(len(nodes))):
        if nodes[number].parent >= 0:
            ends[nodes[number].parent] = max(ends[nodes[number].parent], ends[number])
    until = torch.tensor(ends).repeat_interleave(torch.tensor([node.length for node in nodes]))
    return Layout(blocks, total, until)


def _buckets(siblings: list[Node]) -> list[list[Node]]:
    buckets: list[list[Node]] = []
    for node in sorted(siblings, key=lambda node: -node.length):
        if buckets and node.length >= MIN_FILL * buckets[-1][0].length:
            buckets[-1].append(node)
        else:
            buckets.append([node])
    return buckets


def _block(prefix: Tensor, siblings: list[Node]) -> Block:
    starts = torch.tensor([node.start for node in siblings])[:, None]
    lengths = torch.tensor([node.length for node in siblings])
    offsets = torch.arange(int(lengths.max()))
    return Block(prefix, starts + torch.where(offsets < lengths[:, None], offsets, 0), lengths)


def _index(block: Block, heads: int, key_heads: int, total: int, dtype: torch.dtype) -> _Rows:
    device, (n, width) = block.tokens.device, block.tokens.shape
    group = heads // key_heads
    key_head = torch.arange(key_heads, device=device)
    own = block.tokens * key_heads + key_head[:, None, None]  # [K, n, L]
    head = torch.arange(heads, device=device).view(key_heads, 1, group, 1)
    prefix = block.prefix * key_heads + key_head[:, None]  # [K, P]
    query = block.tokens[:, None] * heads + head  # [K, n, R, L]
    real = (torch.arange(width, device=device) < block.lengths[:, None])[:, None]  # [n, 1, L]
    causal = torch.full((width, width), -torch.inf, dtype=dtype, device=device).triu(1)
    return _Rows(
        shape=(key_heads, group, n, width, len(block.prefix)),
        query=query.flatten(),
        result=torch.where(real, query, total * heads).flatten(),
        key=torch.cat([prefix[:, None].expand(-1, n, -1), own], dim=-1).flatten(),
        prefix=prefix.flatten(),
        own=own.flatten(),
        real=real[None, ..., None] if block.padded else None,
        mask=F.pad(causal.repeat(group, 1), (len(block.prefix), 0)),
    )


class _TreeAttention(torch.autograd.Function):
    """q [T * H, D], k and v [T * K, D] -> [T * H, D]."""

    @staticmethod
    def forward(ctx, q: Tensor, k: Tensor, v: Tensor, rows: list[_Rows], scale: float) -> Tensor:  # noqa: ANN001
        out = q.new_empty(q.shape[0] + 1, q.shape[1])
        kept = []
        for block in rows:
            query, key, value = _gather(block, q, k, v, scale)
            p = torch.softmax(torch.baddbmm(block.mask, query, key.transpose(1, 2)), dim=-1)
            out.index_copy_(0, block.result, torch.bmm(p, value).flatten(0, 1))
            kept.append(p)
        ctx.rows, ctx.scale = rows, scale
        ctx.save_for_backward(q, k, v, *kept)
        return out[:-1]

    @staticmethod
    def backward(ctx, gradient: Tensor):  # noqa: ANN001, ANN205
        q, k, v, *kept = ctx.saved_tensors
        dq = q.new_empty(q.shape[0] + 1, q.shape[1])
        # a shared prefix collects from many nodes: more precision than bfloat16 has
        wide = wide_dtype(k)
        dk, dv = k.new_zeros(k.shape, dtype=wide), v.new_zeros(v.shape, dtype=wide)
        for block, p in zip(ctx.rows, kept, strict=True):
            key_heads, group, n, width, prefix = block.shape
            query, key, value = _gather(block, q, k, v, ctx.scale)
            upstream = gradient.index_select(0, block.query)
            if block.real is not None:
                upstream = upstream.view(key_heads, n, group, width, -1) * block.real
            upstream = upstream.view_as(query)
            ds = torch._softmax_backward_data(torch.bmm(upstream, value.transpose(1, 2)), p, -1, p.dtype)
            for total, part in ((dv, torch.bmm(p.transpose(1, 2), upstream)), (dk, torch.bmm(ds.transpose(1, 2), query))):
                part = part.view(key_heads, n, prefix + width, -1)
                total.index_add_(0, block.own, part[:, :, prefix:].to(wide).flatten(0, 2))
                if prefix:
                    total.index_add_(0, block.prefix, part[:, :, :prefix].sum(dim=1, dtype=wide).flatten(0, 1))
            dq.index_copy_(0, block.result, torch.bmm(ds, key).mul_(ctx.scale).flatten(0, 1))
        return dq[:-1], dk.to(k.dtype), dv.to(v.dtype), None, None


def _gather(block: _Rows, q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """The block's scaled queries [K * n, R * L, D] and its keys and values [K * n, P + L, D]."""
    key_heads, group, n, width, prefix = block.shape
    query = q.index_select(0, block.query).mul_(scale).view(key_heads * n, group * width, -1)
    key, value = (x.index_select(0, block.key).view(key_heads * n, prefix + width, -1) for x in (k, v))
    return query, key, value


def _without_gradient(q: Tensor, k: Tensor, v: Tensor, rows: list[_Rows], scale: float) -> Tensor:
    """What `_TreeAttention` answers, by PyTorch's fused attention: nothing is kept."""
    out = q.new_empty(q.shape[0] + 1, q.shape[1])
    for block in rows:
        query, key, value = (x[:, None] for x in _gather(block, q, k, v, scale))
        answer = F.scaled_dot_product_attention(query, key, value, attn_mask=block.mask, scale=1.0)
        out.index_copy_(0, block.result, answer.flatten(0, 2))
    return out[:-1]


def tree_attention(query: Tensor, key: Tensor, value: Tensor, layout: Layout, scale: float) -> Tensor:
    """Attention of one packed row.

    Args:
        query: [1, H, T, D]; key and value: [1, K, T, D], K a divisor of H; T = layout.length.
        scale: factor on the scores, usually D ** -0.5.

    Returns:
        [1, T, H, D].
    """
    heads, key_heads, dim = query.shape[1], key.shape[1], query.shape[-1]
    q, k, v = (x.transpose(1, 2).reshape(-1, dim) for x in (query, key, value))
    attend = _TreeAttention.apply if torch.is_grad_enabled() else _without_gradient
    return attend(q, k, v, layout.rows(heads, key_heads, query.dtype), scale).view(1, -1, heads, dim)


def flex_tree_attention(query: Tensor, key: Tensor, value: Tensor, layout: Layout, scale: float) -> Tensor:
    """The same as `tree_attention` by PyTorch's flex attention (arXiv 2412.05496), which skips blocks of which no token sees another.

    On a card it is one compiled kernel each way. On a CPU, where PyTorch has no backward pass for it, all scores exist, to compare with.

    Raises:
        ValueError: a gradient is wanted on a CPU.
    """
    if query.requires_grad and not query.is_cuda:
        raise ValueError(f"learner.attention=flex trains on cards, found {query.device}; set learner.attention=blocks.")
    attend = _compiled_flex() if query.is_cuda else flex_attention
    return attend(query, key, value, block_mask=layout.mask(), scale=scale, enable_gqa=True).transpose(1, 2)


@cache
def _compiled_flex() -> Callable[..., Tensor]:
    # Every micro-batch has a length of its own: one kernel for all.
    return torch.compile(flex_attention, dynamic=True)


def _attention_function(
    compute: Callable[[Tensor, Tensor, Tensor, Layout, float], Tensor],
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    layout: Layout | None = None,
    **kwargs: object,
) -> tuple[Tensor, None]:
    """Called by every attention layer; `layout` is a keyword of the model's forward call and survives checkpointing."""
    if layout is None or query.shape[0] != 1 or query.shape[2] != layout.length:
        found = "none" if layout is None else f"one of {layout.length} tokens"
        shape = list(query.shape)
        raise ValueError(f"expected a layout for queries {shape}, found {found}; pass packed micro-batches through Policy.")
    if dropout:
        raise ValueError(f"attention dropout is {dropout}; training by log-probabilities needs it to be 0.")
    return compute(query, key, value, layout, query.shape[-1] ** -0.5 if scaling is None else scaling), None


def keep_out_of_graphs() -> None:
    """Have torch.compile go round `rlsys_tree`, in this process: it would follow a layout's every index, of every micro-batch anew."""
    AttentionInterface.register(NAMES["blocks"], torch.compiler.disable(partial(_attention_function, tree_attention)))


# no mask function goes with them: transformers then builds no mask at all
AttentionInterface.register(NAMES["blocks"], partial(_attention_function, tree_attention))
AttentionInterface.register(NAMES["flex"], partial(_attention_function, flex_tree_attention))
