"""What Ray reserves for each replica of the service."""

from __future__ import annotations

import pytest

from actors.serving.application import _options, _threads, ingress_deployment
from rlsys.config.files import load_config
from rlsys.serving.limits import Limits
from rlsys.serving.service import ServiceArguments
from rlsys.system.placement import Machine, PlacementError, place_judges


@pytest.mark.parametrize(
    ("machines", "settings", "meta", "engine", "scorer", "threads"),
    [
        ([Machine("a", 8, 0)], ["rollout.actors=2"], False, {"num_cpus": 4, "num_gpus": 0}, None, 4),
        ([Machine("a", 8, 0)], ["rollout.actors=2"], True, {"num_cpus": 3, "num_gpus": 0}, {"num_cpus": 2, "num_gpus": 0}, 3),
        # Replicas are alike, and Serve chooses their machines: each must fit the smallest.
        ([Machine("a", 8, 0), Machine("b", 4, 0)], ["rollout.actors=2"], False, {"num_cpus": 4, "num_gpus": 0}, None, 4),
        ([Machine("a", 16, 4)], ["rollout.actors=3"], True, {"num_cpus": 1, "num_gpus": 1}, {"num_cpus": 1, "num_gpus": 1}, 5),
        ([Machine("a", 16, 4)], ["rollout.actors=2", "rollout.tensor_parallel=2"], False, {"num_cpus": 1, "num_gpus": 2}, None, 8),
        ([Machine("a", 16, 1)], ["rollout.actors=1"], True, {"num_cpus": 1, "num_gpus": 0.5}, {"num_cpus": 1, "num_gpus": 0.5}, 16),
    ],
)
def test_engines_get_their_share(machines, settings, meta, engine, scorer, threads):
    placement = place_judges(load_config(None, settings), machines, scorer=meta)
    assert _options(placement, "rollout") == engine
    assert _threads(placement, "rollout") == threads
    if scorer:
        assert _options(placement, "scorer") == scorer
    # All replicas together fit the machines.
    count = placement.count("rollout")
    assert count * engine["num_gpus"] + (scorer or engine | {"num_gpus": 0})["num_gpus"] <= sum(machine.gpus for machine in machines)


def test_serve_holds_back_nothing_that_the_limits_admit():
    """Groups that gather on both routes, and judgements beside them; what is more is refused, not queued without end."""
    limits = Limits(max_pending=100, max_responses=20)
    ingress = ingress_deployment(ServiceArguments(model="m", limits=limits))
    assert 2 * 100 * 20 + 2 * 100 < ingress.max_ongoing_requests < 2 * 100 * 20 + 1000
    assert 0 < ingress.max_queued_requests <= 100


def test_too_few_gpus_are_refused():
    with pytest.raises(PlacementError, match="rollout.actors"):
        place_judges(load_config(None, ["rollout.actors=2"]), [Machine("a", 8, 1)])
