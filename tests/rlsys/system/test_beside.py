"""Where the judge of `rlsys policy` runs, beside the policy."""

import pytest

from rlsys.config.files import load_config
from rlsys.system.beside import judging_actors, place_beside
from rlsys.system.placement import Machine, PlacementError, place

SETTINGS = ["judge.model=j", "judge.actors=2"]


def test_without_gpus_the_judge_shares_the_cores_and_reserves_nothing():
    config = load_config(None, [*SETTINGS, "policy.bt=b"])
    machines = [Machine("one", 8, 0)]
    placed = place_beside(judging_actors(config), machines, [place(config, machines)])
    assert list(placed.slots) == ["judge-0", "judge-1", "bt-0"] and not placed.bundles and placed.count("judge") == 2
    assert all(slot.bundle is None and slot.cpus == 0 and slot.threads == 2 for slot in placed.slots.values())
    assert place_beside({"judge-0": 3}, machines, []).threads("judge-0") == 3


def test_actors_are_spread_over_machines():
    machines = [Machine("one", 8, 0), Machine("two", 4, 0)]
    placed = place_beside(dict.fromkeys(("judge-0", "judge-1")), machines, [])
    assert [(slot.machine, slot.threads) for slot in placed.slots.values()] == [(0, 8), (1, 4)]


def test_on_gpus_the_judge_gets_those_that_the_policy_leaves():
    config = load_config(None, [*SETTINGS, "judge.meta_rm=m", "judge.strategy=meta", "learner.ranks=1", "rollout.actors=1"])
    machines = [Machine("one", 16, 3), Machine("two", 16, 2)]
    policy = place(config, machines)
    placed = place_beside(judging_actors(config), machines, [policy])
    mine = [(placed.machines[bundle.machine].name, bundle.gpu) for bundle in placed.bundles]
    others = [(policy.machines[bundle.machine].name, bundle.gpu) for bundle in policy.bundles]
    assert list(placed.slots) == ["judge-0", "judge-1", "scorer-0"] and placed.gpus == 3
    assert len(set(mine)) == 3 and {name for name, _ in mine + others} == {"one", "two"}
    for name, gpus in (("one", 3), ("two", 2)):
        assert sum(machine == name for machine, _ in mine + others) <= gpus
    again = place_beside({"bt-0": None}, [Machine("one", 16, 6)], [place(config, [Machine("one", 16, 6)]), placed])
    assert again.gpus == 1


def test_too_few_gpus_are_an_error_that_says_so():
    config = load_config(None, SETTINGS)
    machines = [Machine("one", 16, 2)]
    with pytest.raises(PlacementError, match="judge-0, judge-1 require 2 GPUs of their own; .* take 2 of 2.*not supported"):
        place_beside(judging_actors(config), machines, [place(config, machines)])


def test_nothing_to_place_without_a_judge():
    assert judging_actors(load_config(None, [])) == {}
