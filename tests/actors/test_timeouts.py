"""Timeouts by kind of call: which setting bounds which call, and which one the error names."""

from __future__ import annotations

import time

import pytest
import ray

from actors.cluster.calls import LearnerGroup
from actors.cluster.waiting import ActorFailed
from rlsys.config.files import load_config

WAIT_S = 600


class Slow:
    """A learner rank whose training hangs; everything else answers."""

    def train_sft(self, batch):
        time.sleep(WAIT_S)

    def save(self, folder, files):
        return None


def test_a_call_is_bounded_by_the_timeout_of_its_kind(ray_session):
    run = load_config(None, [f"run.actor_timeout_s={WAIT_S}", "run.timeouts_s.train=1.5"]).run
    assert (run.timeout_s("train"), run.timeout_s("checkpoint"), run.longest_timeout_s) == (1.5, WAIT_S, WAIT_S)
    actor = ray.remote(num_cpus=0, max_concurrency=2)(Slow).remote()
    learners = LearnerGroup([actor], run)
    learners.save("folder")
    with pytest.raises(ActorFailed, match=r"no answer within 2 s from learner-0 \(train_sft\)\. Raise run\.timeouts_s\.train if"):
        learners.train_sft(None)
    learners.save("folder")  # not affected
    ray.kill(actor)
