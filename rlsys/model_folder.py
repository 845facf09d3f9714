"""Whether a model's folder can be loaded, by its files alone: nothing of it is read but headers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rlsys.models import ModelError


def check_model_folder(model: str, tokens: int | None, trains: bool = False) -> str:
    """Look at config.json and the weights' headers; returns the model in words. A hub name is not looked into.

    Args:
        tokens: the longest sequence that it is to take; None: any.
        trains: it is to be trained.

    Raises:
        ModelError: no readable config, no causal language model, weights that are missing, cut off or quantized (if it trains), or too
            short a context.
    """
    folder = Path(model)
    if not folder.is_dir():
        return f"{model} (from the hub)"
    config = _read_json(folder / "config.json", model)
    kind = config.get("model_type")
    _check_kind(model, kind)
    if config.get("is_encoder_decoder"):
        raise ModelError(f"model {model}: a {kind} of encoder and decoder, of which the encoder would be left out; expected a decoder.")
    _check_weights(folder, model)
    quantized = config.get("quantization_config")
    if trains and quantized:
        method = quantized.get("quant_method", "unknown") if isinstance(quantized, dict) else "unknown"
        raise ModelError(
            f"model {model}: its weights are quantized ({method}), which cannot be trained; judge and eval take it. Train the model that "
            "it was made from, or save it dequantized, without quantization_config in its config.json."
        )
    text = config.get("text_config", config)
    longest = text.get("max_position_embeddings")
    scaled = any(text.get(name) for name in ("rope_scaling", "rope_parameters")) and _is_scaled(text)
    if tokens is not None and isinstance(longest, int) and tokens > longest and not scaled:
        raise ModelError(
            f"model {model}: it takes {longest:,} tokens (max_position_embeddings), and prompt and text may come to {tokens:,}: lower "
            "prompt.max_tokens or rollout.max_tokens (meta_rm.max_tokens), or take another model."
        )
    return f"{model} ({kind})"


def _is_scaled(config: dict[str, Any]) -> bool:
    """Whether positions beyond the table are computed in another way."""
    scaling = config.get("rope_scaling") or config.get("rope_parameters") or {}
    return scaling.get("rope_type", scaling.get("type", "default")) != "default"


def _read_json(path: Path, model: str) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelError(f"model {model}: {path.name} cannot be read ({error.strerror}).") from error
    except ValueError as error:
        raise ModelError(f"model {model}: {path.name} is no JSON ({error}); it may have been cut off. Copy the model again.") from error
    if not isinstance(value, dict):
        raise ModelError(f"model {model}: {path.name} is no JSON object.")
    return value


def _check_kind(model: str, kind: Any) -> None:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    if kind is None:
        raise ModelError(f"model {model}: its config.json has no model_type; is it a Hugging Face model?")
    if kind not in CONFIG_MAPPING_NAMES:
        raise ModelError(f"model {model}: its model_type is {kind}, which this transformers does not know. Take another model.")
    if kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise ModelError(f"model {model}: a {kind} does not generate text from left to right; expected a causal language model.")


def _check_weights(folder: Path, model: str) -> None:
    indices = sorted(folder.glob("*.index.json"))
    files = sorted({str(name) for index in indices for name in _read_json(index, model).get("weight_map", {}).values()})
    files = files or [path.name for path in sorted([*folder.glob("*.safetensors"), *folder.glob("pytorch_model*.bin")])]
    if not files:
        raise ModelError(f"model {model}: there are no weights (*.safetensors) beside its config.json.")
    for name in files:
        path = folder / name
        if not path.is_file():
            raise ModelError(f"model {model}: {name} is missing, which its index names. Copy the model again.")
        if path.suffix == ".safetensors" and not _is_whole(path):
            raise ModelError(f"model {model}: {name} is cut off or no safetensors file. Copy the model again.")


def _is_whole(path: Path) -> bool:
    """Whether a safetensors file is as long as its header says."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 + length:
            return False
        try:
            header = json.loads(file.read(length))
            ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        except (ValueError, KeyError, TypeError, AttributeError):
            return False
    return size == 8 + length + max(ends, default=0)
