"""What every trained model has in common, whatever its head: which attention it computes by, no dropout, how its layers are computed."""

from __future__ import annotations

from typing import Literal

from torch import nn
from transformers import PreTrainedModel

from rlsys import tree_attention
from rlsys.fused_layers import fuse_layers

Attention = Literal["blocks", "flex"]
"""How packed rows attend: matrix products over blocks of siblings, or PyTorch's flex attention over the whole row."""
Layers = Literal["fused", "compiled", "plain"]
"""How layers compute: by `rlsys.fused_layers`, by torch.compile, or as transformers has them."""


def prepare_backbone(model: PreTrainedModel, packing: bool, attention: Attention = "blocks", layers: Layers = "fused") -> None:
    """Make `model` fit for training on packed rows, or on plain padded ones, in place.

    Raises:
        ValueError: it is to be packed, and its attention is not full and causal in every layer (sliding window, chunked, linear), or
            its scores are capped; the message names the setting.
    """
    if packing:
        _check_attention(model)
    # Scores are capped between the two products of attention, which fused kernels have no place for.
    plain = "eager" if _cap(model) else "sdpa"
    model.set_attn_implementation(tree_attention.NAMES[attention] if packing else plain)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.0
    if layers == "fused":
        fuse_layers(model)
    elif layers == "compiled":
        tree_attention.keep_out_of_graphs()
        for layer in model.get_decoder().layers:
            # Every micro-batch has a length of its own: one program for all, and one for all layers, as they share their code.
            layer.compile(dynamic=True)


def _check_attention(model: PreTrainedModel) -> None:
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
    cap = _cap(model)
    if kinds != {"full_attention"} or window or cap:
        raise ValueError(
            f"{type(model).__name__}: layer_types {sorted(kinds)}, sliding_window {window}, attn_logit_softcapping {cap}: packing wants "
            "full causal attention in every layer; set learner.packing=false."
        )


def _cap(model: PreTrainedModel) -> float | None:
    return getattr(model.config.get_text_config(), "attn_logit_softcapping", None)
