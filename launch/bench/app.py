"""`rlsys bench`: how fast the system is on this machine, phase by phase, and beside others. One subcommand per question.

Each system is measured in a process of its own that is pinned to the same cores, one system after the other.
"""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console, Group
from rich.text import Text

from launch.bench.control import control
from launch.bench.data import data
from launch.bench.growth import growth
from launch.bench.intervals import intervals
from launch.bench.judge import judge
from launch.bench.learner import learner
from launch.bench.overlap import overlap
from launch.bench.reward import reward
from launch.bench.rollout import rollout
from launch.bench.start import start
from launch.bench.weights import weights
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
    write_work,
)
from launch.console import UserError, report, say, to_stderr
from launch.options import AsJson
from rlsys.system.terminal import Table, text

app = typer.Typer(name="bench", help="Measure speed on this machine.", no_args_is_help=True)

PHASES = ("generate", "judge", "train", "write trajectories", "send weights")
GRACE_S = 30
"""Seconds that a measuring process gets to shut down before it is killed."""


class BenchFailed(RuntimeError):
    """A measuring process failed or did not end in time; the message quotes its last lines."""


@app.callback()
def bench() -> None:
    """Measure speed on this machine."""


@app.command()
def step(
    overrides: Overrides = None,
    prompts: Prompts = 2,
    samples: Samples = 8,
    prompt_tokens: PromptTokens = 337,
    output_tokens: OutputTokens = 96,
    cores: Cores = 1,
    model: Model = "models/smollm2-135m-instruct",
    repeats: Annotated[int, typer.Option(min=1, help="Steps that count, after a first one that warms up.")] = 2,
    vs_trl: Annotated[bool, typer.Option("--vs-trl", help="Then TRL's GRPOTrainer, same work: pip install 'rlsys\\[bench]'.")] = False,
    trl_batch: Annotated[
        int | None, typer.Option(min=1, help="Samples that TRL trains on at a time, a divisor of all; default: all of them.")
    ] = None,
    timeout: Timeout = 1800,
    as_json: AsJson = False,
) -> None:
    """Run whole GRPO steps (sample, judge, train, send weights) with the defaults of a run, and print seconds per phase.

    All outputs are forced to the same length, and all samples are trained on. The ratio compares medians after the first step.

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
    run_config(work)  # A wrong setting is told here, not by a process that took a minute to start.
    report(as_json, lambda: measure(work, vs_trl, timeout), render)


def measure(work: Work, vs_trl: bool, timeout_s: float) -> dict[str, Any]:
    """Our system, then TRL where it is asked for."""
    screen = to_stderr()
    load = os.getloadavg()[0]
    if load > 0.5:
        say(screen, f"note: other work keeps {load:.1f} cores busy; times will be longer than on a quiet machine.", "yellow")
    results = {"rlsys": run_system("our system", "launch.bench.ours", work, timeout_s, screen)}
    if vs_trl:
        results["trl"] = run_system("TRL", "launch.bench.trl", work, timeout_s, screen)
    return summarise(work, load, results)


def run_system(title: str, module: str, work: Work, timeout_s: float, screen: Console) -> dict[str, Any]:
    """Measure one system in a process of its own; returns what it wrote.

    Raises:
        BenchFailed: it failed, or did not end within `timeout_s` seconds.
    """
    with tempfile.TemporaryDirectory(prefix="rlsys-bench-") as name:
        folder = Path(name)
        write_work(work, folder / "work.json")
        command = [sys.executable, "-m", module, str(folder / "work.json"), str(folder / "result.json")]
        environment = os.environ | {"TOKENIZERS_PARALLELISM": "false"}
        # No number of threads: each system takes what it takes for a user who has these cores.
        environment.pop("OMP_NUM_THREADS", None)
        doing = text(f"{title}: {work.steps} steps on core {', '.join(map(str, work.cores))} …")
        with (folder / "log").open("w") as log, screen.status(doing):
            process = _start_on(work.cores, command, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
            try:
                status = process.wait(timeout_s)
            except subprocess.TimeoutExpired:
                late = f"{title} did not end within {timeout_s:.0f} s; give it longer with --timeout. It said last:"
                raise BenchFailed(f"{late}\n{_last_lines(folder)}") from None
            finally:
                _end(process)
        if status != 0:
            raise BenchFailed(f"{title} failed with exit status {status}; it said last:\n{_last_lines(folder)}")
        return json.loads((folder / "result.json").read_text())


def _start_on(cores: list[int], command: list[str], **options: Any) -> subprocess.Popen[bytes]:
    """A process that has no other cores from its beginning: OpenMP counts them when torch is imported."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        return subprocess.Popen(command, **options)
    finally:
        os.sched_setaffinity(0, before)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ask what is left of the process to shut down, then kill its group."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            pass
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.wait()


def _last_lines(folder: Path, count: int = 30) -> str:
    lines = (folder / "log").read_text(errors="replace").splitlines()[-count:]
    return "\n".join(f"    {line}" for line in lines)


# --- figures ---------------------------------------------------------------------------------------------------------


def summarise(work: Work, load: float, results: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The document that --json prints: what was asked, each system's steps and their summary, and the ratios."""
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
    """Figures of other work than was asked for are worse than none."""
    wanted = {"samples": work.sequences, "prompt_tokens": [work.prompt_tokens], "output_tokens": [work.output_tokens]}
    for number, one in enumerate(steps, start=1):
        found = {key: one[key] for key in wanted}
        if found != wanted:
            raise BenchFailed(f"{name}, step {number} did {found}, expected {wanted}.")


def _summary(work: Work, steps: list[dict[str, Any]]) -> dict[str, Any]:
    """Of the steps after the first: the median of every phase by itself, and the fastest whole step. Rates are of the medians."""
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
    """The document as tables and sentences."""
    systems = document["systems"]
    parts: list[Any] = [_phase_table(document["work"], systems), _rate_table(systems)]
    for system in systems.values():
        parts.append(f"{system['system']}: " + ", ".join(f"{name} {value}" for name, value in system["settings"].items()))
    ratio = document.get("times_as_fast_as_trl")
    if ratio:
        apart = f"training {ratio['train']:.1f}, generation {ratio['generate']:.1f}"
        parts.append(f"{ratio['whole']:.1f} times as fast as TRL ({apart}).")
    return Group(*parts)


def _phase_table(work: dict[str, Any], systems: dict[str, Any]) -> Table:
    table = Table(
        title=f"One GRPO step: {shape_text(work)}",
        caption="Seconds. Of the steps after the first: the median of every phase, and the step that took least. "
        "Floor: this machine's matrix products and memory, measured in the same run.",
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
        caption="Train and whole step count prompt and output of every sample, however often a system encodes them.",
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


app.command()(reward)
app.command()(control)
app.command()(overlap)
app.command()(weights)
app.command()(learner)
app.command()(rollout)
app.command()(start)
app.command()(judge)
app.command()(growth)
app.command()(intervals)
app.command()(data)
