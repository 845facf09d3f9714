"""Waits are bounded, look at the first failure, and name who failed."""

import time
from contextlib import contextmanager

import numpy as np
import pyarrow as pa
import pytest
import ray

from actors.cluster.rollout_group import RolloutGroup
from actors.cluster.waiting import ActorFailed, Pending, wait
from rlsys.config.schema import Run
from rlsys.data.chain import PROMPTS, SAMPLES

WAIT_S = 600


class Sleeper:
    def nap(self, seconds):
        time.sleep(seconds)
        return seconds

    def fail(self):
        raise ValueError("no judgement today")

    def die(self):
        import os

        os._exit(3)


@pytest.fixture(scope="module")
def sleepers(ray_session):
    actor = ray.remote(num_cpus=0)(Sleeper)
    actors = [actor.remote() for _ in range(2)]
    ray.get([a.nap.remote(0) for a in actors], timeout=WAIT_S)
    yield actors
    for a in actors:
        ray.kill(a)


def test_results_keep_their_order(sleepers):
    calls = [Pending(sleepers[0].nap.remote(0.3), "a", "nap"), Pending(sleepers[1].nap.remote(0.0), "b", "nap")]
    assert wait(calls, WAIT_S) == [0.3, 0.0]


def test_a_late_actor_is_named(sleepers):
    calls = [Pending(sleepers[0].nap.remote(600), "rollout-7", "nap"), Pending(sleepers[1].nap.remote(0), "b", "nap")]
    with pytest.raises(ActorFailed, match=r"no answer within 2 s from rollout-7 \(nap\)"):
        wait(calls, 2.0)


def test_the_first_failure_ends_the_wait_though_a_peer_hangs(sleepers):
    calls = [Pending(sleepers[0].nap.remote(600), "learner-0", "nap"), Pending(sleepers[1].fail.remote(), "learner-1", "fail")]
    with pytest.raises(ActorFailed, match="learner-1 failed in fail: no judgement today"):
        wait(calls, WAIT_S)
    assert ray.wait([calls[0].ref], timeout=0)[0] == []  # its peer still hangs; nobody waited for it


def test_a_dead_actor_is_named(ray_session):
    actor = ray.remote(num_cpus=0)(Sleeper).remote()
    with pytest.raises(ActorFailed, match="learner-3 died during die"):
        wait([Pending(actor.die.remote(), "learner-3", "die")], WAIT_S)


class Recorder:
    """An engine that answers with what it was asked; a gate can hold it back."""

    def __init__(self, gate=None):
        self.asked, self.bytes, self.gate = [], 0, gate

    @ray.method(num_returns=2)
    def sample(self, requests, *settings):
        if self.gate is not None:
            while not ray.get(self.gate.is_open.remote(), timeout=WAIT_S):
                time.sleep(0.01)
        self.asked.append(requests["group"].to_pylist())
        self.bytes += requests.get_total_buffer_size()
        sizes = requests["seeds"].value_lengths().to_numpy()
        rows = {"group": np.repeat(requests["group"].to_numpy(), sizes), "sample": np.concatenate([np.arange(size) for size in sizes])}
        columns = {field.name: pa.array(rows.get(field.name, [None] * sizes.sum()), field.type) for field in SAMPLES}
        return int(sizes.sum()), pa.record_batch(columns, schema=SAMPLES)

    def seen(self):
        return self.asked, self.bytes


class Broken:
    @ray.method(num_returns=2)
    def sample(self, requests, *settings):
        raise ValueError("out of blocks")


class Gate:
    """Opens when `count` other calls are done, as their engines say."""

    def __init__(self, others, count):
        self.others, self.count = others, count

    def is_open(self):
        return sum(len(asked) for asked, _ in ray.get([other.seen.remote() for other in self.others], timeout=WAIT_S)) >= self.count


def requests(groups, samples):
    """PROMPTS of `groups` prompts with prompts of different lengths."""
    rows = [{"group": 7 + g, "prompt_token_ids": [g] * (5 + g), "seeds": list(range(samples))} for g in range(groups)]
    return pa.RecordBatch.from_pylist(rows, schema=PROMPTS)


@contextmanager
def fleet(*makers, timeout_s=WAIT_S, max_num_seqs=4):
    engines = []
    for maker in makers:
        engines.append(maker(engines))
    ray.get([engine.__ray_ready__.remote() for engine in engines], timeout=WAIT_S)
    try:
        yield RolloutGroup(engines, Run(actor_timeout_s=timeout_s), max_num_seqs)
    finally:
        for engine in engines:
            ray.kill(engine)


def recorder(others):
    return ray.remote(num_cpus=0)(Recorder).remote()


@pytest.mark.parametrize(("engines", "groups"), [(1, 5), (3, 1), (2, 26)])
def test_samples_stay_where_they_are_in_parts_that_have_the_order_of_the_requests(ray_session, engines, groups):
    asked = requests(groups, 3)
    with fleet(*[recorder] * engines) as group:
        parts = group.sample(asked, 1.0, 1.0, 8)
        assert all(isinstance(part, ray.ObjectRef) for part in parts)
        together = pa.concat_batches(ray.get(parts, timeout=WAIT_S))
        seen = ray.get([engine.seen.remote() for engine in group.actors], timeout=WAIT_S)
    assert together["group"].to_pylist() == [7 + g for g in range(groups) for _ in range(3)]
    assert together["sample"].to_pylist() == [0, 1, 2] * groups
    # Each prompt travelled once, and nothing of the table that it was cut from came with it.
    assert sum(size for _, size in seen) <= asked.nbytes + 200 * sum(len(calls) for calls, _ in seen)


def test_an_engine_that_is_held_up_gets_fewer_prompts_and_the_others_go_on(ray_session):
    def held_up(others):
        return ray.remote(num_cpus=0)(Recorder).remote(ray.remote(num_cpus=0)(Gate).remote(others, 21))

    # 24 shares of 3 samples each, of which an engine holds three at a time.
    with fleet(recorder, recorder, held_up, max_num_seqs=4) as group:
        samples = pa.concat_batches(ray.get(group.sample(requests(24, 3), 1.0, 1.0, 8), timeout=WAIT_S))
        calls = [len(asked) for asked, _ in ray.get([engine.seen.remote() for engine in group.actors], timeout=WAIT_S)]
    assert samples["group"].to_pylist() == [7 + g for g in range(24) for _ in range(3)]
    assert sum(calls) == 24 and calls[2] == 3


def test_an_engine_that_fails_is_named(ray_session):
    with fleet(recorder, lambda others: ray.remote(num_cpus=0)(Broken).remote()) as group:
        with pytest.raises(ActorFailed, match="rollout-1 failed in generate: out of blocks"):
            group.sample(requests(8, 2), 1.0, 1.0, 8)


def test_an_engine_that_does_not_answer_is_named(ray_session):
    def never(others):
        return ray.remote(num_cpus=0)(Recorder).remote(ray.remote(num_cpus=0)(Gate).remote(others, 10**9))

    with fleet(recorder, never, timeout_s=3.0) as group:
        with pytest.raises(ActorFailed, match="no samples within 3 s from (rollout-0, )?rollout-1"):
            group.sample(requests(8, 2), 1.0, 1.0, 8)
