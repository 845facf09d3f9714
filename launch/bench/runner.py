"""Runs one measured system in a process of its own, pinned to the cores of the benchmark."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from launch.bench.work import Work, write_work
from rlsys.system.terminal import as_text

GRACE_S = 30
"""Seconds that a measuring process has to shut down before it is killed."""


class BenchFailed(RuntimeError):
    """A measuring process failed or did not end in time; the message quotes its last lines."""


def run_system(title: str, module: str, work: Work, timeout_s: float, screen: Console) -> dict[str, Any]:
    """Measure one system in a process of its own and return its result.

    Raises:
        BenchFailed: the process failed, or did not end within `timeout_s` seconds.
    """
    with tempfile.TemporaryDirectory(prefix="rlsys-bench-") as name:
        folder = Path(name)
        write_work(work, folder / "work.json")
        command = [sys.executable, "-m", module, str(folder / "work.json"), str(folder / "result.json")]
        environment = os.environ | {"TOKENIZERS_PARALLELISM": "false"}
        # Unset, so that each system chooses its number of threads as it would for a user with these cores.
        environment.pop("OMP_NUM_THREADS", None)
        status_text = as_text(f"{title}: {work.steps} steps on core {', '.join(map(str, work.cores))} …")
        with (folder / "log").open("w") as log, screen.status(status_text):
            process = _start_on(work.cores, command, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
            try:
                exit_status = process.wait(timeout_s)
            except subprocess.TimeoutExpired:
                message = f"{title} did not end within {timeout_s:.0f} s; raise --timeout. Its last output:"
                raise BenchFailed(f"{message}\n{_last_lines(folder)}") from None
            finally:
                _end(process)
        if exit_status != 0:
            raise BenchFailed(f"{title} failed with exit status {exit_status}. Its last output:\n{_last_lines(folder)}")
        return json.loads((folder / "result.json").read_text())


def run_systems(sides: Mapping[str, tuple[str, str]], work: Work, timeout_s: float, screen: Console) -> dict[str, Any]:
    """Measure several systems, each {key: (title, module)}, one after the other; returns {key: result of `run_system`}."""
    return {key: run_system(title, module, work, timeout_s, screen) for key, (title, module) in sides.items()}


def _start_on(cores: list[int], command: list[str], **options: Any) -> subprocess.Popen[bytes]:
    """Start a process that is pinned from its start, as OpenMP counts the cores when torch is imported."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        return subprocess.Popen(command, **options)
    finally:
        os.sched_setaffinity(0, before)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Terminate the process if it is still running, then kill its process group."""
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
