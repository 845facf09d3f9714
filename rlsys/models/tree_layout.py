"""Layout of a tree of token segments for attention: which tokens form a block, and what each attends to.

A token attends to all tokens of its node's ancestors and causally to its own node, restricted by the model's mask (a window, a chunk).
Masks are rules on positions, and positions count along a token's own path, so the rules of all transformers models apply unchanged.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

MAX_NODE = 512
"""Longer nodes are split into chains, so that few scores above the diagonal are computed."""
BLOCK = 128
"""Tokens of a block of flex attention's mask."""
PAIRS = 1024
"""Pairs of blocks that are examined at a time for a mask rule: 16 million pairs of tokens."""
MIN_FILL = 0.7
"""Length of a block's shortest node, at least, as a fraction of its longest."""

MaskRule = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""A mask function of transformers: (batch, head, query position, key position) -> bool."""


@dataclass(frozen=True)
class Node:
    """A run of tokens start .. start + length - 1; `parent` is the number of an earlier node, or -1."""

    start: int
    length: int
    parent: int


@dataclass
class Block:
    """n sibling nodes, padded to L tokens, below ancestors of P tokens. All tensors are long and hold token indices."""

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
class BlockIndex:
    """A block as row indices into q [T * H, D] and into k and v [T * K, ...]; R query heads share each of the K key heads.

    P counts the ancestor tokens that are visible to some token of the block.
    """

    shape: tuple[int, int, int, int, int]  # K, R, n, L, P
    query: Tensor  # [K * n * R * L]
    result: Tensor  # the same, with padding sent to row T * H
    key: Tensor  # [K * n * (P + L)]: the ancestors' tokens, then the node's own
    prefix: Tensor  # [K * P]
    own: Tensor  # [K * n * L]
    real: Tensor | None  # bool [1, n, 1, L, 1]; None without padding
    mask: Tensor  # float [R * L, P + L]: 0 where visible, -inf elsewhere (later tokens of the node, or tokens outside a window)


@dataclass
class Layout:
    """A tree of T tokens, each in exactly one block."""

    blocks: list[Block]
    length: int
    until: Tensor
    """long [T]: end (exclusive) of the subtree of each token's node. In depth-first order, token i attends to j iff j <= i < until[j]."""
    position: Tensor
    """long [T]: position of each token on its path, from 0 at the root."""
    _rows: dict[tuple[int, int, torch.dtype], list[BlockIndex]] = field(default_factory=dict, repr=False)
    _mask: BlockMask | None = field(default=None, repr=False)

    def to(self, device: torch.device | str) -> Layout:
        """Return a copy on `device`."""
        blocks = [replace(b, prefix=b.prefix.to(device), tokens=b.tokens.to(device), lengths=b.lengths.to(device)) for b in self.blocks]
        return Layout(blocks, self.length, self.until.to(device), self.position.to(device))

    def mask(self, sees: MaskRule | None = None) -> BlockMask:
        """Return the block mask for flex attention."""
        if sees is None and self._mask is not None:
            return self._mask
        mask = _block_mask(self.until, self.position, sees)
        if sees is None:
            self._mask = mask
        return mask

    def rows(self, heads: int, key_heads: int, dtype: torch.dtype, sees: MaskRule | None = None) -> list[BlockIndex]:
        """Return index tensors and masks for a model's head counts; cached unless a mask rule is given."""
        key = (heads, key_heads, dtype)
        if key not in self._rows:
            self._rows[key] = [_index(block, heads, key_heads, self.length, dtype) for block in self.blocks]
        if sees is None:
            return self._rows[key]
        rules = [_rule(block, sees) for block in self.blocks]
        return [
            rows if rule is None else _index(block, heads, key_heads, self.length, dtype, rule)
            for block, rows, rule in zip(self.blocks, self._rows[key], rules, strict=True)
        ]


class TreeMask:
    """The layout and mask rule, passed to transformers' layers in place of an attention mask.

    A forward pass creates one per layer type, and all layers of that type share its cached indices.
    """

    def __init__(self, layout: Layout, sees: MaskRule | None = None) -> None:
        """
        Args:
            sees: mask rule along a token's own path; None: causal.
        """
        self.layout, self.sees = layout, sees
        self.used = 0
        """Number of attention calls that used it."""
        self._rows: dict[tuple[int, int, torch.dtype], list[BlockIndex]] = {}
        self._mask: BlockMask | None = None

    def rows(self, heads: int, key_heads: int, dtype: torch.dtype) -> list[BlockIndex]:
        """As `Layout.rows`, under this mask's rule.

        Raises:
            ValueError: the rule is not causal.
        """
        key = (heads, key_heads, dtype)
        if key not in self._rows:
            self._rows[key] = self.layout.rows(*key, self.sees)
        return self._rows[key]

    def blocks(self) -> BlockMask:
        """As `Layout.mask`, under this mask's rule."""
        if self._mask is None:
            self._mask = self.layout.mask(self.sees)
        return self._mask


def build_layout(nodes: list[Node]) -> Layout:
    """Group the nodes of a tree into blocks of siblings of similar length.

    Args:
        nodes: in depth-first order, each starting where the previous one ends.

    Raises:
        ValueError: an empty node, or nodes in another order.
    """
    chained: list[Node] = []
    last_of: list[int] = []  # node -> last node of its chain
    open_nodes: list[int] = []  # path from the root to the previous node
    total = 0
    for number, node in enumerate(nodes):
        while open_nodes and open_nodes[-1] != node.parent:
            open_nodes.pop()
        if node.length < 1 or node.start != total or (node.parent >= 0 and not open_nodes):
            raise ValueError(
                f"node {number}: expected tokens from {total} on, with the previous node or one of its ancestors as parent, found {node}."
            )
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
    blocks: list[Block] = []
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
    lengths = torch.tensor([node.length for node in nodes])
    depths: list[int] = []
    for node in nodes:
        depths.append(0 if node.parent < 0 else depths[node.parent] + nodes[node.parent].length)
    first = torch.tensor([depth - node.start for depth, node in zip(depths, nodes, strict=True)])
    return Layout(blocks, total, torch.tensor(ends).repeat_interleave(lengths), torch.arange(total) + first.repeat_interleave(lengths))


def _block_mask(until: Tensor, position: Tensor, sees: MaskRule | None) -> BlockMask:
    """Build the mask of a packed row from its tree; memory grows with the number of blocks, not with the number of token pairs.

    In depth-first order, a block of queries I sees something of an earlier block of keys J if the longest subtree that begins in J reaches
    I, and all of it if every subtree does. Only with a rule, pairs of tokens are looked at, block by block.
    """

    def within(batch: Tensor, head: Tensor, i: Tensor, j: Tensor) -> Tensor:
        path = (j <= i) & (i < until[j])
        return path if sees is None else path & sees(batch, head, position[i], position[j])

    length, device = len(until), until.device
    count = -(-length // BLOCK)
    first = torch.arange(count, device=device) * BLOCK
    ends = F.pad(until, (0, count * BLOCK - length)).view(count, BLOCK)
    before = first < first[:, None]
    some = (before & (ends.amax(dim=1) > first[:, None])) | torch.eye(count, dtype=torch.bool, device=device)
    # The last block of queries may be incomplete; flex attention then compares it token by token.
    full = before & (ends.amin(dim=1) >= first[:, None] + BLOCK) & (first[:, None] + BLOCK <= length)
    if sees is not None:
        some, full = _visible(some, within, length)
    partial = some & ~full
    return BlockMask.from_kv_blocks(
        *_ordered(partial), *_ordered(full), BLOCK_SIZE=BLOCK, mask_mod=within, seq_lengths=(length, length), compute_q_blocks=True
    )


def _visible(some: Tensor, within: MaskRule, length: int) -> tuple[Tensor, Tensor]:
    """Return which of the pairs of blocks `some` see each other in part, and which in full, bool [blocks, blocks]."""
    visible, full = torch.zeros_like(some), torch.zeros_like(some)
    offset, zero = torch.arange(BLOCK, device=some.device), torch.zeros((), dtype=torch.long, device=some.device)
    for pairs in some.nonzero().split(PAIRS):
        i, j = (pairs[:, side, None] * BLOCK + offset for side in (0, 1))
        real = (i < length)[:, :, None] & (j < length)[:, None]
        # Indices beyond the end are clamped; `real` excludes them.
        seen = within(zero, zero, i.clamp(max=length - 1)[:, :, None], j.clamp(max=length - 1)[:, None]) & real
        visible[tuple(pairs.T)] = seen.any(dim=2).any(dim=1)
        full[tuple(pairs.T)] = seen.all(dim=2).all(dim=1)
    return visible, full


def _ordered(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """Return which key blocks each block of queries visits.

    Returns:
        their number, int32 [1, 1, blocks], and the indices of all blocks, those visited first, int32 [1, 1, blocks, blocks].
    """
    order = torch.argsort(blocks.to(torch.int8), dim=1, descending=True, stable=True)
    return blocks.sum(dim=1, dtype=torch.int32)[None, None], order.to(torch.int32)[None, None]


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


def _rule(block: Block, sees: MaskRule) -> Tensor | None:
    """Return what a node's own tokens attend to, bool [L, P + L], the same for all siblings; None if the rule is plain causal."""
    width, prefix = block.tokens.shape[1], len(block.prefix)
    position = torch.arange(prefix + width, device=block.tokens.device)
    query, zero = position[prefix:, None], position.new_zeros(())
    rule = sees(zero, zero, query, position).expand(width, prefix + width)
    causal = position <= query
    if (rule & ~causal).any():
        raise ValueError("its attention is not causal, which packed rows do not support.")
    return None if torch.equal(rule, causal) else rule


def _index(block: Block, heads: int, key_heads: int, total: int, dtype: torch.dtype, rule: Tensor | None = None) -> BlockIndex:
    device, (n, width) = block.tokens.device, block.tokens.shape
    group = heads // key_heads
    ancestors = block.prefix
    if rule is None:
        mask = F.pad(torch.full((width, width), -torch.inf, dtype=dtype, device=device).triu(1), (len(ancestors), 0))
    else:
        seen = rule.any(dim=0)
        seen[len(ancestors) :] = True
        ancestors = ancestors[seen[: len(ancestors)]]  # skip keys outside all windows
        mask = torch.zeros(rule.shape, dtype=dtype, device=device).masked_fill_(~rule, -torch.inf)[:, seen]
    key_head = torch.arange(key_heads, device=device)
    own = block.tokens * key_heads + key_head[:, None, None]  # [K, n, L]
    head = torch.arange(heads, device=device).view(key_heads, 1, group, 1)
    prefix = ancestors * key_heads + key_head[:, None]  # [K, P]
    query = block.tokens[:, None] * heads + head  # [K, n, R, L]
    real = (torch.arange(width, device=device) < block.lengths[:, None])[:, None]  # [n, 1, L]
    return BlockIndex(
        shape=(key_heads, group, n, width, len(ancestors)),
        query=query.flatten(),
        result=torch.where(real, query, total * heads).flatten(),
        key=torch.cat([prefix[:, None].expand(-1, n, -1), own], dim=-1).flatten(),
        prefix=prefix.flatten(),
        own=own.flatten(),
        real=real[None, ..., None] if block.padded else None,
        mask=mask.repeat(group, 1),
    )
