"""Placement: no core or GPU is given away twice, engines stay within a machine, and shared GPUs are those of the engine's own ranks."""

from __future__ import annotations

from collections import Counter
from itertools import combinations, pairwise

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from rlsys.config.files import load_config
from rlsys.config.schema import Config
from rlsys.system.placement import Machine, Placement, PlacementError, place, place_judges, place_learners, weight_backend
from rlsys.system.reward_place import reward_machine


def config(ranks=1, engines=1, width=1, staleness=0, *overrides) -> Config:
    settings = [f"learner.ranks={ranks}", f"rollout.actors={engines}", f"rollout.tensor_parallel={width}", f"rl.staleness={staleness}"]
    return load_config(None, [*settings, *overrides])


def machines(*sizes: tuple[int, int]) -> list[Machine]:
    """Return machines of (CPUs, GPUs)."""
    return [Machine(f"10.0.0.{i}", cpus, gpus, f"id-{i}") for i, (cpus, gpus) in enumerate(sizes)]


def users(placed: Placement) -> dict[int, list[str]]:
    """Return the actors of every bundle's GPU."""
    return {bundle: [name for name, slot in placed.slots.items() if bundle in slot.gpus] for bundle in range(len(placed.bundles))}


def machines_of(placed: Placement, kind: str) -> list[int]:
    """Return the machine of each actor of a kind, in order."""
    return [slot.machine for name, slot in placed.slots.items() if name.startswith(kind)]


def check_is_grantable(placed: Placement) -> None:
    """Check what Ray checks: no machine gives more than it has, and no bundle is used up twice."""
    for index, machine in enumerate(placed.machines):
        mine = [bundle for bundle in placed.bundles if bundle.machine == index]
        numbers = [bundle.gpu for bundle in mine if bundle.gpu is not None]
        assert len(set(numbers)) == len(numbers) and set(numbers) <= set(range(machine.gpus))
        assert sum(bundle.cpus for bundle in mine) <= machine.cpus + 1e-9
    for number, bundle in enumerate(placed.bundles):
        slots = [slot for slot in placed.slots.values() if slot.bundle == number]
        assert sum(slot.cpus for slot in slots) <= bundle.cpus + 1e-9
        assert sum(slot.gpu_share for slot in placed.slots.values() if number in slot.gpus) <= (bundle.gpu is not None) + 1e-9
    for slot in placed.slots.values():
        assert slot.threads >= 1
        assert slot.bundle is None or placed.bundles[slot.bundle].machine == slot.machine
        assert all(placed.bundles[gpu].machine == slot.machine for gpu in slot.gpus), "an actor's GPUs are in its machine"
        assert not slot.gpus or slot.gpus[0] == slot.bundle


# --- GPUs -------------------------------------------------------------------------------------------------------------

GPU_MACHINES = st.lists(st.tuples(st.integers(0, 64), st.integers(0, 8)), min_size=1, max_size=4).map(lambda sizes: machines(*sizes))


@given(GPU_MACHINES, st.integers(1, 12), st.integers(1, 8), st.sampled_from([1, 2, 4]), st.integers(0, 1))
def test_any_cluster_with_gpus_is_placed_right_or_refused(found, ranks, engines, width, staleness):
    total = sum(machine.gpus for machine in found)
    assume(total)
    room = sum(machine.gpus // width for machine in found)
    try:
        placed = place(config(ranks, engines, width, staleness), found)
    except PlacementError:
        fits_apart = total >= ranks + engines * width
        fits_shared = total >= ranks == engines * width
        assert room < engines or not (fits_apart or fits_shared)
        return
    check_is_grantable(placed)
    assert placed.colocated == (total < ranks + engines * width)
    assert Counter(name.partition("-")[0] for name in placed.slots) == {"learner": ranks, "rollout": engines}
    for name, slot in placed.slots.items():
        assert len(slot.gpus) == (width if name.startswith("rollout") else 1)
    on = machines_of(placed, "learner")
    assert sum(before != after for before, after in pairwise(on)) == len(set(on)) - 1, "ranks of one machine are adjacent"
    if placed.colocated:
        for engine in range(engines):
            own = [placed.slots[f"learner-{rank}"].gpus[0] for rank in range(engine * width, (engine + 1) * width)]
            assert list(placed.slots[f"rollout-{engine}"].gpus) == own
        assert all(slot.gpu_share == 0.5 for slot in placed.slots.values())
    else:
        assert all(len(names) == 1 for names in users(placed).values())
        assert all(slot.gpu_share == 1 for slot in placed.slots.values())


@given(st.integers(2, 4), st.sampled_from([2, 4, 8]), st.integers(1, 16), st.integers(1, 8), st.sampled_from([1, 2, 4]))
def test_engines_and_learners_are_on_different_machines_where_equal_machines_allow_it(count, gpus, ranks, engines, width):
    assume(width <= gpus and count * gpus >= ranks + engines * width and count * (gpus // width) >= engines)
    try:
        placed = place(config(ranks, engines, width, 1), machines(*[(16, gpus)] * count))
    except PlacementError:
        # GPUs that are left over in groups too small for an engine are of no use to it.
        raise AssertionError("it fits") from None
    apart = any(
        gpus * len(chosen) >= ranks and (count - len(chosen)) * (gpus // width) >= engines
        for size in range(1, count)
        for chosen in combinations(range(count), size)
    )
    assert apart == (not set(machines_of(placed, "learner")) & set(machines_of(placed, "rollout")))


@given(GPU_MACHINES, st.sampled_from([1, 2, 4]), st.integers(0, 1))
def test_null_fits_any_cluster_and_leaves_no_gpu_idle(found, width, staleness):
    total, groups = sum(machine.gpus for machine in found), sum(machine.gpus // width for machine in found)
    assume(groups)
    placed = place(config("null", "null", width, staleness), found)
    check_is_grantable(placed)
    assert placed.colocated == (total < 2 * groups * width if staleness == 0 else total == width)
    assert placed.gpus == (groups * width if placed.colocated else total)


def test_null_with_engines_that_are_too_wide_is_refused():
    with pytest.raises(PlacementError, match="require at least 4 GPUs; the cluster has 2"):
        place(config("null", "null", 4), machines((8, 2)))
    with pytest.raises(PlacementError, match="1 engines of 4 GPUs each .* there is room for 0"):
        place(config("null", "null", 4), machines((8, 2), (8, 2)))


@given(GPU_MACHINES, st.sampled_from(["learner.ranks", "rollout.actors"]), st.integers(1, 8), st.sampled_from([1, 2]), st.integers(0, 1))
def test_null_beside_a_number_gets_the_gpus_that_are_left_or_shares(found, given_key, number, width, staleness):
    total, groups = sum(machine.gpus for machine in found), sum(machine.gpus // width for machine in found)
    engines_given = given_key == "rollout.actors"
    assume(number <= groups if engines_given else number <= total and number % width == 0 and number // width <= groups)
    counts = ("null", number) if engines_given else (number, "null")
    placed = place(config(*counts, width, staleness), found)
    used = number * width if engines_given else number
    own = total - used if engines_given else min(groups, (total - used) // width) * width
    assert placed.colocated == (own == 0)
    assert placed.gpus == used + own
    assert placed.count("rollout" if engines_given else "learner") == number


def test_eight_gpus_shared_by_ranks_and_wide_engines_are_drawn_row_by_row():
    placed = place(config(8, 2, 4), machines((96, 8)))
    assert placed.colocated and placed.gpus == 8
    assert placed.rows()[0] == ("10.0.0.0", "GPU 0", "learner-0 (50%), rollout-0 (50%)")
    assert placed.rows()[7] == ("10.0.0.0", "GPU 7", "learner-7 (50%), rollout-1 (50%)")
    expected = {"machine": "10.0.0.0", "gpus": [4, 5, 6, 7], "gpu_share": 0.5, "cpus": 1.0, "threads": 48}
    assert placed.describe("rollout-1") == expected


def test_split_on_two_machines_keeps_the_engines_on_the_second():
    placed = place(config(8, 4, 2, 1), machines((96, 8), (96, 8)))
    assert set(machines_of(placed, "learner")) == {0} and set(machines_of(placed, "rollout")) == {1}
    assert placed.slots["learner-0"].threads == 12 and placed.slots["rollout-0"].threads == 24


def test_one_machine_holds_both_where_two_do_not_suffice():
    placed = place(config(12, 2, 2, 1), machines((96, 8), (96, 8)))
    assert machines_of(placed, "learner") == [0] * 8 + [1] * 4 and machines_of(placed, "rollout") == [1, 1]


@pytest.mark.parametrize(
    ("shape", "sizes", "message"),
    [
        ((2, 1, 1), [(16, 1)], r"require at least 2 GPUs; the cluster has 1 \(10\.0\.0\.0: 1\)\. Lower learner\.ranks or rollout\.actors"),
        ((3, 2, 1), [(16, 4)], r"learner\.ranks to rollout\.actors x rollout\.tensor_parallel, for example learner\.ranks=2"),
        ((4, 2, 2), [(16, 3), (16, 1)], r"2 engines of 2 GPUs .* there is room for 1\. Lower rollout\.actors or rollout\.tensor_parallel"),
        ((4, 1, 4), [(16, 2), (16, 2)], r"1 engines of 4 GPUs .* there is room for 0"),
    ],
)
def test_what_can_never_be_granted_is_refused_with_what_to_set(shape, sizes, message):
    with pytest.raises(PlacementError, match=message):
        place(config(*shape), machines(*sizes))


def test_a_deterministic_run_gets_one_thread_per_process_and_no_gpu():
    deterministic = config(1, 1, 1, 0, "run.deterministic=true")
    placement = place(deterministic, machines((8, 0)))
    assert [placement.threads(name) for name in ("learner-0", "rollout-0")] == [1, 1]
    with pytest.raises(PlacementError, match="run.deterministic=true: on CPUs only, and the cluster has 2 GPU"):
        place(deterministic, machines((8, 2)))


def test_a_cluster_that_offers_nothing_is_refused():
    with pytest.raises(PlacementError, match="no machine of the cluster offers CPUs or GPUs"):
        place(config(), machines((0, 0)))


@pytest.mark.parametrize(
    ("configured", "gpus", "colocated", "backend"),
    [("auto", 0, True, "cpu"), ("auto", 2, True, "ipc"), ("auto", 2, False, "nccl"), ("nccl", 2, False, "nccl"), ("cpu", 2, True, "cpu")],
)
def test_weights_go_by_ipc_on_shared_gpus_and_by_nccl_between_gpus(configured, gpus, colocated, backend):
    assert weight_backend(configured, gpus, colocated) == backend


@pytest.mark.parametrize(("configured", "colocated", "other"), [("nccl", True, "ipc"), ("ipc", False, "nccl")])
def test_a_backend_that_cannot_work_there_is_refused(configured, colocated, other):
    with pytest.raises(PlacementError, match=f"weights.backend={configured}: .* set weights.backend={other}"):
        weight_backend(configured, 2, colocated)


@given(GPU_MACHINES, st.integers(1, 6), st.sampled_from([1, 2, 4]), st.booleans())
def test_judges_are_placed_right_or_refused(found, engines, width, scorer):
    total = sum(machine.gpus for machine in found)
    assume(any(machine.cpus or machine.gpus for machine in found))
    try:
        placed = place_judges(config(1, engines, width), found, scorer)
    except PlacementError:
        assert 0 < total and sum(machine.gpus // width for machine in found) < engines
        return
    check_is_grantable(placed)
    assert len(placed.slots) == engines + scorer
    if total >= engines * width + scorer:
        assert all(len(names) <= 1 for names in users(placed).values())


# --- CPUs -------------------------------------------------------------------------------------------------------------


@given(st.integers(1, 64), st.integers(1, 8), st.integers(1, 8), st.integers(0, 1))
def test_one_machine_without_gpus_divides_its_cores(cpus, ranks, engines, staleness):
    placed = place(config(ranks, engines, 1, staleness), machines((cpus, 0)))
    check_is_grantable(placed)
    half = max(1, cpus // 2)
    for_engines, for_learners = (cpus, cpus) if not staleness else (half, cpus - half or 1)
    assert {placed.threads(f"learner-{i}") for i in range(ranks)} == {max(1, for_learners // ranks)}
    assert {placed.threads(f"rollout-{i}") for i in range(engines)} == {max(1, for_engines // engines)}
    # If the phases take turns, the learners' reservation covers the engines.
    assert len(placed.bundles) == ranks + engines * staleness and placed.colocated == (not staleness)


@given(st.lists(st.tuples(st.integers(1, 32), st.just(0)), min_size=2, max_size=4), st.integers(1, 8), st.integers(1, 8), st.integers(0, 1))
def test_several_machines_without_gpus_divide_the_actors(sizes, ranks, engines, staleness):
    placed = place(config(ranks, engines, 1, staleness), machines(*sizes))
    check_is_grantable(placed)
    learners, rollouts = machines_of(placed, "learner"), machines_of(placed, "rollout")
    assert learners == sorted(learners) and max(Counter(learners).values()) - min(Counter(learners).values()) <= 1
    assert not staleness or not set(learners) & set(rollouts)
    assert staleness or len(set(learners)) == min(ranks, len(sizes))


def test_overlapping_engines_get_the_largest_of_several_machines():
    placed = place(config(2, 1, 1, 1, "rollout.cpus=2", "learner.cpus=1"), machines((0, 0), (2, 0), (1, 0), (1, 0)))
    check_is_grantable(placed)
    where = {name: placed.machines[slot.machine].name for name, slot in placed.slots.items()}
    assert where == {"learner-0": "10.0.0.2", "learner-1": "10.0.0.3", "rollout-0": "10.0.0.1"}
    assert placed.slots["rollout-0"].cpus == 2.0


def test_configured_threads_are_used_and_cores_are_scaled_to_what_there_is():
    placed = place(config(2, 2, 1, 1, "learner.cpus=6", "rollout.cpus=4"), machines((4, 0)))
    check_is_grantable(placed)
    assert placed.threads("learner-0") == 6 and placed.threads("rollout-1") == 4
    assert placed.slots["learner-0"].cpus == 1.2 and placed.slots["rollout-0"].cpus == 0.8


@pytest.mark.parametrize(
    ("sizes", "staleness", "expected"),
    [
        ([(2, 0)], 0, None),  # every core is reserved: on the job's own machine
        ([(2, 0), (1, 0), (1, 0), (1, 0)], 1, 3),  # engine, rank, rank, and one that nobody uses
        ([(2, 0), (1, 0), (1, 0)], 1, None),
        ([(96, 8), (16, 0)], 0, 1),  # a machine of its own before one with more free cores
        ([(96, 2), (96, 2)], 0, 0),
        ([(8, 2), (96, 2)], 0, 1),
    ],
)
def test_the_reward_actor_gets_a_machine_of_its_own_or_the_freest(sizes, staleness, expected):
    gpus = sum(gpus for _, gpus in sizes)
    counts = ("null", "null") if gpus else (2, 1)
    placed = place(config(*counts, 1, staleness), machines(*sizes))
    machine = reward_machine(placed)
    assert (None if machine is None else placed.machines.index(machine)) == expected


def test_null_without_gpus_is_one_engine_and_two_ranks():
    placed = place(config("null", "null"), machines((2, 0)))
    assert (placed.count("learner"), placed.count("rollout"), placed.threads("learner-0"), placed.threads("rollout-0")) == (2, 1, 1, 2)
    assert place(config("null", "null"), machines((1, 0))).count("learner") == 1
    assert place(config("null", "null"), machines((0, 0), (64, 0))).count("learner") == 2


def test_null_alone_takes_every_gpu():
    sizes = machines((8, 3), (8, 2))
    assert place_learners(config("null"), sizes).gpus == 5
    assert place_judges(config(1, "null", 2), sizes).gpus == 4
    assert place_learners(config("null"), machines((8, 0))).count("learner") == 2
    assert place_judges(config(1, "null"), machines((8, 0))).count("rollout") == 1


def test_learner_ranks_alone_divide_cores_and_take_a_gpu_each():
    assert [placed.threads for placed in place_learners(config(2), machines((8, 0))).slots.values()] == [4, 4]
    three = place_learners(config(3), machines((2, 0)))
    check_is_grantable(three)
    assert three.slots["learner-2"].cpus == 0.66
    on_gpus = place_learners(config(2), machines((8, 2)))
    assert [(slot.gpus, slot.gpu_share) for slot in on_gpus.slots.values()] == [((0,), 1.0), ((1,), 1.0)]
    with pytest.raises(PlacementError, match="2 learner ranks require 2 GPUs; the cluster has 1. Lower learner.ranks."):
        place_learners(config(2), machines((8, 1)))


def test_a_scorer_gets_a_quarter_of_the_cores_or_a_gpu_and_shares_one_if_it_must():
    on_cores = place_judges(config(1, 2), machines((16, 0)), scorer=True)
    check_is_grantable(on_cores)
    assert (on_cores.threads("rollout-0"), on_cores.threads("scorer-0")) == (6, 4)
    assert place_judges(config(1, 2), machines((16, 0))).threads("rollout-0") == 8
    assert users(place_judges(config(1, 1), machines((16, 2)), scorer=True)) == {0: ["rollout-0"], 1: ["scorer-0"]}
    assert users(place_judges(config(1, 1, 2), machines((16, 2)), scorer=True)) == {0: ["rollout-0", "scorer-0"], 1: ["rollout-0"]}
