"""Checkpoints of the learner: a model that other programs can load, and the optimizer state for an exact resume.

Both are written to a temporary folder and renamed, and both are collective: every rank must call and see the same file system.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from transformers import AutoTokenizer, PreTrainedModel

from actors.learner.deepspeed_engine import Engine, full_weights
from rlsys.prompts.chat import Chat

TAG = "state"
"""DeepSpeed's name of the single state in a folder."""


def save_model(model: PreTrainedModel, tokenizer_from: str, folder: Path) -> None:
    """Write a Hugging Face folder: safetensors in the model's dtype (gathered from all ranks under ZeRO 3), config, tokenizer."""
    first = dist.get_rank() == 0
    state = {}
    for name, whole in full_weights(model):
        if first:
            state[name] = whole.to("cpu", copy=True)
    if first:
        temporary = _temporary(folder)
        shutil.rmtree(temporary, ignore_errors=True)
        tokenizer = AutoTokenizer.from_pretrained(tokenizer_from)
        add_end_of_turn(model, tokenizer)
        model.save_pretrained(temporary, state_dict=state)
        tokenizer.save_pretrained(temporary)
        _rename(temporary, folder)
    dist.barrier()


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
    state = json.loads(where.read_text())
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


def _temporary(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.partial")


def _rename(temporary: Path, folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    os.rename(temporary, folder)
