"""Placement is arithmetic; waits are bounded, look at the first failure, and name who failed."""

import time

import pytest
import ray

from actors.groups import place
from actors.waiting import ActorFailed, Pending, wait
from rlsys.config import load_config


def config(*overrides):
    return load_config(None, list(overrides))


def test_without_cards_synchronous_phases_take_turns_on_all_cores():
    placement = place(config("learner.ranks=2", "rollout.actors=1"), cpus=8, gpus=0, nodes=1)
    assert placement.colocated
    assert (placement.learner_threads, placement.rollout_threads) == (4, 8)
    assert placement.rollout == {"CPU": 0.0}


def test_without_cards_overlapping_phases_share_the_cores_out():
    placement = place(config("rl.staleness=1", "rollout.actors=2"), cpus=8, gpus=0, nodes=1)
    assert not placement.colocated
    assert (placement.learner_threads, placement.rollout_threads) == (4, 2)
    assert placement.learner["CPU"] + 2 * placement.rollout["CPU"] <= 8


@pytest.mark.parametrize(("ranks", "engines", "staleness"), [(2, 2, 1), (4, 1, 0), (3, 3, 1)])
def test_more_actors_than_cores_still_find_room(ranks, engines, staleness):
    placement = place(config(f"learner.ranks={ranks}", f"rollout.actors={engines}", f"rl.staleness={staleness}"), cpus=2, gpus=0, nodes=1)
    assert 0 < placement.learner["CPU"] and ranks * placement.learner["CPU"] + engines * placement.rollout["CPU"] <= 2
    assert placement.learner_threads == placement.rollout_threads == 1 or staleness == 0


def test_cards_are_owned_where_there_are_enough_and_shared_otherwise():
    own = place(config("learner.ranks=2", "rollout.actors=2"), cpus=32, gpus=4, nodes=1)
    assert not own.colocated and own.learner["GPU"] == own.rollout["GPU"] == 1.0
    shared = place(config(), cpus=16, gpus=1, nodes=1)
    assert shared.colocated and shared.learner["GPU"] + shared.rollout["GPU"] == 1.0


def test_too_few_cards_is_said_with_what_to_lower():
    with pytest.raises(ValueError, match=r"the cluster has 1\. Lower learner.ranks or rollout.actors"):
        place(config("learner.ranks=2"), cpus=16, gpus=1, nodes=1)


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
    ray.get([a.nap.remote(0) for a in actors])
    yield actors
    for a in actors:
        ray.kill(a)


def test_results_keep_their_order(sleepers):
    calls = [Pending(sleepers[0].nap.remote(0.3), "a", "nap"), Pending(sleepers[1].nap.remote(0.0), "b", "nap")]
    assert wait(calls, 30) == [0.3, 0.0]


def test_a_late_actor_is_named(sleepers):
    calls = [Pending(sleepers[0].nap.remote(3), "rollout-7", "nap"), Pending(sleepers[1].nap.remote(0), "b", "nap")]
    with pytest.raises(ActorFailed, match=r"no answer within 0 s from rollout-7 \(nap\)"):
        wait(calls, 0.4)


def test_the_first_failure_ends_the_wait_though_a_peer_hangs(sleepers):
    calls = [Pending(sleepers[0].nap.remote(20), "learner-0", "nap"), Pending(sleepers[1].fail.remote(), "learner-1", "fail")]
    with pytest.raises(ActorFailed, match="learner-1 failed in fail: no judgement today"):
        wait(calls, 60)
    assert ray.wait([calls[0].ref], timeout=0)[0] == []  # its peer still hangs; nobody waited for it


def test_a_dead_actor_is_named(ray_session):
    actor = ray.remote(num_cpus=0)(Sleeper).remote()
    with pytest.raises(ActorFailed, match="learner-3 died during die"):
        wait([Pending(actor.die.remote(), "learner-3", "die")], 60)
