"""`rlsys bench step`: seconds per phase of a whole GRPO step, optionally compared with TRL."""

from __future__ import annotations

import importlib.util
import os
import statistics
from dataclasses import asdict
from typing import Annotated, Any

import typer
from rich.console import Group
from rich.text import Text

from launch.bench.runner import BenchFailed, run_system
from launch.bench.work import (
    TRAIN_PARTS,
    Cores,
    Model,
    OutputTokens,
    Overrides,
    Prompts,
    PromptTokens,
    Samples,
    Timeout,
    Work,
    choose_cores,
    run_config,
    shape_text,
)
from launch.console import UserError, print_text, report, to_stderr
from launch.options import AsJson
from rlsys.system.terminal import Table

PHASES = ("generate", "judge", "train", "write trajectories", "send weights")


def step(
    overrides: Overrides = None,
    prompts: Prompts = 2,
    samples: Samples = 8,
    prompt_tokens: PromptTokens = 337,
    output_tokens: OutputTokens = 96,
    cores: Cores = 1,
    model: Model = "models/smollm2-135m-instruct",
    repeats: Annotated[int, typer.Option(min=1, help="Measured steps, after one warm-up step.")] = 2,
    vs_trl: Annotated[
        bool, typer.Option("--vs-trl", help="Also measure TRL's GRPOTrainer on the same work: pip install 'rlsys\\[bench]'.")
    ] = False,
    trl_batch: Annotated[
        int | None, typer.Option(min=1, help="TRL's batch size in samples, a divisor of all samples. Default: all.")
    ] = None,
    timeout: Timeout = 1800,
    as_json: AsJson = False,
) -> None:
    """Run whole GRPO steps (sample, judge, train, send weights) with the defaults of a run, and print seconds per phase.

    All outputs have the same length, and all samples are trained on. The ratio compares medians after the first step.

    Example: rlsys bench step --vs-trl
    """
    if vs_trl and importlib.util.find_spec("trl") is None:
        raise UserError("--vs-trl measures TRL, which is not installed: pip install 'rlsys[bench]'.")
    work = Work(
        prompts=prompts,
        samples=samples,
        prompt_tokens=prompt_tokens,
        output_tokens=output_tokens,
        cores=choose_cores(cores),
        repeats=repeats,
        overrides=overrides or [],
        model=model,
        trl_batch=trl_batch,
    )
    if trl_batch is not None and work.sequences % trl_batch:
        raise UserError(f"--trl-batch={trl_batch} does not divide the {work.sequences} samples of a step.")
    run_config(work)  # reports invalid settings now rather than in a process that takes a minute to start
    report(as_json, lambda: measure(work, vs_trl, timeout), render)


def measure(work: Work, vs_trl: bool, timeout_s: float) -> dict[str, Any]:
    """Measure our system, then TRL if requested."""
    screen = to_stderr()
    load = os.getloadavg()[0]
    if load > 0.5:
        print_text(screen, f"note: other processes keep {load:.1f} cores busy; times will be longer than on an idle machine.", "yellow")
    results = {"rlsys": run_system("our system", "launch.bench.ours", work, timeout_s, screen)}
    if vs_trl:
        results["trl"] = run_system("TRL", "launch.bench.trl", work, timeout_s, screen)
    return summarise(work, load, results)


def summarise(work: Work, load: float, results: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Return the document that --json prints: the work, each system's steps and their summary, and the ratios."""
    document: dict[str, Any] = {
        "work": asdict(work) | {"first_step_is_warm_up": True},
        "load_average_before": load,
        "systems": {name: {**result, **_summary(work, result["steps"])} for name, result in results.items()},
    }
    for name, result in results.items():
        _check(name, work, result["steps"])
    if "trl" in results:
        ours, theirs = (document["systems"][name]["median"] for name in ("rlsys", "trl"))
        document["times_as_fast_as_trl"] = {
            "whole": theirs["seconds"]["whole"] / ours["seconds"]["whole"],
            "train": theirs["seconds"]["train"] / ours["seconds"]["train"],
            "generate": theirs["seconds"]["generate"] / ours["seconds"]["generate"],
        }
    return document


def _check(name: str, work: Work, steps: list[dict[str, Any]]) -> None:
    """Raise BenchFailed if a step did other work than requested."""
    wanted = {"samples": work.sequences, "prompt_tokens": [work.prompt_tokens], "output_tokens": [work.output_tokens]}
    for number, measured in enumerate(steps, start=1):
        found = {key: measured[key] for key in wanted}
        if found != wanted:
            raise BenchFailed(f"{name}, step {number} did {found}, expected {wanted}.")


def _summary(work: Work, steps: list[dict[str, Any]]) -> dict[str, Any]:
    """Summarise the steps after the first: the median of every phase and the fastest step; rates are of the medians."""
    kinds = ("seconds", "train_seconds")
    clocks = [{kind: one[kind] for kind in kinds} for one in steps]
    counted = clocks[1:]
    median = {kind: {name: statistics.median(one[kind][name] for one in counted) for name in counted[0][kind]} for kind in kinds}
    seconds = median["seconds"]
    outputs = work.sequences * work.output_tokens
    everything = work.sequences * (work.prompt_tokens + work.output_tokens)
    return {
        "first": clocks[0],
        "median": median,
        "best": min(counted, key=lambda one: one["seconds"]["whole"]),
        "tokens_per_s": {
            "generate": outputs / seconds["generate"],
            "train": everything / seconds["train"],
            "whole": everything / seconds["whole"],
        },
    }


def render(document: dict[str, Any]) -> Group:
    """Render the document as tables and sentences."""
    systems = document["systems"]
    parts: list[Any] = [_phase_table(document["work"], systems), _rate_table(systems)]
    for system in systems.values():
        parts.append(f"{system['system']}: " + ", ".join(f"{name} {value}" for name, value in system["settings"].items()))
    ratio = document.get("times_as_fast_as_trl")
    if ratio:
        by_phase = f"training {ratio['train']:.1f}, generation {ratio['generate']:.1f}"
        parts.append(f"{ratio['whole']:.1f} times as fast as TRL ({by_phase}).")
    return Group(*parts)


def _phase_table(work: dict[str, Any], systems: dict[str, Any]) -> Table:
    table = Table(
        title=f"One GRPO step: {shape_text(work)}",
        caption="Seconds. After the first step: the median of every phase, and the fastest step. "
        "Floor: from this machine's matrix-product and memory rates, measured in the same run.",
    )
    table.add_column("phase", no_wrap=True)
    for system in systems.values():
        for column in ("first", "median", "best"):
            table.add_column(f"{system['system']}\n{column}", justify="right")
    floors = systems["rlsys"]["floors"]
    table.add_column("floor", justify="right")
    for phase in PHASES:
        table.add_row(phase, *_cells(systems, "seconds", phase), f"{floors[phase]:.2f}" if phase in floors else "")
        if phase == "train":
            for part in TRAIN_PARTS:
                table.add_row(Text(f"  {part}", "dim"), *_cells(systems, "train_seconds", part))
    table.add_section()
    table.add_row(Text("whole step", "bold"), *_cells(systems, "seconds", "whole"))
    return table


def _rate_table(systems: dict[str, Any]) -> Table:
    table = Table(
        title="Tokens per second (medians)",
        caption="Train and whole step count the prompt and output tokens of every sample, regardless of how often a system encodes them.",
    )
    table.add_column("system", no_wrap=True)
    for column in ("generate", "train", "whole step", "encoded per pass", "seconds to start"):
        table.add_column(column, justify="right")
    for system in systems.values():
        rates = [f"{system['tokens_per_s'][name]:,.0f}" for name in ("generate", "train", "whole")]
        table.add_row(system["system"], *rates, f"{system['steps'][-1]['encoded_tokens']:,.0f}", f"{system['start_s']:.0f}")
    return table


def _cells(systems: dict[str, Any], kind: str, name: str) -> list[str]:
    values = [system[column][kind].get(name) for system in systems.values() for column in ("first", "median", "best")]
    return ["" if value is None else f"{value:.2f}" if value >= 0.005 else "0.00" for value in values]
