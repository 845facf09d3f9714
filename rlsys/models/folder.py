"""Check from its files whether a model folder can be loaded, reading only config.json and weight headers."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlsys.io.checksums import fingerprint
from rlsys.models.loading import ModelError

if TYPE_CHECKING:
    from rlsys.prompts.rendering import Prompter

DIGESTED = 1 << 20
"""Bytes at either end of a file that `file_digests` reads."""
PICKLED = ("pytorch_model*.bin", "model*.bin", "*.pth", "*.ckpt")
QUANTIZED = ("quantization_config", "compression_config")
LONGEST = ("max_position_embeddings", "n_positions", "max_sequence_length", "max_seq_len")
"""Config keys for the maximum sequence length."""
SHARD = re.compile(r"-\d+-of-\d+\.")
"""Part of the file name of sharded weights, which need an index."""


def check_model_folder(model: str, tokens: int | None, trains: bool = False) -> str:
    """Check config.json and the weight headers, and return a description of the model. Hub names are not checked.

    Args:
        tokens: longest sequence that it has to support; None: any.
        trains: whether it will be trained.

    Raises:
        ModelError: no readable config; not a causal language model, or one with custom code; weights that are missing, pickled, truncated
            or (for training) quantized; or too short a context.
    """
    folder = Path(model)
    if not folder.is_dir():
        return f"{model} (from the hub)"
    config = _read_json(folder / "config.json", model)
    kind = config.get("model_type")
    _check_kind(model, kind, config, trains)
    if config.get("is_encoder_decoder"):
        raise ModelError(f"model {model}: a {kind} is an encoder-decoder, whose encoder would be ignored; expected a decoder-only model.")
    _check_weights(folder, model)
    text = config["text_config"] if isinstance(config.get("text_config"), dict) else config
    quantized = next((part[name] for part in (config, text) for name in QUANTIZED if part.get(name)), None)
    if trains and quantized:
        method = quantized.get("quant_method", "unknown") if isinstance(quantized, dict) else "unknown"
        raise ModelError(
            f"model {model}: its weights are quantized ({method}) and cannot be trained; judge and eval accept it. Train the original "
            "model, or save this one dequantized, without quantization_config in its config.json."
        )
    name, longest = next(((name, text[name]) for name in LONGEST if isinstance(text.get(name), int)), ("", 0))
    if tokens is not None and longest and tokens > longest and not _is_scaled(text):
        raise ModelError(
            f"model {model}: it takes {longest:,} tokens ({name}), but prompt and text may reach {tokens:,}: lower "
            "prompt.max_tokens or rollout.max_tokens (meta_rm.max_tokens), or use another model."
        )
    return f"{model} ({kind})"


def file_digests(folder: Path) -> dict[str, str]:
    """Return a digest of each file of a model folder, by name: of its size, and its first and last MiB. Empty for a hub name."""
    files = sorted(path for path in folder.iterdir() if path.is_file()) if folder.is_dir() else []
    return {path.name: fingerprint(path, 2, DIGESTED) for path in files}


def differing_files(these: dict[str, str], those: dict[str, str]) -> list[str]:
    """List the names of files that only one of two folders has, or that differ, from their `file_digests`."""
    return sorted(name for name in these.keys() | those.keys() if these.get(name) != those.get(name))


def check_vocabulary(model: str, prompter: Prompter) -> None:
    """Check that the model has embeddings for all tokens of a short conversation and for the end of a turn. Hub names are not checked.

    Raises:
        ModelError: it does not: the tokenizer belongs to another model, or has added tokens that the model lacks.
    """
    path = Path(model) / "config.json"
    config = _read_json(path, model) if path.is_file() else {}
    text = config["text_config"] if isinstance(config.get("text_config"), dict) else config
    size = text.get("vocab_size")
    last = max([prompter.chat.end, *prompter.chat.tokens([{"role": "user", "content": "A few words."}])])
    if isinstance(size, int) and last >= size:
        token = prompter.chat.tokenizer.convert_ids_to_tokens(last)
        raise ModelError(
            f"model {model}: its tokenizer and chat template produce token {last:,} ({token}), but there are {size:,} (vocab_size). Copy "
            "the matching tokenizer, or enlarge the model's embedding (resize_token_embeddings)."
        )


def _is_scaled(config: dict[str, Any]) -> bool:
    """Return whether rotary scaling extends positions beyond the configured maximum."""
    scaling = config.get("rope_scaling") or config.get("rope_parameters")
    return isinstance(scaling, dict) and scaling.get("rope_type", scaling.get("type", "default")) != "default"


def _read_json(path: Path, model: str) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelError(f"model {model}: {path.name} cannot be read ({error.strerror}).") from error
    except ValueError as error:
        raise ModelError(f"model {model}: {path.name} is not valid JSON ({error}); it may be truncated. Copy the model again.") from error
    if not isinstance(value, dict):
        raise ModelError(f"model {model}: {path.name} is not a JSON object.")
    return value


def _check_kind(model: str, kind: Any, config: dict[str, Any], trains: bool) -> None:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

    if not isinstance(kind, str):
        raise ModelError(f"model {model}: its config.json has no model_type; is it a Hugging Face model?")
    codes = config["auto_map"] if isinstance(config.get("auto_map"), dict) else {}
    code = codes.get("AutoModelForCausalLM") or codes.get("AutoModel")
    refused = "code from a model's folder is never run here. Use a model that transformers supports itself"
    if kind not in CONFIG_MAPPING_NAMES and code:
        raise ModelError(f"model {model}: a {kind} is implemented by {code}, code in its folder; {refused}.")
    if kind not in CONFIG_MAPPING_NAMES:
        raise ModelError(
            f"model {model}: its model_type is {kind}, which this version of transformers does not support. Use another model."
        )
    if kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and kind in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        raise ModelError(
            f"model {model}: a {kind} reads images besides text, and transformers does not load its text model alone. Save the text model "
            "in a separate folder, as a causal language model of its text_config, or use another model."
        )
    if kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise ModelError(f"model {model}: a {kind} does not generate text from left to right; expected a causal language model.")
    ours = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[kind]
    theirs = str(codes.get("AutoModelForCausalLM") or ours)
    if trains and theirs.rpartition(".")[2] != ours:
        raise ModelError(
            f"model {model}: it is implemented by {theirs}, code in its folder, rather than by transformers' {ours}; "
            f"{refused}, or remove auto_map from its config.json if {ours} is the same model."
        )


def _check_weights(folder: Path, model: str) -> None:
    indices = sorted(folder.glob("*.safetensors.index.json"))
    files: set[str] = set()
    for index in indices:
        named = _read_json(index, model).get("weight_map")
        if not isinstance(named, dict):
            raise ModelError(f"model {model}: {index.name} has no weight_map. Copy the model again.")
        files |= {str(name) for name in named.values()}
    if not files:
        files = {path.name for path in folder.glob("*.safetensors")}
        if shards := sorted(name for name in files if SHARD.search(name)):
            raise ModelError(f"model {model}: {shards[0]} is a shard, but there is no index (model.safetensors.index.json). Copy it, too.")
    if not files and (pickled := sorted(path.name for pattern in PICKLED for path in folder.glob(pattern))):
        raise ModelError(
            f"model {model}: {pickled[0]} is a pickle, which may run code when it is read. Save the model as safetensors "
            "(save_pretrained of transformers), where you trust it."
        )
    if not files:
        raise ModelError(f"model {model}: there are no weights (*.safetensors) next to its config.json.")
    for name in sorted(files):
        path = folder / name
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise ModelError(f"model {model}: its index lists {name}, which is outside of the folder. Use a model that you trust.")
        if not path.is_file():
            raise ModelError(f"model {model}: {name} is listed in its index, but missing. Copy the model again.")
        if not _is_complete(path):
            raise ModelError(f"model {model}: {name} is truncated or not a safetensors file. Copy the model again.")


def _is_complete(path: Path) -> bool:
    """Return whether a safetensors file has the length given by its header."""
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
