"""Checkpoints of the learner: a model that other programs load as it is, and the optimizer's state to resume from exactly.

Both are written aside and renamed, and both are collective: every rank must call, and see the same file system.
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
"""DeepSpeed's name for the one state in a folder."""


def save_model(model: PreTrainedModel, tokenizer_from: str, folder: Path) -> None:
    """Hugging Face folder: safetensors in the model's own dtype (gathered from all ranks where ZeRO 3 shards it), config, tokenizer."""
    first = dist.get_rank() == 0
    state = {}
    for name, whole in full_weights(model):
        if first:
            state[name] = whole.to("cpu", copy=True)
    if first:
        aside = _aside(folder)
        shutil.rmtree(aside, ignore_errors=True)
        tokenizer = AutoTokenizer.from_pretrained(tokenizer_from)
        end_where_turns_end(model, tokenizer)
        model.save_pretrained(aside, state_dict=state)
        tokenizer.save_pretrained(aside)
        _publish(aside, folder)
    dist.barrier()


def end_where_turns_end(model: PreTrainedModel, tokenizer: Any) -> None:
    """Add what ends an assistant's turn to the model's generation config: base models name the end of a document only, and whoever loads
    the trained model would not stop where it was taught to.
    """
    if not (model.can_generate() and tokenizer.chat_template):
        return
    known = model.generation_config.eos_token_id
    known = known if isinstance(known, list) else [] if known is None else [known]
    end = Chat(tokenizer).end
    if end not in known:
        model.generation_config.eos_token_id = [*known, end]


def save_optimizer(engine: Engine, folder: Path, state: dict[str, Any]) -> None:
    """Every rank's master weights, moments and random state, by DeepSpeed, with `state` as learner.json beside them."""
    aside = _aside(folder)
    if dist.get_rank() == 0:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
    dist.barrier()
    engine.save_checkpoint(str(aside), tag=TAG, save_latest=False)
    torch.save(torch.get_rng_state(), aside / f"random_rank{dist.get_rank()}.pt")
    dist.barrier()
    if dist.get_rank() == 0:
        (aside / "learner.json").write_text(json.dumps(state, indent=2) + "\n")
        _publish(aside, folder)
    dist.barrier()


def load_optimizer(engine: Engine, folder: Path, identity: dict[str, Any]) -> dict[str, Any]:
    """Restore what `save_optimizer` wrote, weights included; returns its `state`.

    Args:
        identity: the entries of `state` that must be the same now as then.
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
            f"{folder}: the optimizer state fits another learner: {', '.join(differing)}. Set these back to resume, "
            f"or start a new run with model.path={folder.with_name('model')}."
        )
    path, _ = engine.load_checkpoint(str(folder), tag=TAG, load_lr_scheduler_states=False)
    if path is None:
        raise ValueError(f"{folder}: DeepSpeed found no state to load; the learner's log file says more.")
    torch.set_rng_state(torch.load(folder / f"random_rank{dist.get_rank()}.pt", weights_only=True))
    return state


def _aside(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.partial")


def _publish(aside: Path, folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    os.rename(aside, folder)
