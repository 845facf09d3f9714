"""`rlsys train` is asked to stop by a signal: it saves, says how to continue, and leaves nothing behind."""

import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest
from commands import ROOT, as_in_a_terminal

from rlsys.io.metrics import MetricsLog

WAIT_S = 600


def start(config, *overrides, temporary, log):
    """Start the run of `config` in a process group of its own; its files go to `temporary`, its output to `log`."""
    mark = uuid.uuid4().hex
    temporary.mkdir(exist_ok=True)
    environment = os.environ | {"RLSYS_TEST_MARK": mark, "TMPDIR": str(temporary), "PYTHONPATH": str(ROOT), "COLUMNS": "300"}
    environment.pop("RAY_ADDRESS", None)
    command = [sys.executable, "-m", "launch.cli", "train", str(config.run.dir / "config.yaml"), *overrides]
    with log.open("w") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=output, cwd=ROOT, env=environment, start_new_session=True, preexec_fn=as_in_a_terminal
        )
    return process, mark


def wait_until(there, process, log):
    deadline = time.monotonic() + WAIT_S
    while not there():
        assert process.poll() is None and time.monotonic() < deadline, log.read_text()[-3000:]
        time.sleep(0.05)


def processes_with(mark):
    """Processes that inherited the environment of the command."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("RLSYS_TEST_MARK") == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(" ".join(process.cmdline())[:120])
        except psutil.Error:
            continue
    return found


def nothing_left(mark):
    """Ray's own processes end shortly after the command."""
    deadline = time.monotonic() + 60
    while (left := processes_with(mark)) and time.monotonic() < deadline:
        time.sleep(0.5)
    return left


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 75), pytest.param(signal.SIGINT, 130, marks=pytest.mark.nightly)])
def test_a_signal_ends_the_step_saves_and_leaves_nothing(straight_run, tmp_path, number, status):
    straight, _ = straight_run
    model = straight.run.dir / "checkpoints/cold_start/model"
    folder, log, temporary = tmp_path / "run", tmp_path / "log", Path(f"/tmp/rlsys-{uuid.uuid4().hex[:8]}")
    shared = set(os.listdir("/dev/shm"))
    more = [f"run.dir={folder}", f"model.path={model}", "sft.rows=0", "rl.steps=500", "checkpoint.every=0", "recovery.grace_s=120"]
    process, mark = start(straight, *more, temporary=temporary, log=log)
    try:
        wait_until((folder / "trajectories/step_000002.parquet").exists, process, log)
        os.kill(process.pid, number)
        assert process.wait(WAIT_S) == status, log.read_text()[-3000:]
    finally:
        process.kill()
    text = log.read_text()
    step = MetricsLog.read(folder)[-1]["step"]
    assert f"{number.name}: the current step ends and is saved" in text and "Traceback" not in text
    assert (
        text.splitlines()[-1] == f"error: stopped by {number.name}; saved step {step}. The same command resumes from the last checkpoint."
    )
    assert [path.name for path in (folder / "checkpoints").glob("step_*")] == [f"step_{step:06d}"]
    assert pq.read_metadata(folder / f"trajectories/step_{step:06d}.parquet").num_rows > 0
    assert nothing_left(mark) == []
    assert set(os.listdir("/dev/shm")) - shared == set()
    # Locks of cores have a fixed place (`actors.rollout.vllm_compat.Cores`).
    assert {path.name for path in temporary.iterdir()} <= {"ray", f"rlsys-cores-{os.getuid()}"}
