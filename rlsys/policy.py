"""The policy: a causal language model that answers with log-probabilities of chosen tokens, never with full logits."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from rlsys.packing import MicroBatch


class Logprobs(NamedTuple):
    """Flat over a micro-batch's M completion tokens."""

    logprob: Tensor  # float32 [M]
    entropy: Tensor | None  # float32 [M], detached


class Policy(nn.Module):
    """Wraps a Hugging Face causal language model, kept as `self.model`."""

    def __init__(self, model: PreTrainedModel, packing: bool = True) -> None:
        super().__init__()
        self.model = model

    def enable_activation_checkpointing(self) -> None:
        """Recompute each layer in the backward pass instead of keeping its activations."""

    def forward(self, micro_batch: MicroBatch, temperature: float = 1.0, with_entropy: bool = False) -> Logprobs:
        raise NotImplementedError


def load_policy(path: str | Path, dtype: torch.dtype, packing: bool = True) -> Policy:
    """Load a Hugging Face folder or hub name as a policy."""
    raise NotImplementedError
