"""Actors of a real run are killed and stopped; the run goes on by itself, and ends as an undisturbed one does."""

import os
import signal
import threading
import time
from collections import Counter
from functools import cache

import psutil
import pyarrow.parquet as pq
import pytest
import ray
from commands import ROOT

from actors.cluster.waiting import ActorFailed
from actors.loops.rl import train
from rlsys.config.files import load_config
from rlsys.io.metrics import MetricsLog
from rlsys.io.progress import read_progress

WAIT_S = 600


class Faults(threading.Thread):
    """Injects faults into a run: each once all actors are up, or up again, have taken one more step, and are sampling the next.

    Args:
        faults: (actor, whether its engine's process is meant, signal).
    """

    def __init__(self, folder, console, faults):
        super().__init__(daemon=True)
        self.folder, self.console, self.faults, self.injected, self.error = folder, console, list(faults), [], None

    def run(self):
        try:
            for actor, engine, number in self.faults:
                self._wait_for(lambda: self._starts() > len(self.injected))
                pid = ray.get(ray.get_actor(actor).__ray_call__.remote(lambda self: os.getpid()), timeout=WAIT_S)
                process = psutil.Process(pid)
                victim = process.children()[0].pid if engine else process.pid
                steps = self._steps()
                self._wait_for(lambda steps=steps: self._steps() > steps and self._phase() == "wait for samples")
                os.kill(victim, number)
                self.injected.append(actor)
        except Exception as error:  # noqa: BLE001  reported by the test, not by the thread
            self.error = error

    def _starts(self):
        """Of all actors, or of one of them."""
        text = self.console.file.getvalue()
        return text.count("ready after") + text.count(" is back")

    def _steps(self):
        return len(list(self.folder.glob("trajectories/step_*.parquet")))

    def _phase(self):
        return read_progress(self.folder).phase

    def _wait_for(self, condition):
        deadline = time.monotonic() + WAIT_S
        while not condition():
            assert time.monotonic() < deadline, f"nothing within {WAIT_S} s; injected: {self.injected}"
            time.sleep(0.02)


@pytest.fixture(scope="module")
def undisturbed(straight_run, tiny, quiet, tmp_path_factory):
    """Return `undisturbed(steps)`: the config of a run of RL alone, from a model that writes scores, which has ended.

    Its prompts and versions do not depend on how an engine rounds.
    """
    model = straight_run[0].run.dir / "checkpoints/cold_start/model"

    @cache
    def run(steps):
        settings = ["sft.rows=0", "rl.equal_groups=train", "checkpoint.every=1", f"rl.steps={steps}"]
        config = tiny(tmp_path_factory.mktemp("undisturbed") / "run", model, *settings)
        train(config, quiet)
        return config

    return run


def disturb(config, folder, console, faults, **recovery):
    """Return the config of a run in `folder` into which `faults` are injected, and what injects them."""
    run = config.run.model_copy(update={"dir": folder})
    limits = config.recovery.model_copy(update={"heartbeat_s": 15.0, "max_restarts": len(faults) + 2, **recovery})
    injector = Faults(folder, console, faults)
    injector.start()
    return config.model_copy(update={"run": run, "recovery": limits}), injector


def same_rows(ours, theirs):
    """Every sample of every step of `theirs` is there once, in the same place, with the same prompt."""
    names = ["prompt_id", "order", "prompt", "group", "sample", "weight_version"]
    return all(
        pq.read_table(ours.run.dir / file, columns=names).to_pylist() == pq.read_table(theirs.run.dir / file, columns=names).to_pylist()
        for file in (f"trajectories/step_{step:06d}.parquet" for step in range(1, theirs.rl.steps + 1))
    )


ENGINE, LEARNER, REWARD = ("rollout-0", True, signal.SIGKILL), ("learner-0", False, signal.SIGSTOP), ("reward", False, signal.SIGKILL)
SOME = [ENGINE, REWARD, LEARNER]
ALL = [
    *SOME,
    ("rollout-0", False, signal.SIGKILL),
    ("rollout-0", True, signal.SIGSTOP),
    ("rollout-0", False, signal.SIGSTOP),
    ("learner-0", False, signal.SIGKILL),
    ("reward", False, signal.SIGSTOP),
]


@pytest.mark.parametrize("faults", [pytest.param(SOME, id="some"), pytest.param(ALL, id="all", marks=pytest.mark.nightly)])
def test_a_run_goes_on_whatever_actor_dies_or_hangs(undisturbed, loud, tmp_path, faults):
    """Its only engine and the reward actor are replaced alone; the loss of a learner starts all actors anew."""
    straight = undisturbed(len(faults) + 3)
    config, injector = disturb(straight, tmp_path / "run", loud, faults)
    summary = train(config, loud)
    assert injector.error is None and injector.injected == [actor for actor, _, _ in faults]
    assert summary.rl_steps == straight.rl.steps
    assert [row["step"] for row in MetricsLog.read(config.run.dir)] == list(range(1, straight.rl.steps + 1))
    assert same_rows(config, straight)
    text = loud.file.getvalue()
    actors = Counter(actor for actor, _, _ in faults)
    assert text.count("all actors start anew") == actors["learner-0"]
    assert text.count("rollout-0 is back, with the weights of version") == actors["rollout-0"]
    assert text.count("reward is back") == actors["reward"]
    assert text.count("hangs: no sign of life for") == sum(number == signal.SIGSTOP for _, _, number in faults)
    assert read_progress(config.run.dir).restarts == len(faults)
    # Nothing that was stopped or orphaned is left.
    assert not [child for child in psutil.Process().children(recursive=True) if child.status() == psutil.STATUS_STOPPED]


@pytest.mark.nightly
def test_other_engines_take_over_until_the_new_one_has_the_current_weights(undisturbed, loud, tmp_path):
    faults = [("rollout-1", True, signal.SIGKILL), ("rollout-0", False, signal.SIGSTOP)]
    straight = undisturbed(6)
    config, injector = disturb(straight, tmp_path / "run", loud, faults)
    # The new engine is back before the end.
    update = {"rollout": config.rollout.model_copy(update={"actors": 2}), "rl": config.rl.model_copy(update={"steps": 96})}
    train(config.model_copy(update=update), loud)
    assert injector.error is None and len(injector.injected) == 2
    assert same_rows(config, straight)
    text = loud.file.getvalue()
    assert "all actors start anew" not in text and text.count("go to the other engines; a new one starts") >= 1
    assert "rollout-1 is back, with the weights of version" in text


@pytest.mark.nightly
def test_the_judge_and_the_reward_actor_of_a_policy_are_replaced_alone(straight_run, quiet, loud, tiny_model, tmp_path):
    faults = [("judge-0", True, signal.SIGKILL), ("reward", False, signal.SIGKILL), ("judge-0", False, signal.SIGSTOP)]
    judge = ["policy.reward=judge", f"judge.model={straight_run[0].run.dir}", "judge.k=2", "judge.max_responses=2"]
    sizes = ["data.heldout_rows=4", "rl.prompts_per_step=3", "rl.group_size=3", "rl.equal_groups=train", "run.actor_timeout_s=1200"]
    settings = [*judge, *sizes, f"model.path={tiny_model}", f"rl.steps={len(faults) + 3}", "checkpoint.every=1"]
    straight = load_config(ROOT / "launch/configs/policy-tiny.yaml", [*settings, f"run.dir={tmp_path / 'straight'}"])
    train(straight, quiet, stages=("rl",), policy=True)
    config, injector = disturb(straight, tmp_path / "run", loud, faults)
    train(config, loud, stages=("rl",), policy=True)
    assert injector.error is None and len(injector.injected) == len(faults)
    assert same_rows(config, straight)
    text = loud.file.getvalue()
    assert "all actors start anew" not in text
    assert text.count("judge-0 is back") == 2 and text.count("reward is back") == 1
    for name in ("judgements", "prompt_tokens", "groups_unjudged"):
        assert [row.get(name) for row in MetricsLog.read(config.run.dir)] == [row.get(name) for row in MetricsLog.read(straight.run.dir)]


@pytest.mark.nightly
def test_too_many_failures_end_the_job_with_the_first_one(undisturbed, loud, tmp_path):
    faults = [("rollout-0", False, signal.SIGKILL), ("learner-0", False, signal.SIGKILL)]
    config, injector = disturb(undisturbed(6), tmp_path / "run", loud, faults, max_restarts=1)
    with pytest.raises(ActorFailed, match=r"(?s)\Arollout-0 died.*This was the first failure.*learner-0 died"):
        train(config, loud)
    assert injector.injected == ["rollout-0", "learner-0"]
