"""Plan a run before anything starts: what goes where, the memory of every device by part, transfers, checkpoints, host memory.

Pure arithmetic; start at `make_plan`. `rlsys.planning.advice` finds settings that fit, `rlsys.planning.tables` prints a plan.
"""

from __future__ import annotations

from dataclasses import dataclass

from rlsys.config.schema import Config
from rlsys.planning.batch import Step, step_of
from rlsys.planning.cluster import GIB, Device, Machines, lay_out
from rlsys.planning.disk import Parts, checkpoint_bytes, checkpoint_disk
from rlsys.planning.engine import engine_bytes, token_bytes
from rlsys.planning.learner import element_bytes, gradient_bytes, state_bytes, states_on_host, step_bytes
from rlsys.planning.settings import Resolved, resolve
from rlsys.planning.shape import ModelShape
from rlsys.planning.transfers import Transfer, bucket_bytes, transfers_of

PHASES = ("sample", "train", "send weights")


@dataclass(frozen=True)
class Plan:
    """What a run needs of its machines."""

    shape: ModelShape
    machines: Machines
    resolved: Resolved
    step: Step
    devices: list[Device]
    memory: dict[tuple[int, int], dict[str, Parts]]
    """By kind of device (`Device.kind`) and phase."""
    cache_tokens: float
    """That an engine's cache holds."""
    transfers: list[Transfer]
    checkpoint: Parts
    """One checkpoint, by folder."""
    disk: float
    """All checkpoints that a run keeps, in bytes."""
    host: Parts
    """Of the machine that needs most, GPU memory excluded."""
    misfits: list[str]
    """What does not fit; empty: everything does."""

    @property
    def fits(self) -> bool:
        return not self.misfits

    def peak(self, kind: tuple[int, int]) -> tuple[str, float]:
        """Return the phase in which devices of a kind need most, and how much, in bytes."""
        return max(((phase, sum(parts.values())) for phase, parts in self.memory[kind].items()), key=lambda each: each[1])


def make_plan(config: Config, shape: ModelShape, machines: Machines) -> Plan:
    """Plan `config` for a model of `shape` on `machines`.

    Raises:
        ValueError: the actors cannot be placed there at all; the message says why.
    """
    devices, colocated = lay_out(config, machines)
    resolved, step = resolve(config, machines, colocated), step_of(config, sum(len(device.ranks) for device in devices))
    memory = {
        kind: {phase: _device_parts(phase, kind, config, shape, machines, resolved, step) for phase in PHASES}
        for kind in sorted({device.kind for device in devices}, reverse=True)
        if any(kind)
    }
    cache = engine_bytes(shape, config, resolved, machines)["KV cache"]
    cache_tokens = cache / token_bytes(shape, config, resolved) if shape.cached else float("inf")
    checkpoint = checkpoint_bytes(shape.parameters, config)
    plan = Plan(
        shape=shape,
        machines=machines,
        resolved=resolved,
        step=step,
        devices=devices,
        memory=memory,
        cache_tokens=cache_tokens,
        transfers=transfers_of(shape, config, resolved, machines, devices, step),
        checkpoint=checkpoint,
        disk=checkpoint_disk(checkpoint, config),
        host=_host_parts(shape, config, resolved, machines, devices, step),
        misfits=[],
    )
    plan.misfits.extend(_misfits(plan, config.rollout.tensor_parallel))
    return plan


def _device_parts(
    phase: str, kind: tuple[int, int], config: Config, shape: ModelShape, machines: Machines, resolved: Resolved, step: Step
) -> Parts:
    """Return what a device with `kind` = (ranks, engines) holds in a phase."""
    ranks, engines = kind
    awake = not (resolved.sleep and phase == "train" and ranks)
    learner = _learner_parts(phase, config, shape, resolved, step)
    engine = engine_bytes(shape, config, resolved, machines) if awake else {}
    if phase == "send weights" and resolved.sleep:  # the cache wakes up after the transfer
        del engine["KV cache"]
    elsewhere = states_on_host(config, resolved, phase) if machines.gpus else set()
    parts = {name: value * ranks for name, value in learner.items() if name not in elsewhere} | {
        name: value * engines for name, value in engine.items()
    }
    if phase == "send weights" or not machines.gpus:  # without GPUs, the machine's processes share them during the whole run
        parts["transfer buckets"] = bucket_bytes(shape, config, resolved)
    # An awake GPU engine's own reserve is part of its share of the memory.
    inside = machines.gpus and awake
    parts["reserve"] = machines.reserve_gib * GIB * (ranks + (0 if inside else engines))
    return {name: value for name, value in parts.items() if value}


def _learner_parts(phase: str, config: Config, shape: ModelShape, resolved: Resolved, step: Step) -> Parts:
    """Return the states of a rank, wherever they are, and in training what a step needs."""
    states = state_bytes(shape, config, step.ranks)
    if phase == "train":
        return states | step_bytes(shape, config, resolved, step)
    # ZeRO-3's buffer of gradients is permanent.
    return states | ({"gradients": gradient_bytes(shape, config, step.ranks)} if config.learner.zero_stage == 3 else {})


def _on_host(phase: str, config: Config, shape: ModelShape, resolved: Resolved, step: Step) -> Parts:
    """Return the states of a rank that are in host memory in a phase."""
    places = states_on_host(config, resolved, phase)
    return {name: value for name, value in _learner_parts(phase, config, shape, resolved, step).items() if name in places}


def _host_parts(shape: ModelShape, config: Config, resolved: Resolved, machines: Machines, devices: list[Device], step: Step) -> Parts:
    """Return the host memory of the machine with most ranks. With ZeRO-3, ranks share the pages of the model's files while they load."""
    ranks = max(sum(len(device.ranks) for device in devices if device.node == node) for node in range(machines.nodes))
    engines = max(len({engine for device in devices if device.node == node for engine in device.engines}) for node in range(machines.nodes))
    model = element_bytes(config) * float(shape.parameters)
    kept = max((_on_host(phase, config, shape, resolved, step) for phase in PHASES), key=lambda parts: sum(parts.values()))
    parts = {
        "weights while they load": model * (1 if config.learner.zero_stage == 3 else ranks),
        "processes": machines.reserve_gib * GIB * (ranks + engines + 1),
    }
    parts |= {f"{name} of every rank": value * ranks for name, value in kept.items()}
    return {name: value for name, value in parts.items() if value} if machines.gpus else {}


def _misfits(plan: Plan, parallel: int) -> list[str]:
    """Say which devices have too little memory, and whether the cache holds a sequence and `parallel` GPUs can divide the heads."""
    found = []
    if plan.shape.heads % parallel:
        found.append(f"rollout.tensor_parallel={parallel} does not divide the model's {plan.shape.heads} attention heads, as vLLM requires")
    limit = plan.machines.memory_gib
    for kind in plan.memory:
        phase, need = plan.peak(kind)
        if need > limit * GIB:
            largest = sorted(plan.memory[kind][phase].items(), key=lambda each: -each[1])[:3]
            parts = ", ".join(f"{name} {value / GIB:.1f}" for name, value in largest)
            found.append(f"{describe_kind(kind)}: {need / GIB:.1f} GiB to {phase}, {limit:g} GiB there (largest: {parts})")
    if plan.cache_tokens < plan.step.longest:
        tokens = f"{max(plan.cache_tokens, 0):,.0f} tokens"
        found.append(f"the key-value cache of an engine holds {tokens}, and one sequence may have {plan.step.longest:,}")
    host, known = sum(plan.host.values()), plan.machines.host_gib
    if known is not None and host > known * GIB:
        found.append(f"a machine: {host / GIB:.0f} GiB of host memory, {known:g} GiB there")
    if plan.shape.longest is not None and plan.step.longest > plan.shape.longest:
        found.append(f"prompt and completion have up to {plan.step.longest:,} tokens, and the model takes {plan.shape.longest:,}")
    return found


def describe_kind(kind: tuple[int, int]) -> str:
    """Name who is on a device: `learner rank and engine`."""
    names = [
        f"{count} {name}s" if count > 1 else name for count, name in zip(kind, ("learner rank", "rollout engine"), strict=True) if count
    ]
    return " + ".join(names)
