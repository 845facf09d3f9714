"""Whether a model's folder can be loaded, by its files alone: nothing of it is read but headers."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlsys.models.loading import ModelError

if TYPE_CHECKING:
    from rlsys.prompts.rendering import Prompter

QUANTIZED = ("quantization_config", "compression_config")
LONGEST = ("max_position_embeddings", "n_positions", "max_sequence_length", "max_seq_len")
"""Under which names configs have the longest sequence that there are positions for."""


PART = re.compile(r"-\d+-of-\d+\.")
"""In the names of weights of which an index says where each stands."""


def check_model_folder(model: str, tokens: int | None, trains: bool = False) -> str:
    """Look at config.json and the weights' headers; returns the model in words. A hub name is not looked into.

    Args:
        tokens: the longest sequence that it is to take; None: any.
        trains: it is to be trained.

    Raises:
        ModelError: no readable config, no causal language model or one of its own code, weights that are missing, cut off or quantized
            (if it trains), or too short a context.
    """
    folder = Path(model)
    if not folder.is_dir():
        return f"{model} (from the hub)"
    config = _read_json(folder / "config.json", model)
    kind = config.get("model_type")
    _check_kind(model, kind, config, trains)
    if config.get("is_encoder_decoder"):
        raise ModelError(f"model {model}: a {kind} of encoder and decoder, of which the encoder would be left out; expected a decoder.")
    _check_weights(folder, model)
    text = config["text_config"] if isinstance(config.get("text_config"), dict) else config
    quantized = next((part[name] for part in (config, text) for name in QUANTIZED if part.get(name)), None)
    if trains and quantized:
        method = quantized.get("quant_method", "unknown") if isinstance(quantized, dict) else "unknown"
        raise ModelError(
            f"model {model}: its weights are quantized ({method}), which cannot be trained; judge and eval take it. Train the model that "
            "it was made from, or save it dequantized, without quantization_config in its config.json."
        )
    name, longest = next(((name, text[name]) for name in LONGEST if isinstance(text.get(name), int)), ("", 0))
    if tokens is not None and longest and tokens > longest and not _is_scaled(text):
        raise ModelError(
            f"model {model}: it takes {longest:,} tokens ({name}), and prompt and text may come to {tokens:,}: lower "
            "prompt.max_tokens or rollout.max_tokens (meta_rm.max_tokens), or take another model."
        )
    return f"{model} ({kind})"


def check_vocabulary(model: str, prompter: Prompter) -> None:
    """See that the model has an embedding of each token of a short conversation, and of what ends a turn. A hub name is not looked into.

    Raises:
        ModelError: it has not; the tokenizer is another model's, or was given tokens that the model was not.
    """
    path = Path(model) / "config.json"
    config = _read_json(path, model) if path.is_file() else {}
    text = config["text_config"] if isinstance(config.get("text_config"), dict) else config
    size = text.get("vocab_size")
    last = max([prompter.chat.end, *prompter.chat.tokens([{"role": "user", "content": "A few words."}])])
    if isinstance(size, int) and last >= size:
        token = prompter.chat.tokenizer.convert_ids_to_tokens(last)
        raise ModelError(
            f"model {model}: its tokenizer and chat template write token {last:,} ({token}), and there are {size:,} (vocab_size). Copy the "
            "tokenizer that belongs to it, or enlarge the model's embedding (resize_token_embeddings)."
        )


def _is_scaled(config: dict[str, Any]) -> bool:
    """Whether positions beyond the table are computed in another way."""
    scaling = config.get("rope_scaling") or config.get("rope_parameters")
    return isinstance(scaling, dict) and scaling.get("rope_type", scaling.get("type", "default")) != "default"


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


def _check_kind(model: str, kind: Any, config: dict[str, Any], trains: bool) -> None:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

    if not isinstance(kind, str):
        raise ModelError(f"model {model}: its config.json has no model_type; is it a Hugging Face model?")
    codes = config["auto_map"] if isinstance(config.get("auto_map"), dict) else {}
    code = codes.get("AutoModelForCausalLM") or codes.get("AutoModel")
    refused = "code of a model's folder is never run here. Take a model that transformers has itself"
    if kind not in CONFIG_MAPPING_NAMES and code:
        raise ModelError(f"model {model}: a {kind} is computed by {code}, which comes with it; {refused}.")
    if kind not in CONFIG_MAPPING_NAMES:
        raise ModelError(f"model {model}: its model_type is {kind}, which this transformers does not know. Take another model.")
    if kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and kind in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        raise ModelError(
            f"model {model}: a {kind} reads images beside text, and transformers does not load its text model alone. Save that as a folder "
            "of its own, a causal language model of its text_config, or take another model."
        )
    if kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise ModelError(f"model {model}: a {kind} does not generate text from left to right; expected a causal language model.")
    ours = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[kind]
    theirs = str(codes.get("AutoModelForCausalLM") or ours)
    if trains and theirs.rpartition(".")[2] != ours:
        raise ModelError(
            f"model {model}: it is computed by {theirs}, which comes with it, and not as the {ours} that transformers would make of it; "
            f"{refused}, or remove auto_map from its config.json if {ours} is the same model."
        )


def _check_weights(folder: Path, model: str) -> None:
    indices = sorted(folder.glob("*.index.json"))
    files: set[str] = set()
    for index in indices:
        named = _read_json(index, model).get("weight_map")
        if not isinstance(named, dict):
            raise ModelError(f"model {model}: {index.name} has no weight_map that says where its weights are. Copy the model again.")
        files |= {str(name) for name in named.values()}
    if not files:
        files = {path.name for pattern in ("*.safetensors", "pytorch_model*.bin") for path in folder.glob(pattern)}
        if parts := sorted(name for name in files if PART.search(name)):
            raise ModelError(f"model {model}: no index (model.safetensors.index.json) says what {parts[0]} is a part of. Copy it, too.")
    if not files:
        raise ModelError(f"model {model}: there are no weights (*.safetensors) beside its config.json.")
    for name in sorted(files):
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
