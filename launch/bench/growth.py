"""`rlsys bench growth`: how the time of a step grows with samples per prompt, prompt length and number of prompts."""

from __future__ import annotations

import statistics
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Group

from launch.bench.runner import run_system
from launch.bench.work import (
    Cores,
    Model,
    OutputTokens,
    Overrides,
    Timeout,
    Work,
    choose_cores,
    measured_and_plotted,
    prompt_texts,
    run_child,
    run_config,
    shape_text,
)
from launch.console import UserError, report, to_stderr
from launch.options import AsJson
from rlsys.system.terminal import Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PHASES = ("generate", "train", "send weights", "other")
SWEEPS = {"samples": "samples per prompt", "prompt_tokens": "tokens per prompt", "prompts": "prompts per step"}


def growth(
    overrides: Overrides = None,
    samples: Annotated[str, typer.Option(help="Values of samples per prompt; the other dimensions keep their base value.")] = "4,8,16",
    prompt_tokens: Annotated[str, typer.Option(help="Values of the prompt length, in tokens.")] = "168,337,674,1348",
    prompts: Annotated[str, typer.Option(help="Values of prompts per step.")] = "1,2,4,8",
    base: Annotated[str, typer.Option(help="Base shape: prompts x samples x prompt tokens.")] = "2x8x337",
    output_tokens: OutputTokens = 48,
    cores: Cores = 1,
    model: Model = "models/smollm2-135m-instruct",
    repeats: Annotated[int, typer.Option(min=1, help="Steps of each shape; the fastest counts.")] = 2,
    output: Annotated[Path, typer.Option(help="PNG file of the plot.")] = Path("growth.png"),
    timeout: Timeout = 3600,
    as_json: AsJson = False,
) -> None:
    """Run steps of several shapes with the same actors, varying one dimension at a time, and plot seconds per step by phase.

    Growth is reported as the exponent of a power law: 1 is linear, less is sublinear.

    Example: rlsys bench growth --output growth.png
    """

    shape = dict(zip(("prompts", "samples", "prompt_tokens"), numbers(base, "x", "--base", 3), strict=True))
    sweeps = {
        "samples": numbers(samples, ",", "--samples"),
        "prompt_tokens": numbers(prompt_tokens, ",", "--prompt-tokens"),
        "prompts": numbers(prompts, ",", "--prompts"),
    }
    shapes = [shape, *({**shape, name: value} for name, values in sweeps.items() for value in values)]
    unique = list({tuple(one.values()): one for one in shapes}.values())
    work = Work(
        **shape,
        output_tokens=output_tokens,
        cores=choose_cores(cores),
        repeats=repeats,
        # The engine is configured for the longest prompt.
        overrides=[*(overrides or []), f"prompt.max_tokens={max(one['prompt_tokens'] for one in unique)}"],
        model=model,
        shapes=unique,
    )
    run_config(work)

    def measured() -> dict[str, Any]:
        return summarise(work, sweeps, run_system("growth", "launch.bench.growth", work, timeout, to_stderr()))

    report(as_json, lambda: measured_and_plotted(measured, plot, output), render)


def numbers(text: str, separator: str, option: str, count: int | None = None) -> list[int]:
    """Parse positive integers.

    Raises:
        UserError: `text` is anything else, or not `count` integers.
    """
    try:
        values = [int(part) for part in text.split(separator)]
    except ValueError:
        values = []
    if not values or min(values) < 1 or (count is not None and len(values) != count):
        expected = "positive numbers" if count is None else f"{count} positive numbers"
        raise UserError(f"{option} {text}: expected {expected} separated by {separator!r}.")
    return sorted(values) if count is None else values


def measure(work: Work) -> dict[str, Any]:
    """Measure all shapes, one after the other, with the same actors."""
    from transformers import AutoTokenizer

    from launch.bench.ours import bench_prompts, local_cluster, step
    from rlsys.models.loading import ensure_model

    config = run_config(work)
    model = ensure_model(config.model.path)
    tokenizer = AutoTokenizer.from_pretrained(model)
    results = []
    first = number = 0
    with local_cluster(config, model, config.prompt.max_tokens + work.output_tokens, len(work.cores)) as (cluster, _, folder):
        cluster.actors.learners.snapshot_reference()
        cluster.actors.learners.start_stage(config.learner.lr, config.learner.warmup_steps)
        # The first step of all is a warm-up.
        for shape, count in [(work.shapes[0], 1), *((shape, work.repeats) for shape in work.shapes)]:
            shaped = replace(work, prompts=shape["prompts"], samples=shape["samples"], prompt_tokens=shape["prompt_tokens"])
            steps = []
            for _ in range(count):
                texts = prompt_texts(tokenizer, first, shaped.prompts, shaped.prompt_tokens)
                prompts = bench_prompts(tokenizer, texts, shaped.samples, config.seed, number)
                steps.append(step(cluster.actors, config, shaped, prompts, number, folder)["seconds"])
                first, number = first + shaped.prompts, number + 1
            results.append({"shape": shape, "steps": steps})
    return {"system": "rlsys", "results": results[1:]}


def summarise(work: Work, sweeps: dict[str, list[int]], result: dict[str, Any]) -> dict[str, Any]:
    """Return the document that --json prints: for each dimension, seconds by phase at each of its values."""
    base = work.shapes[0]
    found = {}
    for one in result["results"]:
        seconds = min(one["steps"], key=lambda step: step["whole"])
        named = {name: seconds.get(name, 0.0) for name in PHASES[:-1]}
        found[tuple(one["shape"].values())] = {**named, "other": seconds["whole"] - sum(named.values()), "whole": seconds["whole"]}
    document: dict[str, Any] = {"base": base, "output_tokens": work.output_tokens, "cores": work.cores, "model": work.model, "sweeps": {}}
    for name, values in sweeps.items():
        points = [{"value": value, **found[tuple({**base, name: value}.values())]} for value in values]
        document["sweeps"][name] = {"points": points, "exponent": exponent(points)}
    return document


def exponent(points: list[dict[str, float]]) -> float | None:
    """Return the least-squares slope of log(whole) over log(value); None for a single value."""
    import math

    if len(points) < 2:
        return None
    xs, ys = ([math.log(point[key]) for point in points] for key in ("value", "whole"))
    return statistics.linear_regression(xs, ys).slope


def plot(document: dict[str, Any]) -> Figure:
    """Plot one panel per dimension: seconds per step, stacked by phase, and linear growth from the first value."""
    from matplotlib.figure import Figure

    sweeps = document["sweeps"]
    figure = Figure(figsize=(5 * len(sweeps), 4.2), layout="constrained")
    panels = figure.subplots(1, len(sweeps), squeeze=False)
    for panel, (name, sweep) in zip(panels[0], sweeps.items(), strict=True):
        points = sweep["points"]
        values = [point["value"] for point in points]
        panel.stackplot(values, [[point[phase] for point in points] for phase in PHASES], labels=PHASES, alpha=0.85)
        linear = [points[0]["whole"] * value / values[0] for value in values]
        panel.plot(values, linear, "k--", linewidth=1, label="linear from the first")
        panel.set(xlabel=SWEEPS[name], ylabel="seconds per step", ylim=(0, None), xticks=values)
        growth_text = "" if sweep["exponent"] is None else f": exponent {sweep['exponent']:.2f}"
        panel.set_title(f"{SWEEPS[name]}{growth_text}")
    panels[0][0].legend(loc="upper left")
    figure.suptitle(f"A GRPO step around {shape_text(document | document['base'])}")
    return figure


def render(document: dict[str, Any]) -> Group:
    """Render one table per dimension."""
    tables = []
    for name, sweep in document["sweeps"].items():
        table = Table(title=f"Seconds per step by {SWEEPS[name]}")
        for column in (SWEEPS[name], *PHASES, "whole", "of linear"):
            table.add_column(column, justify="right")
        start = sweep["points"][0]
        for point in sweep["points"]:
            linear = start["whole"] * point["value"] / start["value"]
            cells = [f"{point[phase]:.2f}" for phase in (*PHASES, "whole")]
            table.add_row(f"{point['value']:,}", *cells, f"{point['whole'] / linear:.0%}")
        tables.append(table)
    return Group(*tables)


if __name__ == "__main__":
    run_child(measure)
