"""How many learner ranks and engines a job has: as many as its config says, or as its GPUs can hold where the config says null."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from rlsys.config.schema import Config

CPU_RANKS = 2
"""Learner ranks without GPUs: on two cores, two ranks with one thread each are faster than one with two."""


class Counts(NamedTuple):
    """Numbers of learner ranks and of engines."""

    ranks: int
    engines: int


def training_counts(config: Config, cores: int, gpus: Sequence[int]) -> Counts:
    """Count the actors of a job that samples and trains.

    With both null, phases that take turns (rl.staleness=0) share all GPUs, and overlapping ones get half of them each. (They do not share
    either if engines find room on half of the GPUs only, each within a machine.) With one null, it gets the GPUs that the other one
    leaves, or shares those of the other one if it leaves none.

    Args:
        cores: CPU cores of the cluster.
        gpus: GPUs of each of its machines.
    """
    ranks, engines, width = config.learner.ranks, config.rollout.actors, config.rollout.tensor_parallel
    total, groups = sum(gpus), _groups(gpus, width)
    if not total:
        return Counts(ranks or min(CPU_RANKS, max(1, cores)), engines or 1)
    if ranks is None and engines is None:
        in_turns = config.rl.staleness == 0
        engines = max(1, groups if in_turns else min(groups, total // 2 // width))
        shares = total < 2 * engines * width if in_turns else total <= width
        return Counts(engines * width if shares else total - engines * width, engines)
    if ranks is None:
        assert engines is not None
        left = total - engines * width
        return Counts(left if left > 0 else engines * width, engines)
    if engines is None:
        left = min(groups, (total - ranks) // width)
        return Counts(ranks, left if left > 0 else max(1, ranks // width))
    return Counts(ranks, engines)


def rank_count(config: Config, cores: int, gpus: int) -> int:
    """Count the learner ranks of a job without engines."""
    return config.learner.ranks or gpus or min(CPU_RANKS, max(1, cores))


def engine_count(config: Config, gpus: Sequence[int]) -> int:
    """Count the engines of a job without learners."""
    return config.rollout.actors or max(1, _groups(gpus, config.rollout.tensor_parallel))


def _groups(gpus: Sequence[int], width: int) -> int:
    """Return how many engines of `width` GPUs fit, each within one machine."""
    return sum(each // width for each in gpus)
