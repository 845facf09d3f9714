"""Before anything starts: all mistakes of a command as one list (`rlsys.preflight`), in a process of its own without torch."""

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


def checked_config(command: str, path: Path, overrides: list[str] | None, only_check: bool = False, **more: Any) -> Config:
    """The config of a command that takes one, after everything that can be checked was; `more` as in `checked`.

    Raises:
        UserError, ConfigError: all mistakes, a line each.
        typer.Exit: `only_check`, and there are none.
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
    checked(command, config, problems, only_check, **more)
    return config


def checked(command: str, config: Config, problems: Sequence[str] = (), only_check: bool = False, **more: Any) -> None:
    """Check all that `rlsys COMMAND` needs and no engine does; what is good to know goes to stderr.

    Args:
        problems: mistakes that were found before.
        more: `rows`, `meta_rm`, `files` and `folder` of `rlsys.preflight.PreflightTask`.

    Raises:
        UserError: all mistakes, a line each.
        typer.Exit: `only_check`, and there are none.
    """
    from rlsys.preflight import PreflightTask

    console = to_stderr()
    print_text(console, f"rlsys {command}: checking settings, data and model …")
    # In a job's cluster, the machine that the driver runs on says nothing of the others.
    alone = "RAY_ADDRESS" not in os.environ
    cpus, gpus = (len(os.sched_getaffinity(0)), _gpus()) if alone else (None, 0)
    task = PreflightTask(command, config.model_dump(mode="json"), cpus=cpus, gpus=gpus, **more)
    found = _run_preflight(task)
    mistakes = list(dict.fromkeys([*problems, *found.mistakes]))
    if mistakes:
        several = f"{len(mistakes)} mistakes; nothing was started.\n" + "\n".join(f"- {told}" for told in mistakes)
        raise UserError(mistakes[0] if len(mistakes) == 1 else several)
    for note in found.notes:
        print_text(console, f"note: {note}", "yellow")
    if only_check:
        console.print(_table(task, config, found))
        raise typer.Exit()


def _run_preflight(task: PreflightTask) -> PreflightReport:
    from rlsys.preflight import PreflightReport, run_preflight

    if "torch" in sys.modules:
        return run_preflight(task)
    # A Ctrl-C is for this process, which ends the other.
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
        "TRANSFORMERS_VERBOSITY": "error",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }
    ended = subprocess.run(
        [sys.executable, "-m", "rlsys.preflight"], input=json.dumps(asdict(task)), env=environment, capture_output=True, text=True
    )
    if ended.returncode < 0 and not ended.stdout:
        raise UserError(f"the check was ended by signal {-ended.returncode}.")
    if ended.returncode:
        raise RuntimeError(f"the check before the start failed:\n{ended.stderr}")
    return PreflightReport(**json.loads(ended.stdout))


def _gpus() -> int:
    """Cards that this process may use, without asking torch."""
    if os.environ.get("RLSYS_DEVICE") == "cpu":
        return 0
    there = len([name for name in glob.glob("/dev/nvidia*") if name.removeprefix("/dev/nvidia").isdecimal()])
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return there if visible is None else min(there, len([name for name in visible.split(",") if name.strip()]))


def _table(task: PreflightTask, config: Config, found: PreflightReport) -> Table:
    from rlsys.preflight import IN_RUN_DIR

    table = Table("checked", "", title=f"rlsys {task.command}: no mistake found; nothing was started")
    for name, told in found.facts.items():
        table.add_row(name, told)
    if task.command in IN_RUN_DIR:
        table.add_row("run folder", str(config.run.dir))
    for written in (*task.files, *filter(None, [task.folder])):
        table.add_row("output", str(written))
    return table
