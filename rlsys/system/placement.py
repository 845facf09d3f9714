"""Divide the CPU cores and GPUs of a cluster between learners and engines. Pure arithmetic."""

from __future__ import annotations

from dataclasses import dataclass

from rlsys.config.schema import Config


@dataclass(frozen=True)
class Placement:
    """Ray resources and threads per actor."""

    learner: dict[str, float]
    learner_threads: int
    rollout: dict[str, float]
    rollout_threads: int
    colocated: bool
    """Learners and engines take turns on the same cores or GPUs."""


def place(config: Config, cpus: int, gpus: int, nodes: int) -> Placement:
    """Divide a cluster of `cpus` cores and `gpus` GPUs on `nodes` machines.

    Without GPUs, synchronous phases take turns, so both sides use all cores; overlapping phases (staleness >= 1) get half of them each.
    With GPUs, learners and engines have their own if there are enough, and share them otherwise.
    """
    ranks, engines, tensor_parallel = config.learner.ranks, config.rollout.actors, config.rollout.tensor_parallel
    cores = max(1, cpus // nodes)
    colocated = gpus < ranks + engines * tensor_parallel if gpus else config.rl.staleness == 0
    share = cores if colocated or gpus else max(1, cores // 2)
    learner_threads = config.learner.cpus or max(1, (share if gpus or colocated else cores - share or 1) // -(-ranks // nodes))
    rollout_threads = config.rollout.cpus or max(1, share // -(-engines // nodes))
    if gpus:
        if gpus < max(ranks, engines * tensor_parallel):
            raise ValueError(
                f"{ranks} learner ranks and {engines} x {tensor_parallel} engine GPUs require at least "
                f"{max(ranks, engines * tensor_parallel)} GPUs; the cluster has {gpus}. Lower learner.ranks or rollout.actors."
            )
        part = 0.5 if colocated else 1.0
        learner = {"CPU": 1.0, "GPU": part}
        # A tensor-parallel engine needs whole GPUs.
        rollout = {"CPU": 1.0, "GPU": part if tensor_parallel == 1 else float(tensor_parallel)}
        return Placement(learner, learner_threads, rollout, rollout_threads, colocated)
    # If phases take turns, the learners' reservation covers both.
    requested = ranks * learner_threads + (0 if colocated else engines * rollout_threads)
    # Actors share cores if there are too few: Ray never grants a reservation that exceeds the cluster.
    scale = min(1.0, cpus / requested)
    learner = {"CPU": int(100 * scale * learner_threads) / 100}
    rollout = {"CPU": 0.0 if colocated else int(100 * scale * rollout_threads) / 100}
    return Placement(learner, learner_threads, rollout, rollout_threads, colocated)


def place_learners(config: Config, cpus: int, gpus: int, nodes: int) -> tuple[dict[str, float], int]:
    """Return (Ray resources, threads) per learner rank on a cluster without engines."""
    ranks = config.learner.ranks
    threads = config.learner.cpus or max(1, cpus // nodes // -(-ranks // nodes))
    if gpus:
        if gpus < ranks:
            raise ValueError(f"{ranks} learner ranks require {ranks} GPUs; the cluster has {gpus}. Lower learner.ranks.")
        return {"CPU": 1.0, "GPU": 1.0}, threads
    # Ray never grants a reservation that exceeds the cluster.
    return {"CPU": int(100 * min(threads, cpus / ranks)) / 100}, threads


def weight_backend(configured: str, gpus: float, colocated: bool) -> str:
    """Resolve "auto" to a weight transfer backend."""
    return configured if configured != "auto" else "cpu" if not gpus else "ipc" if colocated else "nccl"


def engines_sleep(config: Config, gpus: int, colocated: bool) -> bool:
    """Resolve `rollout.sleep`: whether engines sleep while learners train."""
    configured = config.rollout.sleep
    return configured if configured is not None else bool(gpus) and colocated and config.rl.staleness == 0
