"""Pack learner rows into micro-batches that encode each prompt once for all of its samples.

A packed micro-batch is a tree, laid out depth first in a single row of tokens:

    root        the longest prefix common to all prompts (usually the template), encoded once
    +- prompt   the rest of one group's prompt, encoded once per group
       +- sample, sample, ...   the group's completions

A token attends to the ancestors of its node and causally within its own node, and its position counts along that path. Log-probabilities
and gradients therefore equal those of separate rows, up to rounding. The plain form, one padded row per sample, is the reference.
`rlsys.models.tree_attention` computes the attention.

Example: group 0 has prompt [1 2 3] and completions [7 8 9] and [7 6]; group 1 has prompt [1 2 4 5] and completion [8 9]. Packed:

    node          root   prompt 0   sample 0   sample 1   prompt 1 + sample 2
    index         0 1    2          3 4        5          6 7 8
    input_ids     1 2    3          7 8        7          4 5 8
    position_ids  0 1    2          3 4        3          2 3 4

    sample        0 0 0   1 1   2 2      row of the learner batch
    source        2 3 4   2 5   7 8      index of the hidden state that predicts the token
    target        7 8 9   7 6   8 9      the token

9 tokens are encoded; separate rows take 5 + 4 + 5 = 14. A completion's last token predicts nothing, so it is not encoded; a group of one
sample keeps prompt and completion in one node.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from rlsys.data.chain import LearnerBatch
from rlsys.models.tree_layout import Layout, Node, build_layout

DUMMY_TOKENS = 4
"""Length of a micro-batch without samples."""
ATTENTION_SCALE = 4096
"""Context length at which attention costs about as much as the rest of a small model's layer."""


@dataclass
class MicroBatch:
    """Tokens to encode (B rows of T) and, flattened over its samples, the M completion tokens to score."""

    input_ids: Tensor
    """long [B, T]; B is 1 when packed."""
    position_ids: Tensor
    """long [B, T]: position of each token within its sample, prompt included."""
    layout: Layout | None
    """The tree if packed, None if plain."""
    attention_mask: Tensor | None
    """bool [B, T], False on padding, if plain; None if packed (no padding)."""
    source: Tensor
    """long [M]: index, into the B * T hidden states, of the state that predicts the token."""
    target: Tensor
    """long [M]: token id."""
    sample: Tensor
    """long [M]: the token's row in the whole batch."""
    advantage: Tensor
    """float [M]."""
    rollout_logprob: Tensor
    """float [M]; NaN for rows without one (supervised rows)."""
    weight: Tensor
    """float [M]: 1 / (N * |o_i|), N = samples in the whole batch over all ranks, |o_i| = completion tokens of the row."""

    @property
    def tokens(self) -> int:
        """Number of encoded tokens, padding excluded."""
        return self.input_ids.numel() if self.attention_mask is None else int(self.attention_mask.sum())

    def to(self, device: torch.device | str) -> MicroBatch:
        """Return a copy on `device`."""
        moved = {f.name: getattr(self, f.name).to(device) for f in fields(self) if getattr(self, f.name) is not None}
        return replace(self, **moved)


@dataclass(frozen=True)
class _Row:
    index: int
    group: int
    prompt: np.ndarray
    tokens: np.ndarray
    rollout_logprobs: np.ndarray
    advantage: float

    @property
    def encoded(self) -> int:
        return len(self.prompt) + len(self.tokens) - 1


@dataclass(frozen=True)
class _PackedGroup:
    """Rows that stay in one micro-batch: all rows of a group when packing, otherwise a single row."""

    prompt: np.ndarray
    rows: tuple[_Row, ...]

    @property
    def tokens(self) -> int:
        return len(self.prompt) + sum(len(row.tokens) - 1 for row in self.rows)

    @property
    def cost(self) -> float:
        """Estimated work, in units of one token of a short row."""
        context = len(self.prompt) + max(len(row.tokens) for row in self.rows)
        return self.tokens * (1 + context / ATTENTION_SCALE)


def plan_micro_batches(
    batch: LearnerBatch, world_size: int, token_budget: int, packing: bool = True, pad_token_id: int = 0, total_samples: int | None = None
) -> list[list[MicroBatch]]:
    """Split a batch into micro-batches: one list per rank, all of equal length.

    Deterministic, so each rank can compute all lists and take its own. Work is balanced across ranks by estimated cost. Ranks with
    fewer micro-batches get dummies (a few tokens to encode, none to score), because ranks must enter collectives together. A
    micro-batch encodes at most `token_budget` tokens, padding included; a group (or a row, without packing) beyond the budget gets a
    micro-batch of its own.

    Args:
        total_samples: N in the weights 1 / (N * |o_i|), the number of samples that these rows were selected from. None: the number of rows.

    Raises:
        ValueError: no rows, fewer samples than rows, a group without a prompt, an empty prompt or completion, or log-probabilities that do
            not match the tokens; the message names the row.
    """
    if world_size < 1 or token_budget < 1:
        raise ValueError(f"world_size and token_budget must be at least 1, found {world_size} and {token_budget}.")
    rows = _read(batch)
    samples = len(rows) if total_samples is None else total_samples
    if samples < len(rows):
        raise ValueError(f"learner batch: {len(rows)} rows cannot come from {samples} samples.")
    groups = _group(rows) if packing else [_PackedGroup(row.prompt, (row,)) for row in rows]
    ranks = []
    for share in _balance(groups, world_size):
        bins = _fill(share, token_budget, packing)
        ranks.append([_packed(b, samples) if packing else _plain(b, samples, pad_token_id) for b in bins])
    longest = max(len(share) for share in ranks)
    return [share + [dummy(packing, pad_token_id) for _ in range(longest - len(share))] for share in ranks]


def _read(batch: LearnerBatch) -> list[_Row]:
    if batch.num_rows == 0:
        raise ValueError("learner batch: expected at least one row, found none.")
    prompts = dict(zip(batch.prompts["group"].to_pylist(), _arrays(batch.prompts["prompt_token_ids"], np.int64)))
    completions = _arrays(batch.rows["token_ids"], np.int64)
    logprobs = _arrays(batch.rows["rollout_logprobs"], np.float32)
    columns = (batch.rows["group"].to_pylist(), completions, logprobs, batch.rows["advantage"].to_pylist())
    rows = []
    for index, (group, completion, rollout, advantage) in enumerate(zip(*columns, strict=True)):
        where = f"learner batch, row {index} (group {group})"
        if not len(prompts.get(group, ())):
            raise ValueError(f"{where}: {'its prompt is empty' if group in prompts else 'no prompt has this group'}.")
        if not len(completion):
            raise ValueError(f"{where}: token_ids is empty; drop rows without a completion.")
        if len(rollout) == 0:
            rollout = np.full(len(completion), np.nan, dtype=np.float32)
        if len(rollout) != len(completion):
            raise ValueError(f"{where}: {len(completion)} tokens but {len(rollout)} rollout_logprobs; expected one each.")
        if advantage is None:
            raise ValueError(f"{where}: advantage is null; expected a number (1 for supervised rows).")
        rows.append(_Row(index, group, prompts[group], completion, rollout, advantage))
    return rows


def _arrays(column: pa.ListArray, dtype: type) -> list[np.ndarray]:
    """Return each list; a null one is empty."""
    lists = (column[index].values for index in range(len(column)))
    return [np.empty(0, dtype) if one is None else one.to_numpy(zero_copy_only=False).astype(dtype) for one in lists]


def _group(rows: list[_Row]) -> list[_PackedGroup]:
    members: dict[int, list[_Row]] = {}
    for row in rows:
        members.setdefault(row.group, []).append(row)
    return [_PackedGroup(found[0].prompt, tuple(found)) for found in members.values()]


def _balance(groups: list[_PackedGroup], world_size: int) -> list[list[_PackedGroup]]:
    """Assign groups to ranks: most expensive first, each to the rank with the least work so far."""
    shares: list[list[_PackedGroup]] = [[] for _ in range(world_size)]
    loads = [0.0] * world_size
    for group in sorted(groups, key=lambda group: -group.cost):
        rank = loads.index(min(loads))
        shares[rank].append(group)
        loads[rank] += group.cost
    return shares


def _fill(groups: list[_PackedGroup], budget: int, packing: bool) -> list[list[_PackedGroup]]:
    """Fill micro-batches by first fit, longest first, which also puts plain rows of similar length together."""
    bins: list[list[_PackedGroup]] = []
    for group in sorted(groups, key=lambda group: -group.tokens):
        for present in bins:
            if _size([*present, group], packing) <= budget:
                present.append(group)
                break
        else:
            bins.append([group])
    return bins


def _size(groups: list[_PackedGroup], packing: bool) -> int:
    if not packing:
        return len(groups) * max(group.tokens for group in groups)
    return sum(group.tokens for group in groups) - (len(groups) - 1) * _common_prefix([group.prompt for group in groups])


def _common_prefix(prompts: list[np.ndarray]) -> int:
    """Return the length of the longest common prefix."""
    length = min(len(prompt) for prompt in prompts)
    for prompt in prompts[1:]:
        differs = np.flatnonzero(prompt[:length] != prompts[0][:length])
        length = int(differs[0]) if len(differs) else length
    return length


def _packed(groups: list[_PackedGroup], samples: int) -> MicroBatch:
    ids: list[np.ndarray] = []
    positions: list[np.ndarray] = []
    nodes: list[Node] = []
    count = 0

    def add(parent: int, depth: int, tokens: np.ndarray) -> int:
        """Append a node below `parent` (-1: none), first token at position `depth`; return its number, or `parent` if it is empty."""
        nonlocal count
        if len(tokens) == 0:
            return parent
        nodes.append(Node(count, len(tokens), parent))
        ids.append(tokens)
        positions.append(np.arange(depth, depth + len(tokens)))
        count += len(tokens)
        return len(nodes) - 1

    shared = _common_prefix([group.prompt for group in groups])
    root = add(-1, 0, groups[0].prompt[:shared])
    rows, sources = [], []
    for group in groups:
        length, own = len(group.prompt), group.prompt[shared:]
        if len(group.rows) == 1:  # one node for prompt and completion saves an attention block
            (row,) = group.rows
            start = count
            add(root, shared, np.concatenate([own, row.tokens[:-1]]))
            path = np.arange(start + len(own), start + len(own) + len(row.tokens) - 1)
            last = start + len(own) - 1 if len(own) else shared - 1
            sources.append(np.concatenate([[last], path]))
            rows.append(row)
            continue
        prompt = add(root, shared, own)
        last = nodes[prompt].start + nodes[prompt].length - 1
        for row in group.rows:
            start = count
            add(prompt, length, row.tokens[:-1])
            sources.append(np.concatenate([[last], np.arange(start, count)]))
            rows.append(row)
    return MicroBatch(
        input_ids=torch.from_numpy(np.concatenate(ids))[None],
        position_ids=torch.from_numpy(np.concatenate(positions))[None],
        layout=build_layout(nodes),
        attention_mask=None,
        **_completions(rows, sources, samples),
    )


def _plain(groups: list[_PackedGroup], samples: int, pad_token_id: int) -> MicroBatch:
    rows = [group.rows[0] for group in groups]
    width = max(row.encoded for row in rows)
    ids = np.full((len(rows), width), pad_token_id, dtype=np.int64)
    mask = np.zeros((len(rows), width), dtype=bool)
    sources = []
    for i, row in enumerate(rows):
        ids[i, : row.encoded] = np.concatenate([row.prompt, row.tokens[:-1]])
        mask[i, : row.encoded] = True
        sources.append(i * width + np.arange(len(row.prompt) - 1, row.encoded))
    return MicroBatch(
        input_ids=torch.from_numpy(ids),
        position_ids=torch.arange(width).expand(len(rows), -1).contiguous(),
        layout=None,
        attention_mask=torch.from_numpy(mask),
        **_completions(rows, sources, samples),
    )


def _completions(rows: list[_Row], sources: list[np.ndarray], samples: int) -> dict[str, Tensor]:
    def flat(parts: list[np.ndarray], dtype: type) -> Tensor:
        return torch.from_numpy(np.concatenate([np.empty(0, dtype), *parts]).astype(dtype))

    lengths = [len(row.tokens) for row in rows]
    return {
        "source": flat(sources, np.int64),
        "target": flat([row.tokens for row in rows], np.int64),
        "sample": flat([np.full(n, row.index) for n, row in zip(lengths, rows, strict=True)], np.int64),
        "advantage": flat([np.full(n, row.advantage) for n, row in zip(lengths, rows, strict=True)], np.float32),
        "rollout_logprob": flat([row.rollout_logprobs for row in rows], np.float32),
        "weight": flat([np.full(n, 1 / (samples * n)) for n in lengths], np.float32),
    }


def dummy(packing: bool, pad_token_id: int) -> MicroBatch:
    """Build a micro-batch that scores no tokens (M = 0): loss 0, zero gradients, empty metrics."""
    shape = (1, DUMMY_TOKENS)
    return MicroBatch(
        input_ids=torch.full(shape, pad_token_id),
        position_ids=torch.arange(DUMMY_TOKENS)[None],
        layout=build_layout([Node(0, DUMMY_TOKENS, -1)]) if packing else None,
        attention_mask=None if packing else torch.ones(shape, dtype=torch.bool),
        **_completions([], [], 1),
    )
