"""What every trained model has in common, whatever its head: how it attends, that it computes as in use, how its layers are computed.

A model trains in eval mode. What train mode switches on besides is noise: dropout under many names, a router's jitter, layers that are
skipped. The engine that samples has none of it, nor has the frozen reference.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from rlsys.models import tree_attention
from rlsys.models.fused_layers import fuse_layers, unfuse_layers
from rlsys.models.loading import ModelError
from rlsys.models.packing import MicroBatch, dummy
from rlsys.models.tree_layout import Node, TreeMask, build_layout

Attention = Literal["blocks", "flex"]
"""How packed rows attend: matrix products over blocks of siblings, or PyTorch's flex attention over the whole row."""
Layers = Literal["fused", "compiled", "plain"]
"""How layers compute: by `rlsys.models.fused_layers`, by torch.compile, or as transformers has them."""

SIBLING_TOLERANCE = 0.02
"""Change of a token's output, as a share of its sibling's, that is still taken for rounding: routers may group tokens otherwise."""


class RowTooLongError(ModelError):
    """Rows of which a model would be right were they shorter, however it is computed."""


class Backbone(nn.Module):
    """A Hugging Face model, kept as `self.model` in its own form, made fit for micro-batches that are packed, or plain and padded.

    Raises:
        ModelError: a model that would compute something else than on each row alone, as far as that can be seen without weights'
            meaning; `rlsys.models.self_check` compares the numbers.
    """

    def __init__(self, model: PreTrainedModel, decoder: nn.Module, packing: bool, layers: Layers, attention: Attention) -> None:
        super().__init__()
        self.model = model.eval()
        self.packing = packing
        self.longest_row, self._right = _row_limit(model)
        """Tokens of the longest row that is computed right (None: any), and what is right up to there."""
        self._recomputed: list[GradientCheckpointingLayer] = []
        self._masks: list[TreeMask] = []
        unfuse_layers(model)
        if packing:
            model.set_attn_implementation(tree_attention.NAMES[attention])
            self._check_siblings(decoder)
        else:
            model.set_attn_implementation(_plain_attention(model))
        if layers == "fused":
            fuse_layers(model)
        elif layers == "compiled":
            tree_attention.exclude_from_compilation()
            for layer in _layers(decoder):
                # Every micro-batch has a length of its own: one program for all, and one for all layers, as they share their code.
                layer.compile(dynamic=True)

    @property
    def pad_token_id(self) -> int:
        """Fills dummies and padding, which no token sees; 0 where the model names none, or one that it has no embedding of."""
        named = getattr(self.model.config.get_text_config(), "pad_token_id", None) or 0
        return named if 0 <= named < len(self.model.get_input_embeddings().weight) else 0

    def train(self, mode: bool = True) -> Backbone:
        """As every module's, except that the model itself stays in eval mode."""
        self.training = mode
        self.model.eval()
        for layer in self._recomputed:
            layer.training = mode
        return self

    def enable_activation_checkpointing(self) -> None:
        """Recompute each layer in the backward pass instead of keeping its activations: less memory, about 4/3 the work.

        Raises:
            ModelError: the model is not made of layers that transformers can recompute.
        """
        self._recomputed = [module for module in self.model.modules() if isinstance(module, GradientCheckpointingLayer)]
        if not self._recomputed:
            raise ModelError(f"{type(self.model).__name__} cannot recompute its layers; set learner.activation_checkpointing=false.")
        for layer in self._recomputed:
            layer.gradient_checkpointing = True
            layer._gradient_checkpointing_func = partial(_recompute, layer)
        self.train(self.training)

    def call(self, module: nn.Module, micro_batch: MicroBatch) -> Any:
        """What `module`, the model or a part of it that takes token ids, returns for a micro-batch.

        Raises:
            ValueError: a micro-batch of the other kind, or longer than the model is right for.
        """
        if (micro_batch.layout is not None) != self.packing:
            other = "plain" if self.packing else "packed"
            raise ValueError(f"a model with packing={self.packing} was given a {other} micro-batch; plan it likewise.")
        ids = micro_batch.input_ids
        if self.longest_row and ids.shape[1] > self.longest_row:
            self.check_length(int(micro_batch.position_ids.max()) + 1)
        if micro_batch.layout is None:
            return module(input_ids=ids, attention_mask=micro_batch.attention_mask, use_cache=False)
        with tree_attention.packed(micro_batch.layout) as self._masks:
            # With a mask of its own, transformers does not look for rows in the positions, which it knows one after the other only.
            everything = torch.ones_like(ids, dtype=torch.bool)
            return module(input_ids=ids, attention_mask=everything, position_ids=micro_batch.position_ids, use_cache=False)

    def check_length(self, tokens: int) -> None:
        """
        Raises:
            RowTooLongError: rows of so many tokens are computed otherwise than in the engine, or than alone.
        """
        if self.longest_row and tokens > self.longest_row:
            raise RowTooLongError(
                f"{type(self.model).__name__}: rows of {tokens} tokens; {self._right} up to {self.longest_row}. Make prompt.max_tokens and "
                "rollout.max_tokens come to that at most."
            )

    @torch.no_grad()
    def _check_siblings(self, decoder: nn.Module) -> None:
        name, one = type(self.model).__name__, probe(True, next(self.model.parameters()).device)
        other = replace(one, input_ids=one.input_ids.clone())
        other.input_ids[0, FIRST] += one.tokens
        answers: list[Tensor] = []
        for part in (one, other):
            try:
                answers.append(self.call(decoder, part).last_hidden_state[0])
            except Exception as error:  # it can be anything that a model does with what it does not know
                raise ModelError(f"{name}: it cannot compute packed rows ({error}).") from error
        if not any(mask.used for mask in self._masks):
            raise ModelError(f"{name}: its attention does not go through transformers' attention interface, so it cannot be packed.")
        moved = (answers[0] - answers[1]).float().abs().amax(dim=-1)
        if not moved[SECOND].max() <= SIBLING_TOLERANCE * moved[FIRST].max():
            raise ModelError(f"{name}: a layer mixes tokens by other means than attention, so that packed samples would see each other.")


FIRST, SECOND = slice(2, 5), slice(5, 8)
"""Siblings in `probe`."""


def probe(packing: bool, device: torch.device) -> MicroBatch:
    """Two siblings of three tokens below a prompt of two, in one row, or one row of all eight tokens; nothing to score."""
    part = dummy(packing, 0)
    layout = build_layout([Node(0, 2, -1), Node(2, 3, 0), Node(5, 3, 0)]) if packing else None
    part = replace(
        part,
        input_ids=torch.arange(1, 9)[None],
        position_ids=layout.position[None] if layout else torch.arange(8)[None],
        layout=layout,
        attention_mask=None if packing else torch.ones(1, 8, dtype=torch.bool),
    )
    return part.to(device)


def decoder_of(model: PreTrainedModel) -> nn.Module:
    """What makes hidden states of tokens; transformers does not know it of every model, and then names the model itself, or a layer."""
    decoder = model.get_decoder()
    inner = [child for child in model.children() if isinstance(child, PreTrainedModel)]
    known = decoder is not model and isinstance(decoder, PreTrainedModel)
    return decoder if known or not inner else inner[0]


def _recompute(layer: nn.Module, forward: Any, *args: Any) -> Any:
    """transformers recomputes layers that are in train mode; what they compute, they compute in eval mode."""

    def quiet(*args: Any) -> Any:
        layer.training = False
        try:
            return forward(*args)
        finally:
            layer.training = True

    return checkpoint(quiet, *args, use_reentrant=False)


def _layers(decoder: nn.Module) -> list[nn.Module]:
    found = [module for module in decoder.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not found:
        raise ModelError(f"{type(decoder).__name__}: its layers cannot be compiled; set learner.layers=fused.")
    return found


def _plain_attention(model: PreTrainedModel) -> str:
    """PyTorch's fused attention leaves out what it has no place for, caps and sinks, without a word."""
    config = model.config.get_text_config()
    special = getattr(config, "attn_logit_softcapping", None) or any(name.endswith("sinks") for name, _ in model.named_parameters())
    return "sdpa" if model._supports_sdpa and not special else "eager"


def _row_limit(model: PreTrainedModel) -> tuple[int | None, str]:
    """Up to where a row does not depend on how long the longest one of a call is, and what depends on it beyond that.

    Rotary factors may; and so does attention that ranks tokens and sees the first ones alone, as ties are broken by the row's width.

    Raises:
        ModelError: rotary factors that never agree with the engine's.
    """
    config = model.config.get_text_config()
    parameters = getattr(config, "rope_parameters", None) or {}
    several = [value for value in parameters.values() if isinstance(value, dict)] or [parameters]
    limits = []
    for one in several:
        kind = one.get("rope_type") or ""
        if "dynamic" in kind:
            raise ModelError(
                f"{type(model).__name__}: rope_type {kind} makes a token's rotation depend on the longest row of a call, and the engine's "
                "is another one. Set rope_type to default in the model's config.json if rows are no longer than the model was trained on."
            )
        if kind == "longrope":
            limits.append((one["original_max_position_embeddings"], "its longrope positions are computed as in the engine"))
    pooled = (getattr(config, "compress_rates", None) or {}).get("compressed_sparse_attention", 1)
    for name in ("index_topk", "keep_window_size"):
        if picked := getattr(config, name, None):
            limits.append((picked * pooled, f"its attention sees all tokens, not a selection ({name}) that padding changes,"))
    return min(limits, default=(None, ""))
