"""Memory of a forward and backward pass: what the layers keep for the backward pass, and the output layer's scratch space.

A decoder layer keeps, per token, in elements of the model's dtype (b bytes):

    2 h             the normalised inputs of attention and feed-forward part
    2 q + k + v     queries, keys and values after the rotary embedding; attention's output
    4 f             gate, activated gate, up, and their product (2 f without a gate: before and after the activation)

and for each norm of width w: b w + 4 bytes if it is fused (`rlsys.models.fused_layers`), (b + 4) w + 4 if it is transformers' own, and
8 w + 4 if it multiplies in float32, as Gemma's do. `learner.attention=blocks` also keeps every softmax, b bytes for each head and pair of
tokens that it computes; flex keeps attention's output once more, and 4 bytes per head and token. With activation checkpointing a layer
keeps its input only (h); one layer at a time is computed again, and the gradients of its values need as much again. The counting
follows Korthikanti et al. (arXiv 2205.05198, section 4.1), with the tensors of these layers; `tests/rlsys/planning/test_activations.py`
compares it with the tensors that autograd saves.
"""

from __future__ import annotations

from rlsys.config.schema import Learner
from rlsys.models.tree_layout import MAX_NODE
from rlsys.planning.batch import Step
from rlsys.planning.shape import ModelShape, Norm


def layer_bytes_per_token(shape: ModelShape, learner: Learner, attention: str, width: int) -> float:
    """Return what one decoder layer keeps per token, softmaxes excluded, in bytes; `width`: bytes of an element."""
    elements = 2 * shape.hidden + 2 * shape.query + shape.key + shape.value + (4 if shape.gated else 2) * shape.mlp
    flex = shape.query * width + 4 * shape.heads if attention == "flex" else 0
    return width * elements + flex + sum(_norm_bytes(norm, learner.layers != "plain", width) for norm in shape.norms)


def _norm_bytes(norm: Norm, fused: bool, width: int) -> int:
    if not norm.fusible:
        return 8 * norm.width + 4 * norm.rows
    return (width if fused else width + 4) * norm.width + 4 * norm.rows


def softmax_entries(prompt: int, samples: int, completion: int) -> int:
    """Return how many pairs of tokens `learner.attention=blocks` computes for a group, per head.

    Nodes are split into chains of MAX_NODE tokens (`rlsys.models.tree_layout`); each chain sees its ancestors and all of itself.
    """
    return _chain(0, prompt) + samples * _chain(prompt, completion - 1)


def _chain(prefix: int, length: int) -> int:
    total = 0
    for start in range(0, length, MAX_NODE):
        own = min(MAX_NODE, length - start)
        total += own * (prefix + start + own)
    return total


def _layer_bytes(shape: ModelShape, learner: Learner, attention: str, width: int, step: Step, softmaxes: int) -> float:
    softmax = width * shape.heads * softmaxes if attention == "blocks" else 0
    return step.micro_batch_tokens * layer_bytes_per_token(shape, learner, attention, width) + softmax


def activation_bytes(shape: ModelShape, learner: Learner, attention: str, width: int, step: Step, softmaxes: int) -> float:
    """Return what is kept for the backward pass of the largest micro-batch, input and output of the last norm included, in bytes.

    Args:
        width: bytes of an element.
        softmaxes: pairs of tokens per head in it, if attention keeps them.
    """
    hidden = step.micro_batch_tokens * width * shape.hidden
    layer = hidden if learner.activation_checkpointing else _layer_bytes(shape, learner, attention, width, step, softmaxes)
    return shape.layers * layer + 2 * hidden


def recomputed_bytes(shape: ModelShape, learner: Learner, attention: str, width: int, step: Step, softmaxes: int) -> float:
    """Return what one layer needs to be computed again, with the gradients of its values, in bytes; 0 without activation checkpointing."""
    return 2 * _layer_bytes(shape, learner, attention, width, step, softmaxes) if learner.activation_checkpointing else 0.0


def logits_bytes(shape: ModelShape, chunk: int, width: int, step: Step) -> float:
    """Return the scratch space of the output layer, in bytes.

    That is `chunk` logits in the model's dtype, and three times in float32 (logits, probabilities, their product for the entropy), and the
    hidden states of the scored tokens with their gradients (`rlsys.models.policy`).
    """
    entries = min(max(chunk, step.scored_tokens), step.scored_tokens * shape.vocabulary)
    wide = 4 * 3 + (width if width < 4 else 0)
    return entries * wide + step.scored_tokens * shape.hidden * (2 * width + 4)
