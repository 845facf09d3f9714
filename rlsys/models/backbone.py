"""Shared base of all trained models, whatever their head: attention backend, eval mode, and layer implementation.

Models train in eval mode. Train mode would only add noise: dropout under various names, router jitter, skipped layers. Neither the
sampling engine nor the frozen reference has any of it.
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
"""Attention for packed rows: matrix products over blocks of siblings, or PyTorch's flex attention over the whole row."""
Layers = Literal["fused", "compiled", "plain"]
"""Layer implementation: `rlsys.models.fused_layers`, torch.compile, or transformers' own."""

SIBLING_TOLERANCE = 0.02
"""Largest relative change of a token's output, when its sibling changes, that counts as rounding; routers may group tokens differently."""


class RowTooLongError(ModelError):
    """Rows exceed the length up to which the model is computed correctly, with any setting."""


class Backbone(nn.Module):
    """A Hugging Face model, unchanged as `self.model`, prepared for packed or for plain padded micro-batches.

    Raises:
        ModelError: the model's structure shows that it would not compute each row independently; `rlsys.models.self_check` compares
            actual values.
    """

    def __init__(self, model: PreTrainedModel, decoder: nn.Module, packing: bool, layers: Layers, attention: Attention) -> None:
        super().__init__()
        self.model = model.eval()
        self.packing = packing
        self.longest_row, self._limit_reason = _row_limit(model)
        """Length in tokens up to which rows are computed correctly (None: unlimited), and what changes beyond it."""
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
                # Micro-batches differ in length: dynamic shapes avoid recompilation, and all layers share one compiled program.
                layer.compile(dynamic=True)

    @property
    def pad_token_id(self) -> int:
        """Token id for dummies and padding, which no token attends to; 0 if the config has none or one outside the vocabulary."""
        configured = getattr(self.model.config.get_text_config(), "pad_token_id", None) or 0
        return configured if 0 <= configured < len(self.model.get_input_embeddings().weight) else 0

    def train(self, mode: bool = True) -> Backbone:
        """Set the training flag; the wrapped model stays in eval mode."""
        self.training = mode
        self.model.eval()
        for layer in self._recomputed:
            layer.training = mode
        return self

    def enable_activation_checkpointing(self) -> None:
        """Recompute each layer in the backward pass instead of storing its activations: less memory, about 4/3 of the work.

        Raises:
            ModelError: the model has no layers that transformers can recompute.
        """
        self._recomputed = [module for module in self.model.modules() if isinstance(module, GradientCheckpointingLayer)]
        if not self._recomputed:
            raise ModelError(f"{type(self.model).__name__} cannot recompute its layers; set learner.activation_checkpointing=false.")
        for layer in self._recomputed:
            layer.gradient_checkpointing = True
            layer._gradient_checkpointing_func = partial(_recompute, layer)
        self.train(self.training)

    def call(self, module: nn.Module, micro_batch: MicroBatch) -> Any:
        """Run `module` (the model, or a part of it that takes token ids) on a micro-batch and return its output.

        Raises:
            ValueError: a packed micro-batch for a plain model or vice versa, or rows beyond the model's length limit.
        """
        if (micro_batch.layout is not None) != self.packing:
            other = "plain" if self.packing else "packed"
            raise ValueError(
                f"a model with packing={self.packing} was given a {other} micro-batch; pass the same packing to plan_micro_batches."
            )
        ids = micro_batch.input_ids
        if self.longest_row and ids.shape[1] > self.longest_row:
            self.check_length(int(micro_batch.position_ids.max()) + 1)
        if micro_batch.layout is None:
            return module(input_ids=ids, attention_mask=micro_batch.attention_mask, use_cache=False)
        with tree_attention.packed(micro_batch.layout) as self._masks:
            # With an explicit mask, transformers does not infer sequence boundaries from the positions.
            full_mask = torch.ones_like(ids, dtype=torch.bool)
            return module(input_ids=ids, attention_mask=full_mask, position_ids=micro_batch.position_ids, use_cache=False)

    def check_length(self, tokens: int) -> None:
        """Check that rows of `tokens` tokens are computed as in the engine, and independently of other rows.

        Raises:
            RowTooLongError: they are not.
        """
        if self.longest_row and tokens > self.longest_row:
            raise RowTooLongError(
                f"{type(self.model).__name__}: rows of {tokens} tokens; {self._limit_reason} up to {self.longest_row}. Reduce "
                "prompt.max_tokens + rollout.max_tokens to that at most."
            )

    @torch.no_grad()
    def _check_siblings(self, decoder: nn.Module) -> None:
        """Check that changing one sample leaves its sibling's hidden states unchanged.

        Raises:
            ModelError: it does not, or the model cannot run packed rows.
        """
        name, original = type(self.model).__name__, probe(True, next(self.model.parameters()).device)
        changed = replace(original, input_ids=original.input_ids.clone())
        changed.input_ids[0, FIRST] += original.tokens
        hidden: list[Tensor] = []
        for part in (original, changed):
            try:
                hidden.append(self.call(decoder, part).last_hidden_state[0])
            except Exception as error:  # model code may fail in any way on masks that it does not know
                raise ModelError(f"{name}: it cannot compute packed rows ({error}).") from error
        if not any(mask.used for mask in self._masks):
            raise ModelError(f"{name}: its attention does not use transformers' attention interface, so it cannot be packed.")
        change = (hidden[0] - hidden[1]).float().abs().amax(dim=-1)
        if not change[SECOND].max() <= SIBLING_TOLERANCE * change[FIRST].max():
            raise ModelError(f"{name}: a layer mixes tokens other than by attention, so packed samples would affect each other.")


FIRST, SECOND = slice(2, 5), slice(5, 8)
"""Siblings in `probe`."""


def probe(packing: bool, device: torch.device) -> MicroBatch:
    """Build a micro-batch of eight unscored tokens: a prompt of two and two siblings of three if packing, else one plain row."""
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
    """Return the module that maps tokens to hidden states; for some models `get_decoder` returns the model itself or a layer."""
    decoder = model.get_decoder()
    inner = [child for child in model.children() if isinstance(child, PreTrainedModel)]
    known = decoder is not model and isinstance(decoder, PreTrainedModel)
    return decoder if known or not inner else inner[0]


def _recompute(layer: nn.Module, forward: Any, *args: Any) -> Any:
    """Run a layer with activation checkpointing, in eval mode; transformers checkpoints only layers in train mode."""

    def in_eval_mode(*args: Any) -> Any:
        layer.training = False
        try:
            return forward(*args)
        finally:
            layer.training = True

    return checkpoint(in_eval_mode, *args, use_reentrant=False)


def _layers(decoder: nn.Module) -> list[nn.Module]:
    found = [module for module in decoder.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not found:
        raise ModelError(f"{type(decoder).__name__}: its layers cannot be compiled; set learner.layers=fused.")
    return found


def _plain_attention(model: PreTrainedModel) -> str:
    """Return the attention implementation for plain rows; PyTorch's fused attention silently ignores logit caps and sinks."""
    config = model.config.get_text_config()
    special = getattr(config, "attn_logit_softcapping", None) or any(name.endswith("sinks") for name, _ in model.named_parameters())
    return "sdpa" if model._supports_sdpa and not special else "eager"


def _row_limit(model: PreTrainedModel) -> tuple[int | None, str]:
    """Return the length up to which a row is independent of the longest row in its batch, and what changes beyond it.

    Rotary factors may depend on the longest row, as may attention that selects the top-ranked tokens: the padded width breaks ties.

    Raises:
        ModelError: rotary factors that never match the engine's.
    """
    config = model.config.get_text_config()
    parameters = getattr(config, "rope_parameters", None) or {}
    per_layer_type = [value for value in parameters.values() if isinstance(value, dict)] or [parameters]
    limits = []
    for rope in per_layer_type:
        kind = rope.get("rope_type") or ""
        if "dynamic" in kind:
            raise ModelError(
                f"{type(model).__name__}: rope_type {kind} makes rotary positions depend on the longest row of a batch, which differs in "
                "the engine. Set rope_type to default in the model's config.json if no row exceeds the model's training length."
            )
        if kind == "longrope":
            limits.append((rope["original_max_position_embeddings"], "its longrope positions match the engine's"))
    pooled = (getattr(config, "compress_rates", None) or {}).get("compressed_sparse_attention", 1)
    for name in ("index_topk", "keep_window_size"):
        if selected := getattr(config, name, None):
            limits.append((selected * pooled, f"its attention covers all tokens, not a selection ({name}) that padding changes,"))
    return min(limits, default=(None, ""))
