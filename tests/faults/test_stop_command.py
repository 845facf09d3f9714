"""`rlsys train` is asked to stop by a signal: it saves, says how to continue, and leaves nothing behind."""

import signal
import time

import pyarrow.parquet as pq
import pytest

from launch.faults.injection import Fault
from launch.faults.runs import ResumedRun
from rlsys.io.metrics import MetricsLog

WAIT_S = 600
SECRETS = {name: f"not-to-be-told-{name.lower()}" for name in ("HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "RLSYS_TOKEN", "TEACHER_KEY")}


def wait_until(there, run):
    deadline = time.monotonic() + WAIT_S
    while not there():
        assert time.monotonic() < deadline, run.last_lines(40)
        time.sleep(0.05)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 75), pytest.param(signal.SIGINT, 130, marks=pytest.mark.nightly)])
def test_a_signal_ends_the_step_saves_and_leaves_nothing(straight_run, tmp_path, monkeypatch, number, status):
    for name, secret in SECRETS.items():
        monkeypatch.setenv(name, secret)
    straight, _ = straight_run
    model, folder = straight.run.dir / "checkpoints/cold_start/model", tmp_path / "run"
    more = [f"model.path={model}", "sft.rows=0", "rl.steps=500", "checkpoint.every=0", "recovery.grace_s=120"]
    run = ResumedRun(folder, [str(straight.run.dir / "config.yaml"), *more], tmp_path)
    run.start()
    try:
        wait_until(lambda: run.status() is not None or (folder / "trajectories/step_000002.parquet").exists(), run)
        assert run.inject(Fault("driver", number)), run.last_lines(40)
        wait_until(lambda: run.status() is not None, run)
        assert run.status() == status, run.last_lines(40)
        written = [path for place in (folder, run.temporary) for path in place.rglob("*") if path.is_file()]
        assert {path.name for path in written} >= {"config.yaml", "rollout-0.log", "raylet.out"}
        assert not [path for path in (run.log, *written) if b"not-to-be-told" in path.read_bytes()], "secrets of the environment"
        left = run.leftovers()
    finally:
        run.kill()
    text = run.log.read_text()
    step = MetricsLog.read(folder)[-1]["step"]
    assert f"{number.name}: the current step ends and is saved" in text and "Traceback" not in text
    assert (
        text.splitlines()[-1] == f"error: stopped by {number.name}; saved step {step}. The same command resumes from the last checkpoint."
    )
    assert [path.name for path in (folder / "checkpoints").glob("step_*")] == [f"step_{step:06d}"]
    assert pq.read_metadata(folder / f"trajectories/step_{step:06d}.parquet").num_rows > 0
    assert left.nothing, left
