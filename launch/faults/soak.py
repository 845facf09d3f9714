"""A soak: random faults in many short runs of the tiny model. Each run is resumed until it is complete, and then compared, to the bit, with
one that nothing disturbed. `bash launch/soak.sh MINUTES` (docs/reliability.md).
"""

from __future__ import annotations

import json
import random
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from launch.console import ROOT, UserError, print_text, to_stderr, to_stdout
from launch.faults.disturbed import Outcome, disturb
from launch.faults.injection import ACTOR_FAULTS, DRIVER_FAULTS, Fault
from launch.faults.runs import ResumedRun
from rlsys.io.files import write_text_atomically
from rlsys.system.terminal import Table, as_text

CONFIG = str(ROOT / "launch/configs/tiny.yaml")
SETTINGS = ["run.deterministic=true", "rollout.max_num_seqs=1", "data.heldout_rows=6", "rl.prompts_per_step=2", "checkpoint.every=1"]
"""Of all runs: the same bits in each, and a checkpoint after every step."""
PATIENT = [
    "run.timeouts_s.start=300",
    "recovery.heartbeat_s=15",
    "recovery.max_restarts=100",
    "recovery.grace_s=60",
    "run.trackers=[]",
    "learner.lr=1e-4",
]
"""Of the runs of RL: no limit of restarts ends them, and they learn slowly enough to keep writing scores."""
FAULTS = (2, 6)
"""Fewest and most faults of one run."""


def prepare(folder: Path, steps: int, say: Callable[..., None]) -> tuple[Path, list[str]]:
    """Train a model that writes scores, and from it the run that nothing disturbs; returns that run and the arguments of all of them.

    Raises:
        UserError: one of the two did not succeed.
    """
    base, reference = folder / "base", folder / "undisturbed"
    arguments = [CONFIG, *SETTINGS, *PATIENT, f"model.path={base}/checkpoints/cold_start/model", "sft.rows=0", f"rl.steps={steps}"]
    for path, command, own in ((base, "sft", [CONFIG, *SETTINGS, f"model.path={folder}/tiny-random"]), (reference, "train", arguments)):
        say(f"{path.name}: rlsys {command}")
        run = ResumedRun(path, own, folder, command)
        outcome = disturb(run, [], say, random.Random())
        if not outcome.complete:
            raise UserError(f"{run.log}: `rlsys {command}` did not succeed without any fault; see there.")
    return reference, arguments


def soak(folder: Path, minutes: float, steps: int, seed: int, kinds: tuple[Fault, ...], say: Callable[..., None]) -> list[Outcome]:
    """Disturb one run after the other until the time is up; returns what became of them. `soak.json` in `folder` is kept up to date."""
    reference, arguments = prepare(folder, steps, say)
    chance, outcomes, bag = random.Random(seed), list[Outcome](), list[Fault]()
    end = time.monotonic() + 60 * minutes
    while time.monotonic() < end:
        faults = []
        for _ in range(chance.randint(*FAULTS)):
            bag = bag or chance.sample(kinds, len(kinds))  # each kind as often as the others
            faults.append(bag.pop())
        run = ResumedRun(folder / f"run_{len(outcomes) + 1:03d}", arguments, folder)
        outcome = disturb(run, faults, say, chance, reference, end)
        outcomes.append(outcome)
        say(f"{outcome.name}: {outcome.describe()}", "green" if outcome.good else "red")
        write_text_atomically(folder / "soak.json", json.dumps(totals(outcomes), indent=2) + "\n")
        if outcome.good:  # else it is kept for inspection
            shutil.rmtree(run.folder)
    return outcomes


def totals(outcomes: list[Outcome]) -> dict[str, Any]:
    """Sum up the runs."""
    injected = [fault for outcome in outcomes for fault in outcome.faults]
    kinds = {
        kind: {
            "injected": len(found := [fault for fault in injected if fault.fault == kind]),
            "went on by itself": sum(fault.status is None for fault in found),
            "resumed by the same command": sum(fault.status is not None and fault.expected for fault in found),
            "ended the command against expectation": sum(not fault.expected for fault in found),
        }
        for kind in sorted({fault.fault for fault in injected})
    }
    return {
        "minutes": round(sum(outcome.seconds for outcome in outcomes) / 60, 1),
        "runs": len(outcomes),
        "complete": sum(outcome.complete for outcome in outcomes),
        "equal to the bit": sum(outcome.complete and outcome.comparison.equal for outcome in outcomes),
        "starts of the command": sum(outcome.starts for outcome in outcomes),
        "faults": len(injected),
        "samples lost": sum(outcome.comparison.lost for outcome in outcomes),
        "samples doubled": sum(outcome.comparison.doubled for outcome in outcomes),
        "longest stall, in seconds": round(max((outcome.longest_stall_s for outcome in outcomes), default=0), 1),
        "processes left": sum(len(outcome.left.processes) for outcome in outcomes if outcome.left),
        "ports left": sum(outcome.left.ports for outcome in outcomes if outcome.left),
        "files left": sum(len(outcome.left.shared) + len(outcome.left.temporary) for outcome in outcomes if outcome.left),
        "bytes left": sum(sum((outcome.left.shared | outcome.left.temporary).values()) for outcome in outcomes if outcome.left),
        "faults by kind": kinds,
        "each run": [asdict(outcome) for outcome in outcomes],
    }


def tables(found: dict[str, Any]) -> list[Table]:
    """Show `totals`: faults by kind, and the other figures."""
    kinds = found["faults by kind"]
    columns = list(next(iter(kinds.values()), {}))
    by_kind, figures = Table("fault", *columns, title="faults"), Table("figure", "value", title="runs")
    for kind, row in kinds.items():
        by_kind.add_row(kind, *(str(row[column]) for column in columns))
    for name, value in found.items():
        if isinstance(value, int | float):
            figures.add_row(name, f"{value:,}")
    return [by_kind, figures]


def main(
    minutes: Annotated[float, typer.Argument(min=0.1, help="Minutes after which no further fault is injected.")],
    folder: Annotated[Path, typer.Option(help="New folder of the runs, logs and soak.json.")] = Path("runs/soak"),
    steps: Annotated[int, typer.Option(min=2, help="RL steps of each run.")] = 6,
    seed: Annotated[int, typer.Option(help="Of the faults and their moments.")] = 0,
    driver_only: Annotated[bool, typer.Option("--driver-only", help="Only SIGKILL the driver.")] = False,
) -> None:
    """Inject random faults into short runs until the time is up; exit with 1 if anything was lost, doubled, different or left behind."""
    console, began = to_stderr(), time.monotonic()
    folder = folder.absolute()
    if folder.exists() and any(folder.iterdir()):
        raise typer.BadParameter(f"{folder} is not empty; choose another --folder.")
    folder.mkdir(parents=True, exist_ok=True)
    kinds = (Fault("driver", signal.SIGKILL),) if driver_only else (*ACTOR_FAULTS, *DRIVER_FAULTS)
    with console.status(as_text("starting …")) as status:

        def say(text: str, style: str = "") -> None:
            elapsed, seconds = divmod(int(time.monotonic() - began), 60)
            status.update(as_text(f"{text} …", "bold"))
            print_text(console, f"{elapsed:3d}:{seconds:02d} {text}", style)

        outcomes = soak(folder, minutes, steps, seed, kinds, say)
    found = totals(outcomes)
    for table in tables(found):
        to_stdout().print(table)
    print_text(to_stdout(), f"all figures: {folder / 'soak.json'}")
    raise typer.Exit(0 if all(outcome.good for outcome in outcomes) else 1)


if __name__ == "__main__":
    typer.run(main)
