"""`rlsys bench control`: the cost of the control plane per sample in time, bytes and memory, as engines and samples grow.

The loop, its calls, Ray and the reward actor are real; engines and learner are stand-ins that return at once (`launch.bench.stand_ins`).
"""

from __future__ import annotations

import os
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Group
from rich.text import Text

from launch.bench.work import local_ray, measured_and_plotted
from launch.console import report, to_stderr
from launch.options import AsJson
from rlsys.system.terminal import Table, as_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PHASES = ("draw", "generate", "judge", "train", "send_weights", "write_trajectories", "other")
"""Phases of a synchronous step as in the metrics. `generate` only distributes requests and waits for completion here."""
CHUNKS = 10
"""Points of a run at which memory is shown."""


def control(
    engines: Annotated[int, typer.Option(min=1, help="Engines of the largest cluster; 1 and 16 are measured too.")] = 256,
    samples: Annotated[int, typer.Option(min=1, help="Samples with the largest cluster; the others get a tenth.")] = 1_000_000,
    step_prompts: Annotated[int, typer.Option(min=2, help="Prompts per step.")] = 2048,
    group_size: Annotated[int, typer.Option(min=2, help="Samples per prompt.")] = 8,
    processes: Annotated[int, typer.Option(min=1, help="Processes that simulate the engines.")] = 4,
    model: Annotated[str, typer.Option(help="Model whose tokenizer encodes the prompts.")] = "models/smollm2-135m-instruct",
    output: Annotated[Path, typer.Option(help="PNG file of the plot.")] = Path("control.png"),
    as_json: AsJson = False,
) -> None:
    """Run the RL loop with stand-in engines and learner; print and plot driver time, object-store bytes and memory per sample.

    Each engine has its own name, load and remote calls, as in a real run; one process simulates many of them.

    Example: rlsys bench control --engines 256 --samples 1000000
    """

    def measure() -> dict[str, Any]:
        return simulate(engines, samples, step_prompts, group_size, processes, model)

    report(as_json, lambda: measured_and_plotted(measure, plot, output), render)


def simulate(engines: int, samples: int, step_prompts: int, group_size: int, processes: int, model: str) -> dict[str, Any]:
    """Run the loop once per cluster size, in increasing order."""
    from launch.bench.loop import StandIns

    fleets = []
    with to_stderr().status(as_text("simulating …")) as status, tempfile.TemporaryDirectory(prefix="rlsys-bench-") as name, local_ray():
        for fleet in sorted({1, min(16, engines), engines}):
            status.update(as_text(f"simulating {fleet} engine(s) …"))
            actors = StandIns(fleet, min(fleet, processes))
            actors.start()
            wanted = samples if fleet == engines else samples // 10
            # One step more than requested: the first is a warm-up.
            steps = 1 + max(1, round(wanted / (step_prompts * group_size)))
            fleets.append(run_fleet(actors, Path(name) / str(fleet), steps, step_prompts, group_size, model))
            actors.close()
    return {"group_size": group_size, "step_prompts": step_prompts, "cores": len(os.sched_getaffinity(0)), "fleets": fleets}


def run_fleet(actors: Any, folder: Path, steps: int, step_prompts: int, group_size: int, model: str) -> dict[str, Any]:
    """Run `steps` steps; figures are per sample of the steps after the first."""
    from launch.bench.loop import reinforce, stand_in_config

    config = stand_in_config(
        folder, f"model.path={model}", f"rl.steps={steps}", f"rl.prompts_per_step={step_prompts}", f"rl.group_size={group_size}"
    )
    usage, metrics = reinforce(config, actors)
    each = step_prompts * group_size
    rest, counted = metrics[1:], each * (steps - 1)
    chunk = max(1, (steps - 1) // CHUNKS)
    return {
        "engines": len(actors.rollouts.actors),
        "processes": len(actors.hosts),
        "samples": counted,
        "judged": sum(row["samples"] for row in rest),
        "trained": actors.learners.call("train", "trained_rows"),
        "groups_trained": sum(row["groups_trained"] for row in metrics),
        "first_step_s": metrics[0]["seconds/step"],
        "wall_us": sum(row["seconds/step"] for row in rest) / counted * 1e6,
        "driver_cpu_us": (usage[-1]["cpu_s"] - usage[1]["cpu_s"]) / counted * 1e6,
        "phase_us": {phase: sum(row[f"seconds/{phase}"] for row in rest) / counted * 1e6 for phase in PHASES},
        "store_bytes": {name: count / (each * steps) for name, count in actors.sent_bytes().items()},
        "memory": [
            {"samples": index * each, "driver": usage[index]["driver_bytes"], "reward": usage[index]["reward_bytes"]}
            for index in range(1, len(usage), chunk)
        ],
        "driver_cpu_us_over_time": [
            (after["cpu_s"] - before["cpu_s"]) / (chunk * each) * 1e6 for before, after in pairwise(usage[1::chunk])
        ],
    }


def plot(document: dict[str, Any]) -> Figure:
    """Plot seconds per step over the number of engines, stacked by phase, and memory over samples for the largest cluster."""
    from matplotlib.figure import Figure

    fleets, largest = document["fleets"], document["fleets"][-1]
    each = document["step_prompts"] * document["group_size"]
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    time, memory = figure.subplots(1, 2)
    engines = [fleet["engines"] for fleet in fleets]
    seconds = [[fleet["phase_us"][phase] * each / 1e6 for fleet in fleets] for phase in PHASES]
    time.stackplot(engines, seconds, labels=[phase.replace("_", " ") for phase in PHASES], alpha=0.85)
    time.plot(engines, [fleet["driver_cpu_us"] * each / 1e6 for fleet in fleets], "k.--", label="CPU of the driver")
    time.set_xscale("log", base=2)
    time.set(xlabel="engines", ylabel="seconds per step", ylim=(0, None), xticks=engines, xticklabels=map(str, engines))
    time.set_title(f"{document['step_prompts']:,} prompts x {document['group_size']} samples")
    time.legend(fontsize="small", loc="lower right", ncols=2)
    for name in ("driver", "reward"):
        samples = [row["samples"] / 1000 for row in largest["memory"]]
        memory.plot(samples, [row[name] / 2**20 for row in largest["memory"]], ".-", label=name)
    memory.set(xlabel="thousand samples", ylabel="resident memory, MiB", ylim=(0, None))
    memory.set_title(f"{largest['engines']} engines")
    memory.legend(loc="lower right")
    figure.suptitle("Control plane only: engines and learner return at once")
    return figure


def render(document: dict[str, Any]) -> Group:
    """Render the figures of all cluster sizes, and the memory of the largest over time."""
    fleets = document["fleets"]
    table = Table(
        title=f"Control plane: steps of {document['step_prompts']:,} prompts x {document['group_size']} samples, {document['cores']} cores",
        caption="Microseconds of wall time of the loop by phase, on cores shared with the actors; CPU time of the driver alone.",
    )
    table.add_column("per sample", no_wrap=True)
    for fleet in fleets:
        table.add_column(f"{fleet['engines']} engine(s)\nin {fleet['processes']} process(es)", justify="right")
    table.add_row("samples", *(f"{fleet['samples']:,}" for fleet in fleets))
    table.add_row(Text("driver CPU, µs", "bold"), *(f"{fleet['driver_cpu_us']:.1f}" for fleet in fleets))
    table.add_row("wall, µs", *(f"{fleet['wall_us']:.1f}" for fleet in fleets))
    for phase in PHASES:
        table.add_row(Text(f"  {phase.replace('_', ' ')}", "dim"), *(f"{fleet['phase_us'][phase]:.1f}" for fleet in fleets))
    table.add_section()
    table.add_row(Text("object store, bytes", "bold"), *(f"{sum(fleet['store_bytes'].values()):,.0f}" for fleet in fleets))
    for name in fleets[0]["store_bytes"]:
        table.add_row(Text(f"  {name}", "dim"), *(f"{fleet['store_bytes'][name]:,.0f}" for fleet in fleets))
    largest = fleets[-1]
    memory = Table(title=f"Resident memory over time, {largest['engines']} engine(s)")
    for column in ("samples", "driver, MiB", "reward actor, MiB", "driver CPU until the next, µs per sample"):
        memory.add_column(column, justify="right")
    for i, row in enumerate(largest["memory"]):
        cpu = largest["driver_cpu_us_over_time"]
        since = f"{cpu[i]:.1f}" if i < len(cpu) else ""
        memory.add_row(f"{row['samples']:,}", f"{row['driver'] / 2**20:.0f}", f"{row['reward'] / 2**20:.0f}", since)
    return Group(table, memory)
