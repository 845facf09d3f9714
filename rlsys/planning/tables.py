"""A plan as tables for the terminal, and as a JSON document."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from rich.console import RenderableType

from rlsys.planning.cluster import GIB, Device
from rlsys.planning.plan import PHASES, Plan, describe_kind
from rlsys.system.terminal import Table


def tables(plan: Plan) -> list[RenderableType]:
    """Return the plan's tables: placement, memory by device and part, step, transfers, checkpoints and host memory."""
    return [_placement(plan), *(_memory(plan, kind) for kind in plan.memory), _step(plan), _transfers(plan), _storage(plan)]


def document(plan: Plan) -> dict[str, Any]:
    """Return the plan as a JSON document; memory in bytes."""
    return {
        "fits": plan.fits,
        "misfits": plan.misfits,
        "model": asdict(plan.shape),
        "machines": asdict(plan.machines),
        "settings": asdict(plan.resolved),
        "step": asdict(plan.step),
        "devices": [asdict(device) for device in plan.devices],
        "memory": [
            {"ranks": kind[0], "engines": kind[1], "phases": phases, "peak": max(sum(parts.values()) for parts in phases.values())}
            for kind, phases in plan.memory.items()
        ],
        "cache_tokens": plan.cache_tokens,
        "transfers": [asdict(transfer) for transfer in plan.transfers],
        "checkpoint": plan.checkpoint,
        "disk": plan.disk,
        "host": plan.host,
    }


def _placement(plan: Plan) -> Table:
    """Draw which rank and engine is on which GPU of which machine."""
    shape, machines = plan.shape, plan.machines
    sharing = "learners and engines share devices" if plan.resolved.colocated else "learners and engines have their own"
    title = f"{shape.name}: {shape.parameters / 1e9:.2f} billion parameters; {sharing}, weights by {plan.resolved.backend}"
    columns = [f"GPU {number}" for number in range(machines.gpus)] or ["cores"]
    table = Table("machine", *columns, title=title + (", engines sleep while learners train" if plan.resolved.sleep else ""))
    for node in range(machines.nodes):
        table.add_row(str(node), *(_occupants(device) for device in plan.devices if device.node == node))
    return table


def _occupants(device: Device) -> str:
    names = [f"learner-{rank}" for rank in device.ranks] + [f"rollout-{engine}" for engine in device.engines]
    return "\n".join(names) or "idle"


def _memory(plan: Plan, kind: tuple[int, int]) -> Table:
    limit = plan.machines.memory_gib
    count = sum(device.kind == kind for device in plan.devices)
    what = "GPU" if plan.machines.gpus else "machine"
    table = Table(title=f"{count} {what}{'s' if count > 1 else ''} with {describe_kind(kind)}: GiB of {limit:g}")
    table.add_column("part")
    for phase in PHASES:
        table.add_column(f"to {phase}", justify="right")
    phases = plan.memory[kind]
    for name in dict.fromkeys(name for parts in phases.values() for name in parts):
        table.add_row(name, *(_gib(parts.get(name)) for parts in phases.values()))
    table.add_section()
    totals = [sum(parts.values()) for parts in phases.values()]
    table.add_row("together", *(f"{_gib(total)}{' !' if total > limit * GIB else ''}" for total in totals))
    return table


def _step(plan: Plan) -> Table:
    step, settings = plan.step, plan.resolved
    sequences = f"{plan.cache_tokens / step.longest:.1f} sequences of {step.longest:,}, at most {settings.max_num_seqs} at once"
    return _facts(
        "One step, if all texts are of the longest length",
        (
            ("samples", f"{step.samples:,}"),
            ("tokens sampled", f"{step.sampled_tokens:,}"),
            ("tokens that the learners encode", f"{step.encoded_tokens:,}, in {step.micro_batches:,} micro-batches per rank"),
            ("largest micro-batch", f"{step.micro_batch_tokens:,} tokens, {step.scored_tokens:,} of them scored"),
            ("key-value cache of an engine", f"{max(plan.cache_tokens, 0):,.0f} tokens: {sequences}"),
        ),
    )


def _transfers(plan: Plan) -> Table:
    machines = plan.machines
    table = Table(
        "transfer, each step",
        "over",
        title=f"{machines.bandwidth:g} GB/s between machines, {machines.local_bandwidth:g} GB/s between the GPUs of one",
    )
    table.add_column("GB", justify="right")
    table.add_column("seconds at least", justify="right")
    for each in plan.transfers:
        table.add_row(each.name, each.wire, f"{each.size / 1e9:,.1f}", f"{each.seconds:,.1f}")
    return table


def _storage(plan: Plan) -> Table:
    rows = [(f"checkpoint: {name}", f"{size / 1e9:,.1f} GB") for name, size in plan.checkpoint.items()]
    rows.append(("checkpoints on disk", f"{plan.disk / 1e9:,.1f} GB"))
    rows += [(f"memory of a machine: {name}", f"{_gib(size)} GiB") for name, size in plan.host.items()]
    return _facts("Disk and host memory", rows)


def _facts(title: str, rows: Iterable[tuple[str, str]]) -> Table:
    table = Table(title=title, show_header=False)
    table.add_column()
    table.add_column()
    for name, value in rows:
        table.add_row(name, value)
    return table


def _gib(size: float | None) -> str:
    return "" if size is None else f"{size / GIB:,.2f}"
