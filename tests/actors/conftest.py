"""Two running rollout engines, started once: most of an engine's start-up is importing vLLM."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

WAIT_S = 600


@pytest.fixture(scope="session")
def engines(ray_session, tiny_model, tmp_path_factory):
    """Two fp32 engines of the tiny model, one core each: handles (`actors`), names, the results of `ready` (`descriptions`), and `logs`.

    The second one reports self-certainties. OpenMP's variable differs from their number of threads, as a user's may.
    """
    import ray

    from actors.rollout.rollout import RolloutActor
    from rlsys.config.schema import Rollout

    # The model's generation defaults must be ignored: with them, samples would not follow the model's own distribution.
    model = shutil.copytree(tiny_model, tmp_path_factory.mktemp("model_with_defaults") / "model")
    defaults = {"do_sample": True, "temperature": 0.2, "top_k": 2, "top_p": 0.5, "min_p": 0.4, "repetition_penalty": 3.0}
    file = model / "generation_config.json"
    file.write_text(json.dumps((json.loads(file.read_text()) if file.exists() else {}) | defaults))

    logs = tmp_path_factory.mktemp("rollout_logs")
    names, settings = ["rollout-0", "rollout-1"], {"max_num_seqs": 64, "kv_cache_gib": 0.25}
    actor = ray.remote(RolloutActor).options(num_cpus=0, runtime_env={"env_vars": {"OMP_NUM_THREADS": "2"}})
    actors = [
        actor.remote(name, str(model), Rollout(**settings, self_certainty=certainty), "float32", 256, 0, "cpu", str(logs), 1)
        for name, certainty in zip(names, (False, True))
    ]
    descriptions = ray.get([each.ready.remote() for each in actors], timeout=WAIT_S)
    yield SimpleNamespace(actors=actors, names=names, descriptions=descriptions, logs=logs)
    ray.get([each.shutdown.remote() for each in actors], timeout=WAIT_S)
    for each in actors:
        ray.kill(each)


class Ranks:
    """Learner ranks that stay in their process group while their engines come and go; called with a method and its arguments."""

    def __init__(self, create: Callable[[int], Any], world_size: int):
        """
        Args:
            create: makes the actor of a rank.
        """
        import ray

        self.actors = [create(rank) for rank in range(world_size)]
        host, port = ray.get(self.actors[0].address.remote(), timeout=WAIT_S)
        self.descriptions = self("setup", host, port)

    def __call__(self, method: str, *args: Any) -> list[Any]:
        import ray

        return ray.get([getattr(actor, method).remote(*args) for actor in self.actors], timeout=WAIT_S)

    def first(self, method: str, *args: Any) -> Any:
        return self(method, *args)[0]


@pytest.fixture(scope="module")
def start_ranks(ray_session):
    """`start_ranks(create, world_size)`: running `Ranks`, which end with the module."""
    import ray

    started = []

    def start(create: Callable[[int], Any], world_size: int) -> Ranks:
        started.append(Ranks(create, world_size))
        return started[-1]

    yield start
    for ranks in started:
        ranks("shutdown")
        for actor in ranks.actors:
            ray.kill(actor)


@pytest.fixture(scope="module")
def batch(tiny_model):
    """Three groups of four samples."""
    from plain_grpo import noisy_batch

    return noisy_batch(tiny_model)
