"""launch/cluster/slurm.sbatch on a real SLURM of one machine, with a controller and a node of its own in a scratch folder."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rlsys.models.loading import build_tiny

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "launch/cluster/slurm.sbatch"
DAEMONS = ("slurmctld", "slurmd")
JOB_S = 900
FIND = {"PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"}
CONFIG = """
ClusterName=rlsys
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmdPort={node}
AuthType=auth/none
CredType=cred/none
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
ReturnToService=2
NodeName={host} NodeAddr=127.0.0.1 CPUs={cores} State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("", 0))
        return listener.getsockname()[1]


def wait_until(there: Callable[[], bool], seconds: float, what: Callable[[], str]) -> None:
    deadline = time.monotonic() + seconds
    while not there():
        assert time.monotonic() < deadline, what()
        time.sleep(0.5)


class Slurm:
    """One controller and one node, in the foreground, each with its output in the folder."""

    def __init__(self, folder: Path):
        self.folder, host = folder, socket.gethostname().partition(".")[0]
        for name in ("state", "spool"):
            (folder / name).mkdir()
        text = CONFIG.format(host=host, controller=free_port(), node=free_port(), folder=folder, cores=os.cpu_count())
        (folder / "slurm.conf").write_text(text)
        hidden = ("RAY_", "SLURM", "SBATCH")
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith(hidden)}
        self.environment |= FIND | {"SLURM_CONF": str(folder / "slurm.conf"), "RAY_AUTH_TOKEN_PATH": str(folder / "token")}
        self.processes = [self._start("slurmctld", "-D", "-i"), self._start("slurmd", "-D")]
        wait_until(lambda: "idle" in self.run("sinfo", "--noheader"), 120, lambda: self.run("sinfo"))

    def _start(self, *command: str) -> subprocess.Popen[bytes]:
        with (self.folder / f"{command[0]}.log").open("w") as log:
            return subprocess.Popen(command, env=self.environment, stdout=log, stderr=log)

    def run(self, *command: object) -> str:
        result = subprocess.run([*map(str, command)], cwd=ROOT, env=self.environment, capture_output=True, text=True, timeout=120)
        return result.stdout + result.stderr

    def submit(self, *arguments: object) -> str:
        options = ("--parsable", f"--output={self.folder}/%j.log", "--time=20")
        job = self.run("sbatch", *options, SCRIPT, *arguments).strip()
        assert job.isdecimal(), job
        return job

    def log(self, job: str) -> str:
        file = self.folder / f"{job}.log"
        return file.read_text() if file.exists() else ""

    def field(self, job: str, name: str) -> str:
        return re.search(rf"\b{name}=(\S+)", self.run("scontrol", "show", "job", job))[1]  # type: ignore[index]

    def wait(self, job: str) -> None:
        ended = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
        wait_until(lambda: self.field(job, "JobState") in ended, JOB_S, lambda: self.log(job)[-5000:])

    def stop(self) -> None:
        self.run("scancel", "--user=root")
        wait_until(lambda: not self.run("squeue", "--noheader").strip(), 120, lambda: self.run("squeue"))
        for process in reversed(self.processes):
            process.terminate()
            process.wait(60)


@pytest.fixture(scope="module")
def slurm() -> Iterator[Slurm]:
    if missing := [name for name in DAEMONS if not shutil.which(name, path=FIND["PATH"])]:
        pytest.skip(f"{' and '.join(missing)} not installed; on Debian: apt install slurmctld slurmd slurm-client")
    if os.geteuid():
        pytest.skip("slurmd needs root")
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))
    cluster = Slurm(folder)
    try:
        yield cluster
    finally:
        cluster.stop()
        shutil.rmtree(folder, ignore_errors=True)


def settings(folder: Path, *more: str) -> list[str]:
    build_tiny(folder / "tiny-random")
    return [f"run.dir={folder / 'run'}", f"model.path={folder / 'tiny-random'}", "data.heldout_rows=4", "rl.prompts_per_step=2", *more]


def test_a_mistake_ends_the_job_at_once(slurm: Slurm) -> None:
    job = slurm.submit()
    slurm.wait(job)
    assert slurm.field(job, "ExitCode") == "1:0" and "expected a command of rlsys" in slurm.log(job)


@pytest.mark.nightly
def test_an_interrupted_job_is_requeued_and_resumes(slurm: Slurm, tmp_path: Path) -> None:
    """USR1, as three minutes before the time limit; then the run goes on from its checkpoint, and nothing of Ray is left."""
    run = tmp_path / "run"
    job = slurm.submit("train", "launch/configs/tiny.yaml", *settings(tmp_path, "sft.rows=80", "rl.steps=4", "checkpoint.every=1"))
    wait_until(lambda: any(run.glob("checkpoints/step_*/state.json")), JOB_S, lambda: slurm.log(job)[-5000:])
    slurm.run("scancel", "--batch", "--signal=USR1", job)
    wait_until(lambda: slurm.field(job, "JobState") == "PENDING", 300, lambda: slurm.log(job)[-5000:])
    slurm.run("scontrol", "update", f"JobId={job}", "StartTime=now")  # SLURM waits two minutes
    slurm.wait(job)
    log = slurm.log(job)
    assert slurm.field(job, "ExitCode") == "0:0", log[-5000:]
    assert slurm.field(job, "Restarts") == "1" and "restart 1:" in log
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines() if '"step"' in line]
    assert (run / "summary.json").is_file() and max(steps) == 4
    assert f"/tmp/rlsys-{job}" not in subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, timeout=60).stdout
