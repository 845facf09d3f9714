"""Turns the learner's rows into micro-batches in which a prompt is encoded once for all of its samples."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa
import torch
from torch import Tensor


@dataclass
class Layout:
    """The tree of a packed micro-batch."""

    cross: list[tuple[int, int, int, int]]


@dataclass
class MicroBatch:
    """Tokens to encode once, and the completion tokens to be scored."""

    input_ids: Tensor  # long [B, T]
    position_ids: Tensor  # long [B, T]
    layout: Layout | None
    attention_mask: Tensor | None  # bool [B, T]; None when packed
    source: Tensor  # long [M]
    target: Tensor  # long [M]
    sample: Tensor  # long [M]
    advantage: Tensor  # float [M]
    rollout_logprob: Tensor  # float [M]
    weight: Tensor  # float [M]

    @property
    def tokens(self) -> int:
        """Tokens encoded, padding left out."""
        raise NotImplementedError

    def to(self, device: torch.device | str) -> MicroBatch:
        """The same micro-batch on `device`."""
        raise NotImplementedError


def plan(
    batch: pa.RecordBatch, world_size: int, token_budget: int, packing: bool = True, pad_token_id: int = 0
) -> list[list[MicroBatch]]:
    """Split a LEARNER batch into micro-batches for every rank; all ranks get equally many."""
    raise NotImplementedError
