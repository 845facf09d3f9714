"""Decide where the judge's engines and scorers of `rlsys policy` run, beside the policy's engines and learners."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from rlsys.config.schema import Config
from rlsys.system.placement import Bundle, Machine, Placement, PlacementError, Slot

SCORER, BT = "scorer-0", "bt-0"
"""The scorers of the judge's meta reward model and of the Bradley-Terry model."""


def judge_actors(config: Config) -> dict[str, int | None]:
    """Return the judge's engines, and its meta reward model's scorer if there is one, with their threads."""
    judge = config.judge
    engines = {f"judge-{number}": judge.cpus for number in range(judge.actors)}
    return {} if judge.model is None else engines | ({SCORER: None} if judge.meta_rm else {})


def judging_actors(config: Config) -> dict[str, int | None]:
    """Return all actors that `place_beside` has to place for a config, with their threads."""
    return judge_actors(config) | ({BT: None} if config.policy.bt else {})


def place_beside(actors: Mapping[str, int | None], machines: Sequence[Machine], taken: Sequence[Placement]) -> Placement:
    """Place `actors` (threads by name; None: the machine's cores divided by its number of them) beside the placements `taken`.

    Without GPUs they share the cores with everything else and reserve nothing. With GPUs each gets one of its own.

    Raises:
        PlacementError: too few GPUs are left.
    """
    machines = [machine for machine in machines if machine.cpus or machine.gpus]
    if any(machine.gpus for machine in machines):
        return _on_gpus(actors, machines, taken)
    places = [number * len(machines) // len(actors) for number in range(len(actors))]
    here = Counter(places)
    slots = {
        name: Slot(place, threads or max(1, machines[place].cpus // here[place]))
        for (name, threads), place in zip(actors.items(), places, strict=True)
    }
    return Placement(tuple(machines), (), slots, colocated=True)


def _on_gpus(actors: Mapping[str, int | None], machines: Sequence[Machine], taken: Sequence[Placement]) -> Placement:
    used = Counter(placed.machines[bundle.machine].name for placed in taken for bundle in placed.bundles if bundle.gpu is not None)
    free = [(place, number) for place, machine in enumerate(machines) for number in range(used[machine.name], machine.gpus)]
    if len(free) < len(actors):
        raise PlacementError(
            f"{', '.join(actors)} require {len(actors)} GPUs of their own; the policy's engines and learners take {used.total()} of "
            f"{sum(machine.gpus for machine in machines)}. Set learner.ranks and rollout.actors so that enough are left, or lower "
            "judge.actors: taking turns with the policy on one GPU is not supported."
        )
    chosen = free[: len(actors)]
    here = Counter(place for place, _ in chosen)
    slots = {
        name: Slot(place, threads or max(1, machines[place].cpus // here[place]), number, 0.0, 1.0, (number,))
        for number, ((name, threads), (place, _)) in enumerate(zip(actors.items(), chosen, strict=True))
    }
    return Placement(tuple(machines), tuple(Bundle(place, 0.0, gpu) for place, gpu in chosen), slots)
