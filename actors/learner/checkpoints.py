"""Checkpoints of the learner: a model that other programs can load, and the optimizer state for an exact resume.

Both are written to a temporary folder and renamed, and both are collective: every rank must call and see the same file system.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from transformers import AutoTokenizer, PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from actors.learner.deepspeed_engine import Engine, full_weights
from actors.weights.source import layer_of
from rlsys.documents.core import read_object
from rlsys.io.files import apply_umask
from rlsys.prompts.chat import Chat

TAG = "state"
"""DeepSpeed's name of the single state in a folder."""


FULL_BYTES = 2**20
"""A disk with less free space than this is full."""
SHARD_BYTES = 2**30
"""Smaller models are written as one file, by rank 0; of larger ones each rank writes a shard of at least this size."""


def save_model(model: PreTrainedModel, tokenizer_from: str, folder: Path, files: Mapping[str, str] | None = None) -> None:
    """Write a Hugging Face folder: safetensors in the model's dtype, config, tokenizer. Every rank writes a shard of a large model.

    Under ZeRO 3 each parameter is gathered in turn, and the rank that writes it keeps it.

    Args:
        files: text files to write into the folder, by name.
    """
    rank, temporary = dist.get_rank(), _temporary(folder)
    if rank == 0:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        tokenizer = AutoTokenizer.from_pretrained(tokenizer_from)
        add_end_of_turn(model, tokenizer)
    writers = writing_ranks(model, dist.get_world_size())
    state = {name: whole.to("cpu", copy=True) for name, whole in full_weights(model) if writers[name] == rank}
    dist.barrier()
    if rank == 0:
        # With the config. It does nothing on other ranks.
        model.save_pretrained(temporary, state_dict=state, max_shard_size=sys.maxsize)
    elif state:
        # transformers may store a layer's weights under other names and in other shapes; a shard has whole layers.
        save_file(revert_weight_conversion(model, state), temporary / f"{rank}.safetensors", metadata={"format": "pt"})
    dist.barrier()
    if rank == 0:
        _name_shards(temporary, max(writers.values()) + 1)
        tokenizer.save_pretrained(temporary)
        for name, text in (files or {}).items():
            (temporary / name).write_text(text, encoding="utf-8")
        apply_umask(temporary)
        _rename(temporary, folder)
    dist.barrier()


def writing_ranks(model: nn.Module, world_size: int) -> dict[str, int]:
    """Return the rank that writes each parameter: whole layers, in order, with about the same number of bytes for each rank."""
    sizes = {name: getattr(p, "ds_numel", p.numel()) * p.element_size() for name, p in model.named_parameters()}
    shards = max(1, min(world_size, sum(sizes.values()) // SHARD_BYTES))
    share, before = sum(sizes.values()) / shards, 0
    ranks: dict[str, int] = {}
    for _, names in groupby(sizes, key=layer_of):
        layer = list(names)
        ranks |= dict.fromkeys(layer, min(int(before / share), shards - 1))
        before += sum(sizes[name] for name in layer)
    # A layer larger than a share leaves ranks without one.
    used = sorted(set(ranks.values()))
    return {name: used.index(rank) for name, rank in ranks.items()}


def _name_shards(folder: Path, shards: int) -> None:
    """Give the ranks' files the names of shards, and write the index that transformers and vLLM read."""
    if shards == 1:
        return
    places: dict[str, str] = {}
    size = 0
    for rank in range(shards):
        name = f"model-{rank + 1:05d}-of-{shards:05d}.safetensors"
        os.rename(folder / (f"{rank}.safetensors" if rank else SAFE_WEIGHTS_NAME), folder / name)
        with safe_open(folder / name, "pt") as file:
            places |= dict.fromkeys(file.keys(), name)
            size += sum(file.get_tensor(key).nbytes for key in file.keys())
    index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(places.items()))}
    (folder / SAFE_WEIGHTS_INDEX_NAME).write_text(json.dumps(index, indent=2) + "\n")


def add_end_of_turn(model: PreTrainedModel, tokenizer: Any) -> None:
    """Add the end-of-turn token to the model's generation config.

    Base models specify only the end-of-document token, so users of the trained model would not stop where it was trained to.
    """
    if not (model.can_generate() and tokenizer.chat_template):
        return
    known = model.generation_config.eos_token_id
    known = known if isinstance(known, list) else [] if known is None else [known]
    end = Chat(tokenizer).end
    if end not in known:
        model.generation_config.eos_token_id = [*known, end]


def save_optimizer(engine: Engine, folder: Path, state: dict[str, Any]) -> None:
    """Write every rank's master weights, moments and random state through DeepSpeed, with `state` next to them as learner.json."""
    temporary = _temporary(folder)
    if dist.get_rank() == 0:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
    dist.barrier()
    engine.save_checkpoint(str(temporary), tag=TAG, save_latest=False)
    torch.save(torch.get_rng_state(), temporary / f"random_rank{dist.get_rank()}.pt")
    dist.barrier()
    if dist.get_rank() == 0:
        (temporary / "learner.json").write_text(json.dumps(state, indent=2) + "\n")
        _rename(temporary, folder)
    dist.barrier()


def load_optimizer(engine: Engine, folder: Path, identity: dict[str, Any]) -> dict[str, Any]:
    """Restore what `save_optimizer` wrote, weights included; returns its `state`.

    Args:
        identity: entries of `state` that must be unchanged.
    Raises:
        ValueError: nothing to load, or an entry of `identity` differs.
    """
    where = folder / "learner.json"
    if not where.exists():
        raise ValueError(f"{folder}: no optimizer state here (learner.json is missing). Resume from a complete checkpoint.")
    state = read_object(where)
    differing = [f"{key} was {state.get(key)} and is {value}" for key, value in identity.items() if state.get(key) != value]
    if differing:
        raise ValueError(
            f"{folder}: the optimizer state belongs to a different learner: {', '.join(differing)}. Set these back to resume, "
            f"or start a new run with model.path={folder.with_name('model')}."
        )
    path, _ = engine.load_checkpoint(str(folder), tag=TAG, load_lr_scheduler_states=False)
    if path is None:
        raise ValueError(f"{folder}: DeepSpeed found no state to load; see the learner's log file.")
    torch.set_rng_state(torch.load(folder / f"random_rank{dist.get_rank()}.pt", weights_only=True))
    return state


@contextmanager
def naming_a_full_disk(folder: Path) -> Iterator[None]:
    """Raise OSError for a write that failed on a full disk; torch and safetensors raise errors of their own, some without the reason."""
    try:
        yield
    except Exception as error:
        if isinstance(error, OSError) or shutil.disk_usage(folder).free >= FULL_BYTES:
            raise
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder)) from error


def _temporary(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.partial")


def _rename(temporary: Path, folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    os.rename(temporary, folder)
