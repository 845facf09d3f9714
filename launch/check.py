"""Checks before a command starts (`rlsys.preflight`), in a subprocess without torch: all mistakes are reported as one list."""

from __future__ import annotations

import glob
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from launch.console import ROOT, UserError, print_text, to_stderr
from rlsys.system.terminal import Table

if TYPE_CHECKING:
    from rlsys.config.schema import Config
    from rlsys.preflight import PreflightReport, PreflightTask


def load_checked_config(command: str, path: Path, overrides: list[str] | None, only_check: bool = False, **more: Any) -> Config:
    """Load a config and run all checks of the command; `more` as in `run_checks`.

    Raises:
        UserError, ConfigError: all mistakes, one per line.
        typer.Exit: with `only_check`, if there are none.
    """
    from rlsys.config.files import load_config
    from rlsys.config.schema import ConfigError

    problems: Sequence[str] = ()
    try:
        config = load_config(path, overrides)
    except ConfigError as error:
        if error.rest is None:
            raise
        config, problems = error.rest, error.problems
    run_checks(command, config, problems, only_check, **more)
    return config


def run_checks(command: str, config: Config, problems: Sequence[str] = (), only_check: bool = False, **more: Any) -> None:
    """Check everything that `rlsys COMMAND` needs and that can be checked without engines; notes go to stderr.

    Args:
        problems: mistakes found earlier, reported with the others.
        more: `rows`, `meta_rm`, `files` and `folder` of `rlsys.preflight.PreflightTask`.

    Raises:
        UserError: all mistakes, one per line.
        typer.Exit: with `only_check`, if there are none.
    """
    from rlsys.preflight import PreflightTask

    console = to_stderr()
    print_text(console, f"rlsys {command}: checking settings, data and model …")
    # In a cluster, this machine's cores and GPUs say nothing about the other machines.
    single_machine = "RAY_ADDRESS" not in os.environ
    cpus, gpus = (len(os.sched_getaffinity(0)), count_gpus()) if single_machine else (None, 0)
    task = PreflightTask(command, config.model_dump(mode="json"), cpus=cpus, gpus=gpus, **more)
    report = _run_preflight(task)
    mistakes = list(dict.fromkeys([*problems, *report.mistakes]))
    if mistakes:
        listed = f"{len(mistakes)} mistakes; nothing was started.\n" + "\n".join(f"- {mistake}" for mistake in mistakes)
        raise UserError(mistakes[0] if len(mistakes) == 1 else listed)
    for note in report.notes:
        print_text(console, f"note: {note}", "yellow")
    if "disk" in report.facts and not only_check:
        print_text(console, report.facts["disk"])
    if only_check:
        console.print(_table(task, config, report))
        raise typer.Exit()


def _run_preflight(task: PreflightTask) -> PreflightReport:
    from rlsys.preflight import PreflightReport, run_preflight

    if "torch" in sys.modules:
        return run_preflight(task)
    # Ctrl-C interrupts this process, which then ends the subprocess.
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
        "TRANSFORMERS_VERBOSITY": "error",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }
    completed = subprocess.run(
        [sys.executable, "-m", "rlsys.preflight"], input=json.dumps(asdict(task)), env=environment, capture_output=True, text=True
    )
    if completed.returncode < 0 and not completed.stdout:
        raise UserError(f"the check was killed by signal {-completed.returncode}.")
    if completed.returncode:
        raise RuntimeError(f"the checks failed:\n{completed.stderr}")
    return PreflightReport(**json.loads(completed.stdout))


def count_gpus() -> int:
    """Count the GPUs that this process may use, without importing torch."""
    if os.environ.get("RLSYS_DEVICE") == "cpu":
        return 0
    installed = len([name for name in glob.glob("/dev/nvidia*") if name.removeprefix("/dev/nvidia").isdecimal()])
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return installed if visible is None else min(installed, len([name for name in visible.split(",") if name.strip()]))


def _table(task: PreflightTask, config: Config, report: PreflightReport) -> Table:
    from rlsys.preflight import IN_RUN_DIR

    table = Table("checked", "", title=f"rlsys {task.command}: no mistake found; nothing was started")
    for name, value in report.facts.items():
        table.add_row(name, value)
    if task.command in IN_RUN_DIR:
        table.add_row("run folder", str(config.run.dir))
    for path in (*task.files, *filter(None, [task.folder])):
        table.add_row("output", str(path))
    return table
