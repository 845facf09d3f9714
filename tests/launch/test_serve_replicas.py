"""Replicas of `rlsys serve` with real engines: one that dies is replaced, more start when many requests wait."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil
import pytest
from commands import until

from actors.serving.session import Service, running_service
from launch.commands.serve import free_port
from rlsys.serving.service import ServiceArguments, service_config

WAIT_S = 600.0
BODY = {"conversation": "q", "responses": ["a", "b"]}
SMALL = ["rollout.cpus=1", "rollout.kv_cache_gib=0.25", "rollout.max_tokens=16"]


@contextmanager
def service(model: Path, **arguments: object) -> Iterator[Service]:
    found = ServiceArguments(model=str(model), k=2, settings=SMALL, **arguments)
    config, _, problems = service_config(found)
    assert not problems
    with running_service(found, config, None, None, "127.0.0.1", free_port("127.0.0.1", 0)) as running:
        yield running


def engines() -> set[int]:
    """Process ids of the engines that run."""
    children = psutil.Process().children(recursive=True)
    return {child.pid for child in children if child.name() == "VLLM:EngineCore" and child.status() != psutil.STATUS_ZOMBIE}


@pytest.mark.nightly
def test_an_engine_that_dies_is_replaced_while_others_answer(ray_session, tiny_model):
    with service(tiny_model, min_replicas=2) as running, httpx.Client(base_url=running.url, timeout=WAIT_S) as client:
        until(lambda: len(engines()) == 2, "two engines", WAIT_S)
        first = min(engines())
        psutil.Process(first).kill()
        statuses = [client.post("/v1/score", json=BODY | {"seed": seed}).status_code for seed in range(20)]
        assert statuses == [200] * 20
        until(lambda: len(engines()) == 2 and first not in engines(), "no replacement", WAIT_S)
        assert client.post("/v1/score", json=BODY).status_code == 200


@pytest.mark.nightly
def test_a_second_engine_starts_while_many_requests_wait(ray_session, tiny_model):
    """Serve looks at the requests in progress over half a minute; nothing is refused or fails meanwhile."""
    with service(tiny_model, min_replicas=1, max_replicas=2) as running:
        until(lambda: len(engines()) == 1, "one engine", WAIT_S)
        statuses: list[int] = []
        enough = threading.Event()

        def ask(client: httpx.Client, number: int) -> None:
            while not enough.is_set():
                number += 1000
                statuses.append(client.post("/v1/score", json=BODY | {"seed": number, "k": 8}).status_code)

        with httpx.Client(base_url=running.url, timeout=WAIT_S, limits=httpx.Limits(max_connections=None)) as client:
            asking = [threading.Thread(target=ask, args=(client, number)) for number in range(64)]
            for thread in asking:
                thread.start()
            try:
                until(lambda: len(engines()) == 2, "no second engine", WAIT_S)
            finally:
                enough.set()
                for thread in asking:
                    thread.join(WAIT_S)
        assert set(statuses) == {200}
