"""What a run takes on disk: models and optimizer states of its checkpoints, which outweigh everything else."""

from __future__ import annotations

import json
from pathlib import Path

from rlsys.config.schema import Config

Parts = dict[str, float]
"""Bytes by part."""


def checkpoint_bytes(parameters: int, config: Config) -> Parts:
    """Return the size of a checkpoint's folders. DeepSpeed stores the weights once more, next to master weights and moments, except for
    ZeRO-3, whose master weights suffice.
    """
    width, stage = 2 if config.model.dtype == "bfloat16" else 4, config.learner.zero_stage
    optimizer = (8 if stage == 0 and width == 4 else 12) + (width if stage < 3 else 0)
    return {"model": width * float(parameters), "optimizer": optimizer * float(parameters)}


def checkpoint_disk(checkpoint: Parts, config: Config) -> float:
    """Return what the checkpoints of a run take on disk at most, in bytes: those kept, the best one and the cold start."""
    kept = config.checkpoint.keep + 1
    states = kept if config.checkpoint.optimizer == "all" else 1
    return kept * checkpoint["model"] + states * checkpoint["optimizer"] + (checkpoint["model"] if config.sft.rows else 0)


def run_disk(parameters: int, config: Config, command: str) -> float:
    """Return what a run of `rlsys COMMAND` (train, sft or rft) takes on disk at most, in bytes.

    A new checkpoint is complete before an older one, or its optimizer state, is deleted.
    """
    checkpoint = checkpoint_bytes(parameters, config)
    whole = sum(checkpoint.values())
    if command == "sft":
        return whole
    if command == "rft":  # a round keeps its result, besides the checkpoints of the tuning
        return config.rft.rounds * whole + checkpoint_disk(checkpoint, config) + whole
    return checkpoint_disk(checkpoint, config) + whole


def parameter_count(folder: Path) -> int | None:
    """Return the number of weights in a model's safetensors files, by their headers; None if there are none."""
    count = 0
    for path in folder.glob("*.safetensors"):
        with path.open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        for name, entry in header.items():
            if name != "__metadata__":
                size = 1
                for width in entry["shape"]:
                    size *= width
                count += size
    return count or None
