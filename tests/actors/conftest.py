"""Two running rollout engines, started once: most of an engine's start is importing vLLM, twice."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

WAIT_S = 240


@pytest.fixture(scope="session")
def engines(ray_session, tiny_model, tmp_path_factory):
    """Two fp32 engines of the tiny model, one core each: handles (`actors`), names, what `ready` said (`told`), and `logs`."""
    import ray

    from actors.rollout import RolloutActor
    from rlsys.config import Rollout

    logs = tmp_path_factory.mktemp("rollout_logs")
    names = ["rollout-0", "rollout-1"]
    actor = ray.remote(RolloutActor).options(num_cpus=0)
    actors = [
        actor.remote(name, str(tiny_model), Rollout(max_num_seqs=64, kv_cache_gib=0.25), "float32", 256, 0, "cpu", str(logs), 1)
        for name in names
    ]
    told = ray.get([each.ready.remote() for each in actors], timeout=WAIT_S)
    yield SimpleNamespace(actors=actors, names=names, told=told, logs=logs)
    ray.get([each.shutdown.remote() for each in actors], timeout=WAIT_S)
    for each in actors:
        ray.kill(each)
