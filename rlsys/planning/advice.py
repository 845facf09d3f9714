"""Find settings with which a plan that does not fit would fit. Every suggestion has been planned: applied, it fits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from rlsys.config.checks import require_consistent_settings
from rlsys.config.files import load_config
from rlsys.config.schema import Config
from rlsys.planning.cluster import Machines
from rlsys.planning.plan import make_plan
from rlsys.planning.shape import ModelShape
from rlsys.system.counts import Counts, training_counts
from rlsys.system.devices import reference_kind

MOST = 3
"""Suggestions to return."""

Change = tuple[str, ...]
"""Overrides, `key=value`, that belong together."""


def suggest(config: Config, shape: ModelShape, machines: Machines) -> list[Change]:
    """Return up to MOST changes of settings, each of which alone makes the plan fit: those that cost least first, the shortest.

    Single changes are tried first, then pairs, then all cheap ones in order until the plan fits. Empty: it fits already, or nothing tried
    makes it fit; then it takes more or larger GPUs (`fitting_nodes`).
    """
    if _fits(config, (), shape, machines):
        return []
    single = list(_changes(config, machines))
    pairs = [first + second for i, first in enumerate(single) for second in single[i + 1 :] if not _keys(first) & _keys(second)]
    for candidates in (single, pairs, list(_accumulated(single))):
        found = [change for change in candidates if _fits(config, change, shape, machines)]
        if found:
            return _distinct(found)[:MOST]
    return []


def fitting_nodes(config: Config, shape: ModelShape, machines: Machines, most: int = 64) -> tuple[int, Change] | None:
    """Return the smallest number of machines (a power of two times those given, up to `most`) on which the run fits with more learner
    ranks, and the settings for it; None: none.
    """
    nodes, (ranks, engines) = machines.nodes * 2, _counts(config, machines)
    while nodes <= most:
        more = replace(machines, nodes=nodes)
        factor = nodes // machines.nodes
        change = (f"learner.ranks={ranks * factor}", f"rollout.actors={engines * factor}")
        if _fits(config, change, shape, more):
            return nodes, change
        nodes *= 2
    return None


def _fits(config: Config, change: Change, shape: ModelShape, machines: Machines) -> bool:
    """Return whether the run fits with `change` applied; not if the settings contradict each other or cannot be placed."""
    try:
        changed = load_config(None, list(change), start=config)
        require_consistent_settings(changed, "train")
        return make_plan(changed, shape, machines).fits
    except ValueError:
        return False


def _changes(config: Config, machines: Machines) -> Iterator[Change]:
    """Yield changes, those that cost least first. None changes what is learned, except for the last ones, which shorten the texts."""
    learner, rollout = config.learner, config.rollout
    ranks, _ = _counts(config, machines)
    if machines.gpus:
        if learner.attention == "blocks":
            yield ("learner.attention=flex",)
        if rollout.sleep is not True and config.rl.staleness == 0:
            yield ("rollout.sleep=true",)
        for share in (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2):
            if share != rollout.gpu_memory_utilization:
                yield (f"rollout.gpu_memory_utilization={share}",)
    for stage in range(learner.zero_stage + 1, 4):
        if ranks > 1 and not (stage == 3 and learner.layers == "compiled"):
            yield (f"learner.zero_stage={stage}",)
    budget = learner.token_budget // 2
    while budget >= 1024:
        yield (f"learner.token_budget={budget}",)
        budget //= 2
    if not learner.activation_checkpointing:
        yield ("learner.activation_checkpointing=true",)
    if machines.gpus:
        yield from _on_the_host(config, ranks)
    yield from _wider(config, machines)
    if not machines.gpus:
        yield from ((f"rollout.kv_cache_gib={gib}",) for gib in (4.0, 2.0, 1.0, 0.5, 0.25) if gib != rollout.kv_cache_gib)
    for share in (2, 4):
        yield (f"prompt.max_tokens={config.prompt.max_tokens // share}",)


def _on_the_host(config: Config, ranks: int) -> Iterator[Change]:
    """Yield what moves states off the GPU: a sharded reference first, then what costs time."""
    learner = config.learner
    if config.rl.beta and ranks > 1 and reference_kind(learner) == "whole":
        yield ("learner.reference=sharded",)
    if config.rl.beta and reference_kind(learner) != "host":
        yield ("learner.reference=host",)
    if learner.offload == "none" and learner.zero_stage:
        yield ("learner.offload=optimizer",)
    if learner.offload != "all" and learner.zero_stage == 3:
        yield ("learner.offload=all",)


def _wider(config: Config, machines: Machines) -> Iterator[Change]:
    """Yield tensor parallelism over more GPUs, with as many engines fewer, and learners on more of the GPUs."""
    parallel, (ranks, engines) = config.rollout.tensor_parallel, _counts(config, machines)
    for factor in (2, 4, 8):
        if parallel * factor <= machines.gpus and engines % factor == 0:
            yield f"rollout.tensor_parallel={parallel * factor}", f"rollout.actors={engines // factor}"
    ranks *= 2
    while machines.gpus and ranks <= machines.devices:
        yield (f"learner.ranks={ranks}",)
        ranks *= 2


def _counts(config: Config, machines: Machines) -> Counts:
    """Return the number of ranks and engines, which the config may leave to the machines."""
    listed = machines.listed()
    return training_counts(config, sum(machine.cpus for machine in listed), [machine.gpus for machine in listed])


def _accumulated(changes: list[Change]) -> Iterator[Change]:
    """Yield the first change, the first two, and so on; a later value of a key replaces an earlier one."""
    settings: dict[str, str] = {}
    for change in changes:
        settings |= dict(part.split("=", 1) for part in change)
        yield tuple(f"{key}={value}" for key, value in settings.items())


def _keys(change: Change) -> set[str]:
    return {part.partition("=")[0] for part in change}


def _distinct(changes: list[Change]) -> list[Change]:
    """Keep the first change of each set of keys: it costs least."""
    return list({frozenset(_keys(change)): change for change in reversed(changes)}.values())[::-1]
