"""Actors of a real run are killed and stopped; the run goes on by itself, and ends as an undisturbed one does."""

import os
import random
import signal
import threading
import time

import psutil
import pyarrow.parquet as pq
import pytest
import ray

from actors.cluster.waiting import ActorFailed
from actors.loops.rl import train
from rlsys.io.metrics import MetricsLog

WAIT_S = 600
STEPS = 12


class Faults(threading.Thread):
    """Injects one fault into each start of a run, once it has taken one more step.

    Args:
        faults: (actor, whether its engine's process is meant, signal).
    """

    def __init__(self, folder, faults):
        super().__init__(daemon=True)
        self.folder, self.left, self.injected, self.error = folder, list(faults), [], None
        self.moments = random.Random(len(faults))

    def run(self):
        try:
            seen = None
            while self.left:
                pids, seen = self._next_start(seen)
                actor, engine, number = self.left[0]
                self._wait_for_step(len(self.injected) + 1)
                time.sleep(self.moments.uniform(0, 1))  # in whatever phase
                process = psutil.Process(pids[actor])
                os.kill(process.children()[0].pid if engine else process.pid, number)
                self.injected.append(actor)
                self.left.pop(0)
        except Exception as error:  # noqa: BLE001  reported by the test, not by the thread
            self.error = error

    def _wait_for_step(self, step):
        deadline = time.monotonic() + WAIT_S
        while not (self.folder / f"trajectories/step_{step:06d}.parquet").exists():
            assert time.monotonic() < deadline, f"no step {step} within {WAIT_S} s"
            time.sleep(0.02)

    def _next_start(self, seen):
        """Wait for actors other than those `seen`."""
        deadline = time.monotonic() + WAIT_S
        while time.monotonic() < deadline:
            time.sleep(0.1)
            try:
                names = ["reward", "rollout-0", "learner-0"]
                calls = [ray.get_actor(name).__ray_call__.remote(lambda self: os.getpid()) for name in names]
                pids = dict(zip(names, ray.get(calls, timeout=WAIT_S)))
                started = (self.folder / "actors.json").stat().st_mtime_ns
            except (ValueError, FileNotFoundError, ray.exceptions.RayError):
                continue  # some of them are not up, or gone
            if pids != (seen or [None])[0] and started != (seen or [0, None])[1]:
                return pids, (pids, started)
        raise TimeoutError(f"no new actors within {WAIT_S} s; left: {self.left}")


@pytest.fixture(scope="module")
def undisturbed(straight_run, tiny, quiet, tmp_path_factory):
    """A run of RL alone, from a model that writes scores."""
    model = straight_run[0].run.dir / "checkpoints/cold_start/model"
    config = tiny(tmp_path_factory.mktemp("undisturbed") / "run", model, "sft.rows=0", "checkpoint.every=1", f"rl.steps={STEPS}")
    train(config, quiet)
    return config


def disturb(config, folder, faults, **recovery):
    """Return the config of a run in `folder` that lasts while `faults` are injected, and what injects them."""
    run = config.run.model_copy(update={"dir": folder})
    limits = config.recovery.model_copy(update={"heartbeat_s": 15.0, "max_restarts": len(faults) + 2, **recovery})
    injector = Faults(folder, faults)
    injector.start()
    return config.model_copy(update={"run": run, "recovery": limits}), injector


def same_rows(ours, theirs):
    """Every sample of every step is there once, in the same place, with the same prompt."""
    names = ["prompt_id", "order", "prompt", "group", "sample", "weight_version"]
    return all(
        pq.read_table(ours / file, columns=names).to_pylist() == pq.read_table(theirs / file, columns=names).to_pylist()
        for file in (f"trajectories/step_{step:06d}.parquet" for step in range(1, STEPS + 1))
    )


SOME = [("rollout-0", True, signal.SIGKILL), ("learner-0", False, signal.SIGSTOP)]
ALL = [
    *SOME,
    ("rollout-0", False, signal.SIGKILL),
    ("rollout-0", True, signal.SIGSTOP),
    ("rollout-0", False, signal.SIGSTOP),
    ("learner-0", False, signal.SIGKILL),
    ("reward", False, signal.SIGKILL),
    ("reward", False, signal.SIGSTOP),
]


@pytest.mark.parametrize("faults", [pytest.param(SOME, id="some"), pytest.param(ALL, id="all", marks=pytest.mark.nightly)])
def test_a_run_goes_on_whatever_actor_dies_or_hangs(undisturbed, loud, tmp_path, faults):
    config, injector = disturb(undisturbed, tmp_path / "run", faults)
    summary = train(config, loud)
    assert injector.error is None and injector.injected == [actor for actor, _, _ in faults]
    assert summary.rl_steps == STEPS
    assert [row["step"] for row in MetricsLog.read(config.run.dir)] == list(range(1, STEPS + 1))
    assert same_rows(config.run.dir, undisturbed.run.dir)
    text = loud.file.getvalue()
    assert text.count("all actors start anew") >= len(faults)
    assert text.count("hangs: no sign of life for") >= sum(number == signal.SIGSTOP for _, _, number in faults)
    # Nothing that was stopped or orphaned is left.
    assert not [child for child in psutil.Process().children(recursive=True) if child.status() == psutil.STATUS_STOPPED]


@pytest.mark.nightly
def test_too_many_failures_end_the_job_with_the_first_one(undisturbed, loud, tmp_path):
    faults = [("rollout-0", False, signal.SIGKILL), ("learner-0", False, signal.SIGKILL)]
    config, injector = disturb(undisturbed, tmp_path / "run", faults, max_restarts=1)
    with pytest.raises(ActorFailed, match=r"(?s)\Arollout-0 died.*This was the first failure.*learner-0 died"):
        train(config, loud)
    assert injector.injected == ["rollout-0", "learner-0"]
