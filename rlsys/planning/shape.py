"""The shape of a model, from its config.json alone: parameters, widths, and what the cache keeps per token. No weights are needed."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlsys.models.loading import ModelError

NO_CACHE = ("linear_attention", "conv", "mamba", "mamba2")
"""Layer types that keep a state per sequence instead of keys and values per token."""


@dataclass(frozen=True)
class Norm:
    """The norms of one kind in a decoder layer."""

    width: int
    """Elements per token that it normalises."""
    rows: int
    """Means of squares per token: 1, or the number of heads."""
    fusible: bool
    """`learner.layers=fused` replaces it; others, such as Gemma's, keep copies in float32."""


@dataclass(frozen=True)
class ModelShape:
    """Sizes of a causal language model, in elements. Tied weights count once; a vision tower counts."""

    name: str
    parameters: int
    largest: int
    """The largest single weight."""
    cache_heads: int
    """Heads over which a tensor-parallel engine divides its cache; 1: a latent vector, which every GPU keeps whole."""
    tied: bool
    """The output layer is the embedding."""
    vocabulary: int
    hidden: int
    layers: int
    heads: int
    query: int
    """Width of all query heads together."""
    key: int
    value: int
    mlp: int
    """Width of the feed-forward part that a token passes: of all its experts together, in a mixture."""
    gated: bool
    """The feed-forward part has a gate (SwiGLU, GeGLU)."""
    norms: tuple[Norm, ...]
    """Of one decoder layer."""
    cached: int
    """Elements that the engine's cache keeps per token, over all layers."""
    longest: int | None
    """Tokens that the model takes, by its config."""


def read_shape(path: str | Path) -> ModelShape:
    """Read a shape from a config.json or a folder that holds one, by building the model on the meta device.

    Raises:
        ModelError: there is none, or transformers cannot build a causal language model from it.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    file = Path(path) / "config.json" if Path(path).is_dir() else Path(path)
    settings = _read(file)
    try:
        config = AutoConfig.for_model(settings.pop("model_type"), **settings)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
    except Exception as error:  # transformers may fail in any way on a malformed config
        reason = " ".join(str(error).split())[:300]
        raise ModelError(
            f"{file}: transformers cannot build a causal language model of this config ({type(error).__name__}: {reason})."
        ) from error
    return shape_of(model, file.parent.name if file.name == "config.json" else file.stem)


def _read(file: Path) -> dict[str, Any]:
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelError(f"{file}: cannot be read ({error.strerror}); expected a model's config.json.") from error
    except ValueError as error:
        raise ModelError(f"{file}: not valid JSON ({error}); expected a model's config.json.") from error
    if not isinstance(settings, dict) or not isinstance(settings.get("model_type"), str):
        raise ModelError(f"{file}: no model_type; expected the config.json of a Hugging Face model.")
    return settings


def shape_of(model: Any, name: str) -> ModelShape:
    """Return the shape of a Hugging Face causal language model (or of a copy on the meta device).

    Raises:
        ModelError: it has no decoder layers with attention.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    from rlsys.models.backbone import decoder_of

    config, head = model.config.get_text_config(), model.get_output_embeddings()
    layers = [module for module in decoder_of(model).modules() if isinstance(module, GradientCheckpointingLayer)]
    heads = getattr(config, "num_attention_heads", None)
    if not layers or not heads:
        raise ModelError(f"{name}: a {type(model).__name__} has no decoder layers with attention that could be planned for.")
    largest = max(layers, key=_elements)
    key_heads = getattr(config, "num_key_value_heads", None) or heads
    dimension = getattr(config, "head_dim", None) or config.hidden_size // heads
    latent = getattr(config, "kv_lora_rank", None)
    if latent:  # MLA expands keys and values for every head, but caches only the latent vector and one rotary key
        dimension = config.qk_nope_head_dim + config.qk_rope_head_dim
        key_heads, value, per_layer = heads, heads * config.v_head_dim, latent + config.qk_rope_head_dim
    else:
        value, per_layer = key_heads * dimension, 2 * key_heads * dimension
    query, key = heads * dimension, key_heads * dimension
    return ModelShape(
        name=name,
        parameters=_elements(model),
        largest=max(parameter.numel() for parameter in model.parameters()),
        cache_heads=1 if latent else key_heads,
        tied=head is not None and head.weight is model.get_input_embeddings().weight,
        vocabulary=config.vocab_size,
        hidden=config.hidden_size,
        layers=config.num_hidden_layers,
        heads=heads,
        query=query,
        key=key,
        value=value,
        mlp=_mlp_width(config),
        gated=any(name.rpartition(".")[2] in ("gate_proj", "gate_up_proj") for name, _ in largest.named_modules()),
        norms=tuple(_norms(largest, query, key, heads, key_heads)),
        cached=per_layer * _cached_layers(config),
        longest=getattr(config, "max_position_embeddings", None),
    )


def _elements(module: Any) -> int:
    return sum(int(parameter.numel()) for parameter in module.parameters())


def _mlp_width(config: Any) -> int:
    dense = getattr(config, "intermediate_size", None) or 4 * config.hidden_size
    dense = int(max(dense) if isinstance(dense, list) else dense)  # one per layer
    experts = getattr(config, "num_experts_per_tok", None)
    if not experts:
        return dense
    width = getattr(config, "moe_intermediate_size", None) or dense
    return int(width * (experts + (getattr(config, "n_shared_experts", None) or 0)))


def _cached_layers(config: Any) -> int:
    kinds = getattr(config, "layer_types", None) or []
    return int(config.num_hidden_layers) - sum(kind in NO_CACHE for kind in kinds)


def _norms(layer: Any, query: int, key: int, heads: int, key_heads: int) -> list[Norm]:
    found = []
    for name, module in layer.named_modules():
        if not type(module).__name__.endswith("Norm") or getattr(module, "weight", None) is None:
            continue
        own, fusible = module.weight.numel(), hasattr(module, "variance_epsilon")
        last = name.rpartition(".")[2]
        # Norms of queries and keys are applied to each head, or to all heads together.
        width = query if last.startswith("q_") else key if last.startswith("k_") else own
        found.append(Norm(width, width // own if own and width % own == 0 else 1, fusible))
    return found
