"""How a cluster's cores and cards are divided between learners and engines: arithmetic alone."""

from __future__ import annotations

from dataclasses import dataclass

from rlsys.config.schema import Config


@dataclass(frozen=True)
class Placement:
    """What each actor reserves (Ray resources) and how many threads it may use."""

    learner: dict[str, float]
    learner_threads: int
    rollout: dict[str, float]
    rollout_threads: int
    colocated: bool
    """Learners and engines take turns on the same cores or cards."""


def place(config: Config, cpus: int, gpus: int, nodes: int) -> Placement:
    """Divide a cluster of `cpus` cores and `gpus` cards on `nodes` machines.

    Without cards, synchronous phases take turns, so both sides get every core; overlapping ones (staleness >= 1) halve the
    cores. With cards, learners and engines get their own where there are enough, and share them otherwise.
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
                f"{ranks} learner ranks and {engines} x {tensor_parallel} engine cards want at least "
                f"{max(ranks, engines * tensor_parallel)} GPUs; the cluster has {gpus}. Lower learner.ranks or rollout.actors."
            )
        part = 0.5 if colocated else 1.0
        learner = {"CPU": 1.0, "GPU": part}
        # An engine over several cards needs them whole; it may not share.
        rollout = {"CPU": 1.0, "GPU": part if tensor_parallel == 1 else float(tensor_parallel)}
        return Placement(learner, learner_threads, rollout, rollout_threads, colocated)
    # Where phases take turns the engines reserve nothing: the learners' reservation stands for both.
    wanted = ranks * learner_threads + (0 if colocated else engines * rollout_threads)
    # More actors than cores share them: a reservation beyond what there is would never be granted.
    scale = min(1.0, cpus / wanted)
    learner = {"CPU": int(100 * scale * learner_threads) / 100}
    rollout = {"CPU": 0.0 if colocated else int(100 * scale * rollout_threads) / 100}
    return Placement(learner, learner_threads, rollout, rollout_threads, colocated)


def place_learners(config: Config, cpus: int, gpus: int, nodes: int) -> tuple[dict[str, float], int]:
    """(Ray resources of one rank, its threads) where nothing but learners runs."""
    ranks = config.learner.ranks
    threads = config.learner.cpus or max(1, cpus // nodes // -(-ranks // nodes))
    if gpus:
        if gpus < ranks:
            raise ValueError(f"{ranks} learner ranks want as many GPUs; the cluster has {gpus}. Lower learner.ranks.")
        return {"CPU": 1.0, "GPU": 1.0}, threads
    # A reservation beyond what there is would never be granted.
    return {"CPU": int(100 * min(threads, cpus / ranks)) / 100}, threads


def weight_backend(chosen: str, gpus: float, colocated: bool) -> str:
    """The weight transfer that "auto" stands for on a cluster of `gpus` cards."""
    return chosen if chosen != "auto" else "cpu" if not gpus else "ipc" if colocated else "nccl"


def engines_sleep(config: Config, gpus: int, colocated: bool) -> bool:
    """Whether engines sleep while learners train: `rollout.sleep`, with what its None stands for on a cluster of `gpus` cards."""
    chosen = config.rollout.sleep
    return chosen if chosen is not None else bool(gpus) and colocated and config.rl.staleness == 0
