"""Decide where every actor of a job runs: a pure function from the config and the machines to machines, GPUs, cores and threads.

Ray reserves one bundle per GPU. Engines and learners share GPUs if there are too few for both:

    shared, 2 ranks, 2 engines        GPU 0: learner-0, rollout-0      GPU 1: learner-1, rollout-1
    shared, 4 ranks, 2 engines x 2    GPU 0: learner-0, rollout-0      GPU 1: learner-1, rollout-0     GPU 2: learner-2, rollout-1  ...
    split, 2 ranks, 1 engine x 2      GPU 0: learner-0                 GPU 1: learner-1                GPUs 2 and 3: rollout-0

Weights go from a rank to an engine on the same GPU by CUDA IPC, so engine i uses exactly the GPUs of its own ranks. An engine's GPUs are in
one machine, and ranks are numbered machine by machine, so that neighbours communicate inside a machine.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from rlsys.config.schema import Config
from rlsys.system.counts import engine_count, rank_count, training_counts


class PlacementError(ValueError):
    """The machines can never hold the job; the message names what was requested, what there is, and which settings to change."""


@dataclass(frozen=True)
class Machine:
    """What Ray may use of a machine."""

    name: str
    """Address, for people."""
    cpus: int
    gpus: int
    node_id: str = ""
    """Ray's identifier."""


@dataclass(frozen=True)
class Bundle:
    """Resources that Ray reserves together: one GPU with its actors' cores or, without GPUs, the cores of one actor."""

    machine: int
    """Index in `Placement.machines`."""
    cpus: float
    gpu: int | None = None
    """Number of its GPU in the machine; which one that is, Ray decides. None: no GPU."""


@dataclass(frozen=True)
class Slot:
    """The place of one actor."""

    machine: int
    """Index in `Placement.machines`."""
    threads: int
    """CPU threads; of an engine, of all its workers together."""
    bundle: int | None = None
    """Index in `Placement.bundles` of the bundle that it is created in; None: it reserves nothing."""
    cpus: float = 0.0
    """CPUs taken from the bundle."""
    gpu_share: float = 0.0
    """What it takes of each of its GPUs: 0.5 or 1."""
    gpus: tuple[int, ...] = ()
    """Bundles whose GPUs it uses."""


@dataclass(frozen=True)
class Placement:
    """Where every actor of a job runs."""

    machines: tuple[Machine, ...]
    bundles: tuple[Bundle, ...]
    slots: dict[str, Slot]
    """By actor: learner-0, ..., rollout-0, ..., scorer-0, ..."""
    colocated: bool = False
    """Learners and engines take turns on the same cores, or share GPUs."""

    @property
    def gpus(self) -> int:
        """Number of GPUs that the job uses."""
        return sum(bundle.gpu is not None for bundle in self.bundles)

    def count(self, kind: str) -> int:
        """Return the number of actors of a kind: "learner", "rollout" or "scorer"."""
        return sum(name.startswith(f"{kind}-") for name in self.slots)

    def threads(self, actor: str) -> int:
        """CPU threads of an actor."""
        return self.slots[actor].threads

    @property
    def concurrent_threads(self) -> int:
        """Most CPU threads that compute at the same time."""
        kinds = Counter[str]()
        for name, slot in self.slots.items():
            kinds[name.partition("-")[0]] += slot.threads
        return max(kinds.values()) if self.colocated else kinds.total()

    def rows(self) -> list[tuple[str, str, str]]:
        """Describe the placement, by machine: (machine, "GPU N" or "CPU", actors)."""
        found: list[tuple[str, str, str]] = []
        for index, machine in enumerate(self.machines):
            for number, bundle in enumerate(self.bundles):
                if bundle.machine == index and bundle.gpu is not None:
                    users = [f"{name} ({slot.gpu_share:.0%})" for name, slot in self.slots.items() if number in slot.gpus]
                    found.append((machine.name, f"GPU {bundle.gpu}", ", ".join(users)))
            others = [f"{name} ({slot.threads} threads)" for name, slot in self.slots.items() if slot.machine == index and not slot.gpus]
            if others:
                found.append((machine.name, "CPU", ", ".join(others)))
        return found

    def describe(self, actor: str) -> dict[str, Any]:
        """Return the place of an actor for actors.json: machine, numbers of its GPUs there, share of each, CPUs, threads."""
        slot = self.slots[actor]
        numbers = [self.bundles[bundle].gpu for bundle in slot.gpus]
        machine = self.machines[slot.machine].name
        return {"machine": machine, "gpus": numbers, "gpu_share": slot.gpu_share, "cpus": slot.cpus, "threads": slot.threads}


def place(config: Config, machines: Sequence[Machine]) -> Placement:
    """Place the learners and engines of a training run.

    Without GPUs, synchronous phases take turns, so both sides use all cores; overlapping phases (staleness >= 1) get half of the cores of
    one machine each, or machines of their own, the engines the largest. With GPUs, learners and engines have their own if there are enough,
    and share them otherwise.

    Raises:
        PlacementError: the machines cannot hold the job.
    """
    machines = _usable(machines)
    gpus, width = [machine.gpus for machine in machines], config.rollout.tensor_parallel
    ranks, engines = training_counts(config, sum(_cores(machines)), gpus)
    total = sum(gpus)
    if not total:
        return _place_on_cores(config, machines, ranks, engines)
    if config.run.deterministic:
        raise PlacementError(f"run.deterministic=true: on CPUs only, and the cluster has {total} GPU(s). Set run.deterministic=false.")
    found = f"{total} ({', '.join(f'{machine.name}: {machine.gpus}' for machine in machines)})"
    least = max(ranks, engines * width)
    if total < least:
        raise PlacementError(
            f"{ranks} learner ranks and {engines} x {width} engine GPUs require at least {least} GPUs; the cluster has {found}. "
            "Lower learner.ranks or rollout.actors."
        )
    if total >= ranks + engines * width:
        return _on_gpus(config, machines, _split(machines, ranks, engines, width))
    if ranks != engines * width:
        raise PlacementError(
            f"{ranks} learner ranks and {engines} x {width} engine GPUs require {ranks + engines * width} GPUs; the cluster has {found}, "
            "so they have to share. Then each engine uses the GPUs of its own ranks: set learner.ranks to rollout.actors x "
            f"rollout.tensor_parallel, for example learner.ranks={engines * width}."
        )
    groups = _take_groups(_free_gpus(machines), engines, width)
    return _on_gpus(config, machines, _Layout([gpu for group in groups for gpu in group], groups), colocated=True)


def place_learners(config: Config, machines: Sequence[Machine]) -> Placement:
    """Place learner ranks without engines: one GPU each if there are GPUs, else an equal share of their machine's cores.

    Raises:
        PlacementError: fewer GPUs than ranks.
    """
    machines = _usable(machines)
    total = sum(machine.gpus for machine in machines)
    ranks = rank_count(config, sum(_cores(machines)), total)
    if not total:
        everywhere = list(range(len(machines)))
        return _on_cores(machines, [_Kind("learner", ranks, config.learner.cpus, everywhere, _cores(machines))], colocated=False)
    if total < ranks:
        raise PlacementError(f"{ranks} learner ranks require {ranks} GPUs; the cluster has {total}. Lower learner.ranks.")
    return _on_gpus(config, machines, _Layout([group[0] for group in _take_groups(_free_gpus(machines), ranks, 1)]))


def place_judges(config: Config, machines: Sequence[Machine], scorer: bool = False) -> Placement:
    """Place engines, and the scorer of a meta reward model.

    Without GPUs the scorer gets a quarter of its machine's cores, at least one, and the engines the rest. With GPUs it has its own if
    there are enough, and shares that of the first engine otherwise.

    Raises:
        PlacementError: fewer GPUs than the engines need.
    """
    machines, width = _usable(machines), config.rollout.tensor_parallel
    gpus = [machine.gpus for machine in machines]
    total, engines = sum(gpus), engine_count(config, gpus)
    if not total:
        everywhere, cores = list(range(len(machines))), _cores(machines)
        quarters = [max(1, each // 4) for each in cores]
        used = set(_machines_of(int(scorer), everywhere))
        rest = [each - quarters[machine] * (machine in used) for machine, each in enumerate(cores)]
        kinds = [_Kind("rollout", engines, config.rollout.cpus, everywhere, rest)]
        return _on_cores(machines, [*kinds, _Kind("scorer", int(scorer), None, everywhere, quarters, divided=False)], colocated=False)
    if total < engines * width:
        raise PlacementError(
            f"{engines} x {width} engine GPUs require {engines * width} GPUs; the cluster has {total}. "
            "Lower rollout.actors or rollout.tensor_parallel."
        )
    free = _free_gpus(machines)
    groups = _take_groups(free, engines, width)
    own = next((gpu for gpus in free for gpu in gpus), groups[0][0])
    return _on_gpus(config, machines, _Layout([], groups, own if scorer else None))


def check_reported_gpus(placement: Placement, reported: Mapping[str, tuple[str, Sequence[str]]]) -> None:
    """Check that actors were given the GPUs of their bundles, each bundle another one.

    Args:
        reported: node id and ids of the GPUs, by actor.

    Raises:
        PlacementError: they were not; the message names the actors.
    """
    given: dict[int, tuple[str, str]] = {}
    for name, slot in placement.slots.items():
        node, gpus = reported[name]
        if len(gpus) < len(slot.gpus):
            raise PlacementError(f"{name}: expected {len(slot.gpus)} GPU(s), Ray assigned {len(gpus)}.")
        for bundle, gpu in zip(slot.gpus, gpus):
            if given.setdefault(bundle, (node, gpu)) != (node, gpu):
                others = ", ".join(other for other, one in placement.slots.items() if bundle in one.gpus and other != name)
                raise PlacementError(f"{name} was given GPU {gpu} of node {node}, but has to share one with {others}.")
    if twice := [gpu for gpu, count in Counter(given.values()).items() if count > 1]:
        raise PlacementError(f"Ray assigned GPU {twice[0][1]} of node {twice[0][0]} to actors that need a GPU each.")


def weight_backend(configured: str, gpus: float, colocated: bool) -> str:
    """Resolve "auto" to a weight transfer backend.

    Raises:
        PlacementError: the configured backend needs another placement.
    """
    if gpus and configured == ("nccl" if colocated else "ipc"):
        where, other = ("share GPUs", "ipc") if colocated else ("have GPUs of their own", "nccl")
        raise PlacementError(
            f"weights.backend={configured}: learners and engines {where} on this cluster; set weights.backend={other} or auto."
        )
    return configured if configured != "auto" else "cpu" if not gpus else "ipc" if colocated else "nccl"


def engines_sleep(config: Config, gpus: int, colocated: bool) -> bool:
    """Resolve `rollout.sleep`: whether engines sleep while learners train."""
    configured = config.rollout.sleep
    return configured if configured is not None else bool(gpus) and colocated and config.rl.staleness == 0


def _usable(machines: Sequence[Machine]) -> list[Machine]:
    usable = [machine for machine in machines if machine.cpus or machine.gpus]
    if not usable:
        raise PlacementError("no machine of the cluster offers CPUs or GPUs to Ray; start it with `ray start --num-cpus=N`.")
    return usable


# --- GPUs -------------------------------------------------------------------------------------------------------------


class _Gpu(NamedTuple):
    machine: int
    number: int


@dataclass
class _Layout:
    """GPUs by rank and by engine, and the scorer's."""

    ranks: list[_Gpu] = field(default_factory=list)
    engines: list[list[_Gpu]] = field(default_factory=list)
    scorer: _Gpu | None = None


def _free_gpus(machines: Sequence[Machine]) -> list[list[_Gpu]]:
    """Return the GPUs by machine, the largest machines first: fewer machines mean fewer hops."""
    order = sorted(range(len(machines)), key=lambda index: -machines[index].gpus)
    return [[_Gpu(index, number) for number in range(machines[index].gpus)] for index in order]


def _take_groups(free: list[list[_Gpu]], count: int, width: int) -> list[list[_Gpu]]:
    """Take `count` groups of `width` GPUs out of `free`, each group within one machine."""
    groups: list[list[_Gpu]] = []
    for gpus in free:
        while len(gpus) >= width and len(groups) < count:
            groups.append(gpus[:width])
            del gpus[:width]
    if len(groups) < count:
        raise PlacementError(
            f"{count} engines of {width} GPUs each (rollout.tensor_parallel) do not fit: an engine's GPUs have to be in one machine, and "
            f"there is room for {len(groups)}. Lower rollout.actors or rollout.tensor_parallel."
        )
    return groups


def _split(machines: Sequence[Machine], ranks: int, engines: int, width: int) -> _Layout:
    """Give ranks and engines GPUs of their own, on different machines where that is possible.

    Otherwise the engines fill the machines from the last one on, so that at most a few machines hold both.
    """
    free = _free_gpus(machines)
    groups_in = [len(gpus) // width for gpus in free]
    for cut in range(1, len(free)):
        if sum(map(len, free[:cut])) >= ranks and sum(groups_in[cut:]) >= engines:
            return _Layout([group[0] for group in _take_groups(free[:cut], ranks, 1)], _take_groups(free[cut:], engines, width))
        if sum(groups_in[:cut]) >= engines and sum(map(len, free[cut:])) >= ranks:
            return _Layout([group[0] for group in _take_groups(free[cut:], ranks, 1)], _take_groups(free[:cut], engines, width))
    taken = _take_groups(free[::-1], engines, width)
    return _Layout([group[0] for group in _take_groups(free, ranks, 1)], taken)


def _on_gpus(config: Config, machines: Sequence[Machine], layout: _Layout, colocated: bool = False) -> Placement:
    """Reserve one bundle per GPU; an actor takes its part of its first GPU's bundle, with one CPU where the machine has as many."""
    named = {f"learner-{i}": [gpu] for i, gpu in enumerate(layout.ranks)}
    named |= {f"rollout-{i}": gpus for i, gpus in enumerate(layout.engines)}
    named |= {"scorer-0": [layout.scorer]} if layout.scorer is not None else {}
    users = Counter(gpu for gpus in named.values() for gpu in gpus)
    bundles = {gpu: index for index, gpu in enumerate(sorted(users))}
    here = Counter(gpus[0].machine for gpus in named.values())
    kinds = Counter((name.partition("-")[0], gpus[0].machine) for name, gpus in named.items())
    configured = {"learner": config.learner.cpus, "rollout": config.rollout.cpus}
    slots = {}
    for name, gpus in named.items():
        kind, machine = name.partition("-")[0], gpus[0].machine
        cores = machines[machine].cpus
        threads = configured.get(kind) or max(1, cores // (4 if kind == "scorer" else kinds[kind, machine]))
        cpus = int(100 * min(1.0, cores / here[machine])) / 100
        # An integer or at most 1 is all that Ray grants an actor of one bundle; its other GPUs are reserved with their own bundles.
        share = 1 / max(users[gpu] for gpu in gpus)
        slots[name] = Slot(machine, threads, bundles[gpus[0]], cpus, share, tuple(bundles[gpu] for gpu in gpus))
    cores_in = dict.fromkeys(range(len(bundles)), 0.0)
    for slot in slots.values():
        cores_in[slot.gpus[0]] += slot.cpus
    return Placement(
        tuple(machines), tuple(Bundle(gpu.machine, cores_in[index], gpu.number) for gpu, index in bundles.items()), slots, colocated
    )


# --- CPUs -------------------------------------------------------------------------------------------------------------


@dataclass
class _Kind:
    """Actors of one kind and the cores they get."""

    name: str
    count: int
    threads: int | None
    """Configured threads of each; None: what `cores` allows."""
    machines: list[int]
    cores: list[int]
    """Cores for this kind, by machine."""
    divided: bool = True
    """Whether the actors of a machine divide its `cores`; otherwise each gets as many."""
    reserves: bool = True


def _cores(machines: Sequence[Machine]) -> list[int]:
    return [max(1, machine.cpus) for machine in machines]


def _machines_of(count: int, machines: list[int]) -> list[int]:
    """Spread `count` actors evenly over `machines`, neighbours together."""
    return [machines[i * len(machines) // count] for i in range(count)]


def _place_on_cores(config: Config, machines: list[Machine], ranks: int, engines: int) -> Placement:
    colocated = config.rl.staleness == 0
    learners_on = engines_on = everywhere = list(range(len(machines)))
    cores = for_learners = for_engines = _cores(machines)
    if not colocated and len(machines) > 1:
        count = min(max(1, round(len(machines) * engines / (ranks + engines))), len(machines) - 1)
        by_size = sorted(everywhere, key=lambda index: (machines[index].cpus, index))
        learners_on, engines_on = sorted(by_size[:-count]), sorted(by_size[-count:])
    elif not colocated:
        for_engines = [max(1, each // 2) for each in cores]
        for_learners = [each - half or 1 for each, half in zip(cores, for_engines, strict=True)]
    learners = _Kind("learner", ranks, config.learner.cpus, learners_on, for_learners)
    # If phases take turns, the learners' reservation covers both.
    rollouts = _Kind("rollout", engines, config.rollout.cpus, engines_on, for_engines, reserves=not colocated)
    return _on_cores(machines, [learners, rollouts], colocated)


def _on_cores(machines: list[Machine], kinds: list[_Kind], colocated: bool) -> Placement:
    """Reserve one bundle per actor. Actors share cores if there are too few: Ray never grants more than a machine has."""
    chosen: list[tuple[str, int, int, bool]] = []
    for kind in kinds:
        places = _machines_of(kind.count, kind.machines)
        here = Counter(places)
        for number, machine in enumerate(places):
            threads = kind.threads or max(1, kind.cores[machine] // (here[machine] if kind.divided else 1))
            chosen.append((f"{kind.name}-{number}", machine, threads, kind.reserves))
    requested = Counter[int]()
    for _, machine, threads, reserves in chosen:
        requested[machine] += threads * reserves
    slots: dict[str, Slot] = {}
    bundles: list[Bundle] = []
    for name, machine, threads, reserves in chosen:
        if not reserves:
            slots[name] = Slot(machine, threads)
            continue
        cpus = int(100 * min(1.0, machines[machine].cpus / requested[machine]) * threads) / 100
        slots[name] = Slot(machine, threads, len(bundles), cpus)
        bundles.append(Bundle(machine, cpus))
    return Placement(tuple(machines), tuple(bundles), slots, colocated)
