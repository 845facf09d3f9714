"""Runs `rlsys` commands: in a subprocess from the root of the checkout, or in this process where only the output matters."""

from __future__ import annotations

import io
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from unittest.mock import patch

ROOT = Path(__file__).resolve().parents[1]
WIDTH = "120"


def as_in_a_terminal() -> None:
    """Restore SIGINT's default handler (`preexec_fn`): shells ignore it in background jobs, and children inherit that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def run_rlsys(
    *arguments: object, cwd: Path = ROOT, timeout_s: float = 600, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run `rlsys ARGUMENTS` in a subprocess; return its exit status and output."""
    env = _environment() | (environment or {})
    return subprocess.run(_command(arguments), cwd=cwd, env=env, capture_output=True, text=True, timeout=timeout_s)


def rlsys_here(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Like `run_rlsys`, but in this process, as starting Python takes longer than most errors. Not for --json, which redirects file
    descriptors.
    """
    from launch.cli import main

    output, errors, status = io.StringIO(), io.StringIO(), 0
    argv, width = patch.object(sys, "argv", ["rlsys", *map(str, arguments)]), patch.dict(os.environ, COLUMNS=WIDTH)
    try:
        with argv, width, redirect_stdout(output), redirect_stderr(errors):
            main()
    except SystemExit as end:
        status = end.code or 0
    return subprocess.CompletedProcess(arguments, status, output.getvalue(), errors.getvalue())


def rlsys(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a command in this process, or in a subprocess with --json."""
    return (run_rlsys if "--json" in arguments else rlsys_here)(*arguments)


def until(condition: Callable[[], bool], what: str, seconds: float = 300) -> None:
    """Wait until `condition()` is true; fail with `what` otherwise."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def kill_rlsys_when(there: Callable[[], bool], log: Path, *arguments: object) -> None:
    """Start `rlsys ARGUMENTS` with its output in `log`, and kill it and its children as soon as `there()` is true."""
    with log.open("w") as output:
        process = subprocess.Popen(_command(arguments), stdout=output, stderr=output, cwd=ROOT, env=_environment(), start_new_session=True)
        deadline = time.monotonic() + 1200
        while process.poll() is None and not there():
            assert time.monotonic() < deadline, log.read_text()[-3000:]
            time.sleep(0.01)
        assert process.poll() is None, f"ended before it could be killed:\n{log.read_text()[-3000:]}"
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def quickstarts_lines(model: Path) -> tuple[list[str], list[str]]:
    """The two lines that launch/quickstart.sh ends with for a run, as words: serve, and curl."""
    end = (ROOT / "launch/quickstart.sh").read_text().partition("# What to do with the model.")[2]
    shown = subprocess.run(["bash", "-euc", f"run={shlex.quote(str(model))}\n{end}"], capture_output=True, text=True, timeout=60)
    serve_line, curl_line = shown.stdout.splitlines()[-2:]
    return shlex.split(serve_line), shlex.split(curl_line)


def _command(arguments: tuple[object, ...]) -> list[str]:
    return [sys.executable, "-m", "launch.cli", *map(str, arguments)]


def _environment() -> dict[str, str]:
    """Return the environment, without the address of a running cluster."""
    return {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"} | {"COLUMNS": WIDTH, "PYTHONPATH": str(ROOT)}
