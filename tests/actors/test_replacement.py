"""A rollout engine or the reward actor is replaced alone: real Ray actors that die and hang, real dispatch, heartbeats, replay."""

import io
import os
import time
from contextlib import contextmanager

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
from rich.console import Console

from actors.cluster.calls import Actors, LearnerGroup
from actors.cluster.heartbeats import Pulse, beat_from_a_thread
from actors.cluster.replacement import Replacements
from actors.cluster.reward_client import RewardClient
from actors.cluster.rollout_group import RolloutGroup
from actors.cluster.waiting import ActorFailed, wait
from actors.loops.progress import ProgressReporter
from actors.loops.recovery import Recoveries
from actors.reward import RewardActor
from rlsys.config.schema import Recovery, Run
from rlsys.data.chain import PROMPTS, SAMPLES
from rlsys.system.supervision import State

WAIT_S = 600
VERSION = 3


class Engine:
    """Samples at once, with the version of its weights; a new one has none (-1).

    Args:
        fault: what happens at its second share: its process "dies", or it "hangs" and no longer beats.
    """

    def __init__(self, name, fault=None, version=-1):
        self.name, self.fault, self.version, self.asked = name, fault, version, []

    def ready(self):
        return {}

    def engine_failure(self):
        return ""

    def start_heartbeat(self, heartbeats):
        if self.fault != "hangs":
            beat_from_a_thread(self.name, heartbeats)

    def load(self, version):
        self.version = version

    def seen(self):
        return self.asked

    @ray.method(num_returns=2)
    def sample(self, requests, *settings):
        if self.asked and self.fault == "dies":
            os._exit(3)
        self.asked.append(requests["group"].to_pylist())
        if len(self.asked) > 1 and self.fault == "hangs":
            time.sleep(WAIT_S)
        sizes = requests["seeds"].value_lengths().to_numpy()
        rows = {
            "group": np.repeat(requests["group"].to_numpy(), sizes),
            "sample": np.concatenate([np.arange(size) for size in sizes]),
            "weight_version": np.full(sizes.sum(), self.version),
        }
        columns = {field.name: pa.array(rows.get(field.name, [None] * sizes.sum()), field.type) for field in SAMPLES}
        return int(sizes.sum()), pa.record_batch(columns, schema=SAMPLES)


class Learner:
    """Sends its weights to the engines that it was last connected to."""

    def connect_rollouts(self, engines, backend, bucket_mib, timeout_s):
        self.engines = engines

    def send_weights(self, version, verify):
        ray.get([engine.load.remote(version) for engine in self.engines], timeout=WAIT_S)
        return {"bytes": 0}


@pytest.fixture
def recoveries():
    """`recoveries(limit)`: those of a job, which count up to `limit`; what they tell is in `.progress.console.file`."""

    def make(limit=3):
        progress = ProgressReporter(Console(file=io.StringIO(), force_terminal=False, width=400), "run")
        return Recoveries(Recovery(max_restarts=limit), progress)

    return make


def told(recoveries):
    return recoveries.progress.console.file.getvalue()


@contextmanager
def group(recoveries, *faults, idle_learners=False, fixed_weights=False):
    """The `Actors` of a job whose engines have these faults; the new ones have none. Fixed weights: those of a judge."""
    host = ray.remote(num_cpus=0, max_concurrency=2)(Engine)
    names = [f"rollout-{i}" for i in range(len(faults))]
    engines = [host.options(name=name).remote(name, fault, VERSION) for name, fault in zip(names, faults)]
    ray.get([engine.ready.remote() for engine in engines], timeout=WAIT_S)
    run = Run(actor_timeout_s=WAIT_S)
    rollouts = RolloutGroup(engines, run, max_num_seqs=4)
    learners = LearnerGroup([ray.remote(num_cpus=0)(Learner).remote()], run)
    actors = Actors(rollouts, learners, None)
    learners.connect_rollouts(engines, "cpu", 1)
    actors.send_weights(VERSION)
    rollouts.pulse = pulse = Pulse(10.0 if "hangs" in faults else 60.0)
    pulse.watch(rollouts.engines)
    node = ray.get_runtime_context().get_node_id()
    rollouts.replacements = Replacements(recoveries, pulse, dict.fromkeys(names, node))
    rollouts.create = lambda name: host.options(name=name).remote(name, None, VERSION if fixed_weights else -1)
    rollouts.refresh = actors.refresh if idle_learners else None
    if fixed_weights:
        rollouts.replace_by(rollouts.replacements)
    try:
        yield actors
    finally:
        rollouts.replacements.close()
        pulse.close()
        for actor in [*rollouts.actors, *learners.actors]:
            ray.kill(actor)


def kill(actor):
    """Kill an actor, and wait until it answers no more."""
    ray.kill(actor)
    with pytest.raises(ray.exceptions.RayActorError):
        while True:
            ray.get(actor.__ray_ready__.remote(), timeout=WAIT_S)


def sampled(actors, groups=16, samples=2):
    """The (group, sample, version) of what was sampled, in order."""
    rows = [{"group": g, "prompt_token_ids": [g], "seeds": list(range(samples))} for g in range(groups)]
    parts = actors.rollouts.sample(pa.RecordBatch.from_pylist(rows, schema=PROMPTS), 1.0, 1.0, 8)
    together = pa.concat_batches(ray.get(parts, timeout=WAIT_S))
    return list(zip(*(together[name].to_pylist() for name in ("group", "sample", "weight_version"))))


EVERYTHING = [(g, s, VERSION) for g in range(16) for s in range(2)]


@pytest.mark.parametrize(("fault", "words"), [("dies", "rollout-1 died during generate"), ("hangs", "rollout-1 hangs: no sign of life")])
def test_the_others_sample_what_a_lost_engine_had_and_the_new_one_waits_for_weights(ray_session, recoveries, fault, words):
    job = recoveries()
    with group(job, None, fault) as actors:
        rollouts = actors.rollouts
        assert sampled(actors) == EVERYTHING
        line = told(job)
        assert words in line and "restart 1: its " in line and " samples go to the other engines; a new one starts" in line
        assert rollouts.supervisor.state("rollout-1") is State.RESTARTING
        # A batch before the new engine has the current weights: it gets nothing.
        assert sampled(actors) == EVERYTHING
        new = rollouts.engines["rollout-1"]
        ray.get(new.ready.remote(), timeout=WAIT_S)
        assert ray.get(new.seen.remote(), timeout=WAIT_S) == []
        actors.send_weights(VERSION + 1)
        assert "rollout-1 is back, with the weights of version 4" in told(job)
        assert sampled(actors) == [(g, s, VERSION + 1) for g in range(16) for s in range(2)]
        assert ray.get(new.seen.remote(), timeout=WAIT_S)


def test_the_last_engine_is_waited_for_and_given_the_current_weights_before_it_samples(ray_session, recoveries):
    job = recoveries()
    with group(job, "dies", "dies", idle_learners=True) as actors:
        assert sampled(actors) == EVERYTHING
        assert "wait for the new one that starts" in told(job) and "is back, with the weights of version 3" in told(job)


@pytest.mark.parametrize("fault", ["dies", "hangs"])
def test_a_judges_engine_is_replaced_without_an_update_of_weights(ray_session, recoveries, fault):
    job = recoveries()
    with group(job, fault, fixed_weights=True) as actors:
        assert sampled(actors) == sampled(actors) == EVERYTHING
        assert "its 32 samples wait for the new one that starts" in told(job) and told(job).rstrip().endswith("rollout-0 is back")


def test_a_new_engine_of_a_judge_joins_while_the_others_sample(ray_session, recoveries):
    job = recoveries()
    with group(job, None, "dies", fixed_weights=True) as actors:
        assert sampled(actors) == EVERYTHING
        new = actors.rollouts.engines["rollout-1"]
        ray.get(new.ready.remote(), timeout=WAIT_S)
        assert sampled(actors) == EVERYTHING
        assert "rollout-1 is back" in told(job) and ray.get(new.seen.remote(), timeout=WAIT_S)


def test_an_engine_that_died_between_two_batches_is_found_before_weights_are_sent(ray_session, recoveries):
    job = recoveries()
    with group(job, None) as actors:  # even where learners may be training while engines sample
        kill(actors.rollouts.engines["rollout-0"])
        actors.send_weights(VERSION + 1)
        assert "rollout-0 is back, with the weights of version 4" in told(job)
        assert sampled(actors) == [(g, s, VERSION + 1) for g in range(16) for s in range(2)]


def test_the_job_fails_where_no_engine_can_be_waited_for_or_recoveries_are_used_up_or_it_ends(ray_session, recoveries):
    with group(recoveries(), "dies", "dies") as actors, pytest.raises(ActorFailed, match="died during generate") as failed:
        sampled(actors)
    assert failed.value.recoverable  # all actors start anew
    with group(recoveries(limit=0), None, "dies") as actors, pytest.raises(ActorFailed, match="rollout-1 died during generate"):
        sampled(actors)
    ended = recoveries()
    with group(ended, None, "dies") as actors:
        actors.rollouts.replacements.close()
        actors.rollouts.create = lambda name: pytest.fail("a job that ends starts nothing")
        with pytest.raises(ActorFailed, match="rollout-1 died during generate"):
            sampled(actors)
    assert "restart" not in told(ended)


# --- the reward actor --------------------------------------------------------------------------------------------


def batch(first):
    """PROMPTS of two rows, and SAMPLES of which only those of the first row differ in reward."""
    asked = [
        {"group": first + g, "prompt_id": f"p{g}", "family": "f", "order": [0, 1], "rewards": [1.0, 0.0], "prompt": "Q"} for g in range(2)
    ]
    texts = [r"\boxed{9, 2}", r"\boxed{2, 9}", "none", "none"]
    answers = [
        {"group": first + i // 2, "sample": i % 2, "token_ids": [5], "logprobs": [-1.0], "text": text, "finish_reason": "stop"}
        for i, text in enumerate(texts)
    ]
    prompts = pa.RecordBatch.from_pylist([row | {"prompt_token_ids": [1]} for row in asked], schema=PROMPTS)
    return prompts, pa.RecordBatch.from_pylist([row | {"weight_version": 0} for row in answers], schema=SAMPLES)


def test_a_new_reward_actor_ends_up_with_every_batch_once(ray_session, recoveries, tmp_path):
    """It is lost between any two calls, with up to two batches open, as with rl.staleness=1; the tables are those of one that lives on."""
    job = recoveries(limit=10)

    def create():
        return ray.remote(num_cpus=0)(RewardActor).options(name="reward").remote("reward")

    client = RewardClient(create(), Run(actor_timeout_s=WAIT_S))
    client.create = create
    wait([client.ready()], WAIT_S)
    pulse = Pulse(60.0)
    client.replacements = Replacements(job, pulse, {"reward": ray.get_runtime_context().get_node_id()})
    plain, lost = RewardActor("reward"), []

    def lose(end=kill):
        lost.append(client.actor)
        end(client.actor)

    def judge(key, number):
        prompts, samples = batch(number)
        assert client.judge(key, 1, prompts, [ray.put(samples)]) == plain.judge(key, 1, prompts, samples)

    try:
        judge("step 0", 0)
        client.write_trajectories("step 0", tmp_path / "0.parquet")
        judge("step 1", 0)
        lose()
        judge("step 1", 2)
        lose()
        rows, expected = plain.pop_learner_batch("step 1")
        assert ray.get(client.pop_learner_batch("step 1"), timeout=WAIT_S).rows.equals(expected.rows) and rows == 4
        judge("step 2", 0)
        lose()
        writing = client.begin_writing("step 1", tmp_path / "1.parquet")
        lose(ray.kill)  # while it writes
        client.finish(writing)
        lose()
        judge("step 2", 2)
        client.write_trajectories("step 2", tmp_path / "2.parquet")
        assert ray.get(client.actor.__ray_call__.remote(lambda self: (self.tables, self.popped)), timeout=WAIT_S) == ({}, {})
    finally:
        client.replacements.close()
        pulse.close()
        ray.kill(client.actor)
    plain.write("step 1", str(tmp_path / "expected 1.parquet"))
    plain.write("step 2", str(tmp_path / "expected 2.parquet"))
    for number in (1, 2):
        assert pq.read_table(tmp_path / f"{number}.parquet").equals(pq.read_table(tmp_path / f"expected {number}.parquet"))
    assert pq.read_table(tmp_path / "0.parquet").num_rows == 4
    # The one that was lost while it wrote may have written, and answered, before.
    assert len(lost) == 5 and told(job).count("reward is back") in (4, 5)


def test_a_reward_actor_that_fails_at_its_work_is_not_replaced(ray_session, recoveries):
    actor = ray.remote(num_cpus=0)(RewardActor).remote("reward")
    client = RewardClient(actor, Run(actor_timeout_s=WAIT_S))
    pulse = Pulse(None)
    client.create = lambda: pytest.fail("no other one would do better")
    client.replacements = Replacements(recoveries(), pulse, {"reward": ray.get_runtime_context().get_node_id()})
    prompts, samples = batch(0)
    with pytest.raises(ActorFailed, match="reward failed in judge"):
        client.judge("step 1", 1, prompts, [ray.put(samples.slice(0, 1))])
    ray.kill(actor)
