"""Machines in namespaces of this one (`launch/namespaces.sh`), joined to a Ray cluster: for benchmarks and tests of several machines."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any, NamedTuple

from launch.console import ROOT

SHARED = Path("/tmp/shared")
"""Where every machine sees the shared folder."""
OBJECT_STORE = 200_000_000
"""Bytes of each machine's object store."""
START_S = 180
"""Bound of the time in which a machine joins the cluster, in seconds."""


class Machine(NamedTuple):
    """A machine: number from 1, address, and a process whose namespaces are the machine's."""

    number: int
    address: str
    process: int


class MachinesError(RuntimeError):
    """A machine could not be made or did not join."""


def unavailable() -> str | None:
    """Return why no machines can be made here, or None."""
    if missing := [tool for tool in ("ip", "tc", "unshare", "nsenter", "setpriv") if shutil.which(tool) is None]:
        return f"not installed: {', '.join(missing)} (Debian: iproute2, util-linux)"
    probe = subprocess.run(["unshare", "--net", "--mount", "--pid", "--fork", "true"], capture_output=True, text=True, timeout=60)
    return f"no namespaces without root: {probe.stderr.strip()}" if probe.returncode else None


class Machines:
    """Machines that end with the block, and a Ray cluster over them: `add` the first as its head, the others join it.

    Args:
        shared: the one folder that all machines have, there called `SHARED`.

    Raises:
        MachinesError: namespaces cannot be made here (`unavailable`).
    """

    def __init__(self, shared: Path):
        self.machines: list[Machine] = []
        self._nodes: list[subprocess.Popen[str]] = []
        if reason := unavailable():
            raise MachinesError(f"machines in namespaces: {reason}.")
        self._logs = shared / "ray"
        self._logs.mkdir(exist_ok=True)
        self._errors = (shared / "namespaces.log").open("w+")
        self._holder = subprocess.Popen(
            ["bash", str(ROOT / "launch/namespaces.sh"), str(shared)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )
        hidden = ("RAY_", "PYTHON", "VIRTUAL_ENV")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(hidden)}
        # The checkout's launch/ray_env.sh makes the rest of the environment.
        self.environment = kept | {"RAY_AUTH_TOKEN": secrets.token_hex(32)}

    def __enter__(self) -> Machines:
        return self

    def __exit__(self, *_: object) -> None:
        self._holder.kill()  # Everything ends with it.
        for process in (self._holder, *self._nodes):
            process.wait(30)
        self._errors.close()

    # --- machines ------------------------------------------------------------------------------------------------

    def add(self, cpus: int | None) -> Machine:
        """Make a machine and let it join the cluster with `cpus` CPUs; the first is the cluster's head. None: it stays outside."""
        number, address, process = self._ask("add").split()
        machine = Machine(int(number), address, int(process))
        self.machines.append(machine)
        if cpus is not None:
            self._join(machine, cpus)
        return machine

    def _join(self, machine: Machine, cpus: int) -> None:
        role = f"--address={self.machines[0].address}:6379" if machine.number > 1 else "--head --dashboard-host=0.0.0.0"
        command = f"ray start {role} --block --node-ip-address={machine.address} --num-cpus={cpus} --object-store-memory={OBJECT_STORE}"
        log = self._logs / f"machine-{machine.number}.log"
        with log.open("w") as output:
            node = self.popen(command, machine, stdout=output, stderr=subprocess.STDOUT)
        self._nodes.append(node)
        deadline = time.monotonic() + START_S
        while "Ray runtime started" not in log.read_text():
            if node.poll() is not None or time.monotonic() > deadline:
                raise MachinesError(f"machine {machine.number} did not join the cluster:\n{log.read_text()}")
            time.sleep(0.2)

    def cut(self, machine: Machine) -> None:
        """Pull the plug of `machine`."""
        self._ask(f"cut {machine.number}")

    def _ask(self, command: str) -> str:
        assert self._holder.stdin is not None and self._holder.stdout is not None
        try:
            self._holder.stdin.write(f"{command}\n")
            self._holder.stdin.flush()
            answer = self._holder.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer or answer.startswith("error"):
            self._errors.seek(0)
            raise MachinesError(f"{command}: {answer or 'no answer'} {self._errors.read().strip()}")
        return answer

    # --- commands ------------------------------------------------------------------------------------------------

    def popen(self, command: str, machine: Machine | None = None, **options: Any) -> subprocess.Popen[str]:
        """Start a shell command on `machine`, or, without, on a workstation in the same network that has the checkout."""
        enter = f"--all --target {machine.process}" if machine else f"--net --target {self._holder.pid}"
        shell = f"source launch/ray_env.sh && exec nsenter {enter} {command}"
        environment = self.environment | ({"HOME": "/tmp/home"} if machine else {})
        return subprocess.Popen(["bash", "-c", shell], cwd=ROOT, env=environment, text=True, **options)

    def start_job(self, command: str) -> subprocess.Popen[str]:
        """Submit a command as a Ray job from the workstation; the process prints the job's output and has its exit status."""
        submission = f"ray job submit --address http://{self.machines[0].address}:8265 --working-dir {ROOT} -- {command}"
        return self.popen(submission, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)

    def submit(self, command: str, timeout_s: float) -> tuple[int, str]:
        """Run a command as a Ray job; returns its exit status and its output."""
        job = self.start_job(command)
        try:
            output, _ = job.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            job.kill()
            output, _ = job.communicate()
            raise MachinesError(f"the job did not end within {timeout_s:.0f} s:\n{output[-4000:]}") from None
        return job.returncode, output
