"""Model FLOPs of a pass over micro-batches, the baseline for the learner's utilisation.

Counted are multiplications and additions of matrix products: each distinct token once, however often a system encodes it; attention only
to visible tokens (causal, own path through the tree); the output layer only for scored tokens. Recomputation, padding, norms and the
optimizer are not counted, so time spent on them lowers utilisation.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn

from rlsys.models.packing import MicroBatch

TRAINING = 3
"""Cost of forward and backward in forward passes: the backward pass has two products for each one in the forward pass."""


@dataclass(frozen=True)
class Shape:
    """Dimensions that determine a decoder's FLOPs."""

    linear: int
    """Weights of all linear layers except the output layer: each costs one multiplication and one addition per token."""
    layers: int
    width: int
    """Query heads times head dimension: one score and one weighted value cost 4 * width operations."""
    output: int
    """Weights of the output layer."""


def shape_of(model: nn.Module) -> Shape:
    """Return the shape of a Hugging Face causal language model (or of a copy on the meta device)."""
    config = model.config.get_text_config()
    head = model.get_output_embeddings()
    linear = sum(module.weight.numel() for module in model.modules() if isinstance(module, nn.Linear) and module is not head)
    dimension = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return Shape(linear, config.num_hidden_layers, config.num_attention_heads * dimension, head.weight.numel())


def forward_flops(shape: Shape, micro_batches: Iterable[MicroBatch]) -> float:
    """Return the FLOPs of one forward pass over the micro-batches, including log-probabilities of their completion tokens."""
    total = 0.0
    for part in micro_batches:
        positions = part.position_ids if part.attention_mask is None else part.position_ids[part.attention_mask]
        # A token at position i of its path attends to i + 1 tokens.
        attended = float((positions + 1).sum())
        total += 2.0 * shape.linear * part.tokens + 4.0 * shape.width * shape.layers * attended
        total += 2.0 * shape.output * len(part.target)
    return total
