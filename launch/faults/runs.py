"""A command of `rlsys` that is started again until its run is complete, watched from outside."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from launch.console import ROOT
from launch.faults.injection import MARK, Fault, actor_processes, listening_ports, marked
from rlsys.documents.runs import RunSummary

RLSYS = (sys.executable, "-m", "launch.cli")
SHARED = Path("/dev/shm")
LINGER_S = 60.0
"""Time for Ray's own processes to end after the command."""


@dataclass
class Leftovers:
    """What is left when a command has ended."""

    processes: list[str]
    """Name and command line of each."""
    ports: int
    """On which they listen."""
    shared: dict[str, int]
    """Bytes of each file in /dev/shm."""
    temporary: dict[str, int]
    """Bytes of each file in the temporary folder, sockets included, apart from Ray's logs and the locks of cores."""

    @property
    def nothing(self) -> bool:
        return not (self.processes or self.shared or self.temporary)


class ResumedRun:
    """A command on one run folder, started again as often as necessary.

    Args:
        folder: the run folder.
        arguments: of the command, without run.dir.
        place: for the command's output; its temporary files go to a short path of their own, as sockets' names are limited.
        command: of `rlsys`.
        program: what runs the command.
    """

    def __init__(self, folder: Path, arguments: list[str], place: Path, command: str = "train", program: Sequence[str] = RLSYS):
        self.folder, self.mark = folder, uuid.uuid4().hex
        self.log, self.temporary = place / f"{folder.name}.log", Path(f"/tmp/rlsys-{self.mark[:8]}")
        self.temporary.mkdir()
        self._command = [*program, command, *arguments, f"run.dir={folder}"]
        self._shared = set(os.listdir(SHARED))
        self.starts, self.longest_stall_s = 0, 0.0
        self._process: subprocess.Popen[bytes] | None = None
        self._seen: tuple[object, ...] = ()
        self._progress_at = time.monotonic()

    # --- the command ---------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the command, or start it again."""
        environment = os.environ | {MARK: self.mark, "TMPDIR": str(self.temporary), "PYTHONPATH": str(ROOT), "COLUMNS": "300"}
        environment.pop("RAY_ADDRESS", None)
        self.starts += 1
        with self.log.open("a") as output:
            self._process = subprocess.Popen(
                self._command,
                stdout=output,
                stderr=output,
                cwd=ROOT,
                env=environment,
                start_new_session=True,
                # Shells ignore SIGINT in background jobs, and children inherit that.
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            )

    def status(self) -> int | None:
        """Return the exit status of the command; None while it runs. Call it often: it also measures stalls."""
        assert self._process is not None
        self._look_for_progress()
        return self._process.poll()

    @property
    def complete(self) -> bool:
        return (self.folder / RunSummary.FILE).exists()

    def kill(self) -> None:
        """End all processes of the run."""
        for process in marked(self.mark):
            process.kill()
        if self._process is not None:
            self._process.wait()

    def inject(self, fault: Fault) -> bool:
        """Send a fault's signal; returns whether its process was there."""
        assert self._process is not None
        if fault.victim == "driver":
            if self._process.poll() is not None:
                return False
            self._process.send_signal(fault.number)
            return True
        victim = actor_processes(marked(self.mark)).get(fault.victim)
        try:
            if victim is not None:
                victim.send_signal(fault.number)
        except psutil.NoSuchProcess:
            return False
        return victim is not None

    # --- what becomes of it ---------------------------------------------------------------------------------------------

    def steps(self) -> int:
        """Return the number of steps whose samples are on record."""
        return len(list((self.folder / "trajectories").glob("step_*.parquet")))

    def stalled_s(self) -> float:
        """Return the seconds since the last sign of progress: a line on the screen, a phase, or a step's table."""
        return time.monotonic() - self._progress_at

    def last_lines(self, count: int = 12) -> str:
        """Return the end of the command's output."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-count:])

    def leftovers(self) -> Leftovers:
        """Return what is left once the command has ended and Ray's processes had time to; removes the temporary folder."""
        deadline = time.monotonic() + LINGER_S
        while (processes := marked(self.mark)) and time.monotonic() < deadline:
            time.sleep(0.5)
        names = []
        for process in processes:
            try:
                names.append(f"{process.name()}: {' '.join(process.cmdline())[:100]}")
            except psutil.Error:
                continue
        shared = [SHARED / name for name in set(os.listdir(SHARED)) - self._shared if not _is_mapped(name)]
        # Locks of cores have a fixed place (`actors.rollout.vllm_compat.Cores`).
        kept = ("ray", f"rlsys-cores-{os.getuid()}")
        temporary = [path for place in self.temporary.iterdir() if place.name not in kept for path in (place, *place.rglob("*"))]
        found = Leftovers(names, listening_ports(processes), _sizes(shared), _sizes(temporary))
        shutil.rmtree(self.temporary, ignore_errors=True)
        return found

    def _look_for_progress(self) -> None:
        seen = tuple(_stamp(self.folder / name) for name in ("progress.json", "metrics.jsonl", "trajectories")) + (_stamp(self.log),)
        if seen != self._seen:
            self._seen, self._progress_at = seen, time.monotonic()
        self.longest_stall_s = max(self.longest_stall_s, self.stalled_s())


def _is_mapped(name: str) -> bool:
    """Return whether a process has a file of /dev/shm in its memory: then it belongs to another command on this machine."""
    for maps in Path("/proc").glob("[0-9]*/maps"):
        with suppress(OSError):
            if f"{SHARED}/{name}" in maps.read_text(errors="replace"):
                return True
    return False


def _stamp(path: Path) -> int | None:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return None


def _sizes(paths: list[Path]) -> dict[str, int]:
    return {str(path): path.stat().st_size for path in paths if not path.is_dir()}
