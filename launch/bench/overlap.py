"""`rlsys bench overlap`: simulates the time saved by overlapping generation and training.

The loop, Ray and the reward actor are real; engine and learner are stand-ins of given durations (`launch.bench.stand_ins`).
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

from launch.bench.work import local_ray
from launch.console import report, to_stderr
from launch.options import AsJson
from rlsys.system.terminal import Table, as_text

RATIOS = (0.5, 1.0, 2.0)
"""Generation time over training time; the longer of the two takes the requested time."""
WAYS = ((0, False), (1, False), (1, True), (2, False), (2, True))
"""Staleness, and whether engines take weights in flight."""


def overlap(
    seconds: Annotated[float, typer.Option(min=0.01, help="Duration of the longer phase.")] = 0.5,
    send_share: Annotated[float, typer.Option(min=0, help="Duration of sending weights, as a share of --seconds.")] = 0.02,
    steps: Annotated[int, typer.Option(min=5, help="Steps per case; the first fills the pipeline and the last two drain it.")] = 10,
    as_json: AsJson = False,
) -> None:
    """Simulate steps at staleness 0, 1 and 2, and compare seconds per step with the longer of generation and training.

    Example: rlsys bench overlap --seconds 1
    """
    report(as_json, lambda: simulate(seconds, send_share * seconds, steps), render)


def simulate(seconds: float, send_s: float, steps: int) -> dict[str, Any]:
    """Run every case of RATIOS x WAYS with the same actors."""
    from launch.bench.loop import StandIns

    cases = []
    with to_stderr().status(as_text("simulating …")), tempfile.TemporaryDirectory(prefix="rlsys-bench-") as name, local_ray():
        actors = StandIns(engines=1, processes=1)
        actors.start()
        # Warm-up: the first run includes one-time imports and starts.
        run_case(actors, Path(name) / "warm-up", 0.0, 0.0, 0.0, 0, False, 5)
        for ratio in RATIOS:
            generate_s, train_s = seconds * min(1.0, ratio), seconds * min(1.0, 1 / ratio)
            for staleness, in_flight in WAYS:
                folder = Path(name) / f"{ratio}-{staleness}-{in_flight}"
                cases.append(run_case(actors, folder, generate_s, train_s, send_s, staleness, in_flight, steps))
        actors.close()
    return {"steps": steps, "send_s": send_s, "cases": cases}


def run_case(
    actors: Any, folder: Path, generate_s: float, train_s: float, send_s: float, staleness: int, in_flight: bool, steps: int
) -> dict[str, Any]:
    """Run the loop once. `step_s` is the mean without the first and last two steps; `share` is its ratio to the longer phase."""
    from launch.bench.loop import reinforce, stand_in_config

    actors.set_seconds(generate_s, train_s, send_s)
    config = stand_in_config(
        folder,
        f"model.path={folder.parent / 'tiny-random'}",
        "prompt.template=compact",
        f"rl.steps={steps}",
        "rl.prompts_per_step=4",
        "rl.group_size=4",
        f"rl.staleness={staleness}",
        f"rollout.in_flight_updates={str(in_flight).lower()}",
    )
    _, metrics = reinforce(config, actors)
    counted = metrics[1:-2]
    step_s = sum(row["seconds/step"] for row in counted) / len(counted)
    longer = max(generate_s, train_s)
    return {
        "generate_s": generate_s,
        "train_s": train_s,
        "staleness": staleness,
        "in_flight_updates": in_flight,
        "first_step_s": metrics[0]["seconds/step"],
        "wall_s": sum(row["seconds/step"] for row in metrics),
        "step_s": step_s,
        "share": step_s / longer if longer else None,
        "floor_s": send_s + (longer if staleness else generate_s + train_s),
        # The version is reported after the weights are sent, which a step without a group to train on does not do.
        "lag": max(row["weight_version"] - (row["groups_trained"] > 0) - row["oldest_version"] for row in metrics),
    }


def render(document: dict[str, Any]) -> Table:
    table = Table(
        title=f"Seconds per step, mean of {document['steps'] - 3} steps; sending weights takes {document['send_s']:.3f} s",
        caption="At best: generation plus training at staleness 0, else the longer of the two, plus sending.\n"
        "Lag: weight versions between sampling and training, the largest of the run.",
    )
    columns = ("generate", "train", "staleness", "in flight", "first step", "step", "at best", "step / longer phase", "lag")
    for column in columns:
        table.add_column(column, justify="right")
    for i, case in enumerate(document["cases"]):
        if i and i % len(WAYS) == 0:
            table.add_section()
        seconds = [f"{case[name]:.3f}" for name in ("first_step_s", "step_s", "floor_s")]
        table.add_row(
            f"{case['generate_s']:.2f}",
            f"{case['train_s']:.2f}",
            str(case["staleness"]),
            "yes" if case["in_flight_updates"] else "no",
            *seconds,
            f"{case['share']:.3f}",
            str(case["lag"]),
        )
    return table
