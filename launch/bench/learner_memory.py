"""`rlsys bench learner --memory`: what the learner's memory settings save, each in a process group of its own."""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

from launch.bench.allocations import Allocations
from launch.bench.learner import on_every_rank, random_batch, start_learners
from launch.bench.runner import run_system
from launch.bench.work import Work, local_ray, run_child, run_config, shape_text
from launch.console import to_stderr
from rlsys.system.terminal import Table

SETTINGS: dict[str, list[str]] = {
    "as given": [],
    "activation checkpointing": ["learner.activation_checkpointing=true"],
    "reference sharded": ["learner.reference=sharded"],
    "reference on the host": ["learner.reference=host"],
    "optimizer offloaded": ["learner.offload=optimizer"],
    "states released": ["learner.release=true"],
    "ZeRO-3": ["learner.zero_stage=3"],
    "ZeRO-3, checkpointing, all offloaded": ["learner.zero_stage=3", "learner.activation_checkpointing=true", "learner.offload=all"],
}
"""Settings that are compared, on top of those of the command."""

STEPS = 2
"""Unmeasured steps, after which moments and buffers are there."""


def compare(work: Work, timeout_s: float) -> dict[str, Any]:
    """Measure all `SETTINGS`, one after the other; returns the document that --json prints."""
    results = {}
    for name, overrides in SETTINGS.items():
        one = replace(work, overrides=[*work.overrides, *overrides])
        results[name] = run_system(f"learner memory, {name}", "launch.bench.learner_memory", one, timeout_s, to_stderr())
    return {"work": asdict(work), "settings": SETTINGS, "memory": results}


def measure(work: Work) -> dict[str, Any]:
    """Measure a rank, the largest one: bytes held while engines sample, and the peak of a step."""
    from rlsys.models.loading import ensure_model

    config = run_config(work)
    model = ensure_model(config.model.path)
    batches = [random_batch(work, model, number) for number in range(STEPS + 1)]
    with local_ray(len(work.cores)), tempfile.TemporaryDirectory(prefix="rlsys-bench-") as folder:
        learners = start_learners(config, model, len(work.cores), folder)
        learners.snapshot_reference()
        learners.start_stage(config.learner.lr, config.learner.warmup_steps)
        for batch in batches[:STEPS]:
            learners.train_grpo(batch, config.rollout.temperature)
        if config.learner.release:
            on_every_rank(learners, release)
        held = on_every_rank(learners, held_bytes)
        peaks = on_every_rank(learners, step_peak(batches[STEPS], config.rollout.temperature))
        (device,) = set(on_every_rank(learners, device_of))
    return {"ranks": len(held), "device": device, "held_bytes": max(held), "peak_bytes": max(peaks)}


# --- in the rank's process --------------------------------------------------------------------------------------------


def device_of(_: Any) -> str:
    """Return the type of the rank's device."""
    from actors.learner.deepspeed_engine import device_type

    return str(device_type())


def release(learner: Any) -> None:
    """Give back the states, as the learner does after it has sent its weights."""
    from actors.learner.deepspeed_engine import release_states

    release_states(learner.engine, learner.reference, learner.learner)
    learner.released = True


def held_bytes(learner: Any) -> int:
    """Return the bytes of all tensors on the rank's device; without a GPU, of all tensors."""
    import torch

    if device_of(learner) != "cpu":
        return torch.cuda.memory_allocated()
    gc.collect()
    storages = {}
    for thing in gc.get_objects():
        if issubclass(type(thing), torch.Tensor) and not thing.is_meta:
            for tensor in (thing, thing.grad if thing.is_leaf else None):
                if tensor is not None:
                    storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
    return sum(storages.values())


def step_peak(batch: Any, temperature: float) -> Callable[[Any], int]:
    """Return a function that trains a rank on `batch`, a step of all ranks together, and returns the peak of its memory."""

    def peak(learner: Any) -> int:
        import torch

        if device_of(learner) != "cpu":
            torch.cuda.reset_peak_memory_stats()
            learner.train_grpo(batch, temperature)
            return torch.cuda.max_memory_allocated()
        held = held_bytes(learner)
        with Allocations() as counted:
            learner.train_grpo(batch, temperature)
        return held + counted.peak

    return peak


def render(document: dict[str, Any]) -> Table:
    """Render one row per setting, with its saving against the first."""
    memory = document["memory"]
    first = memory["as given"]
    table = Table(
        title=f"Memory of a learner rank, {first['ranks']} rank(s): {shape_text(document['work'])}",
        caption="Bytes of tensors, in MiB."
        + (" Without a GPU, host and device are one memory: what is moved to the host stays." if first["device"] == "cpu" else ""),
    )
    table.add_column("setting", no_wrap=True)
    for name in ("held while engines sample", "peak of a step", "of the first"):
        table.add_column(name, justify="right")
    for name, result in memory.items():
        held, peak = (f"{result[key] / 2**20:,.1f}" for key in ("held_bytes", "peak_bytes"))
        table.add_row(name, held, peak, f"{result['peak_bytes'] / first['peak_bytes']:.0%}")
    return table


if __name__ == "__main__":
    run_child(measure)
