"""`GRM` with real engines: in this process's Ray, and behind a real service; both give the same verdicts."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray

from rlsys import GRM, ServingError, Verdict
from rlsys.config.schema import ConfigError
from rlsys.data.datasets import open_rows

SMALL = ["rollout.kv_cache_gib=0.25", "rollout.max_tokens=48"]


@pytest.fixture(scope="module")
def model(straight_run) -> Path:
    return straight_run[0].run.dir


@pytest.fixture(scope="module")
def rows(straight_run) -> list[dict[str, Any]]:
    """Rows of one and of two responses."""
    records = [open_rows(Path("tasks:heldout"), straight_run[0].data, 0)[number] for number in range(6)]
    return [{"conversation": list(record.context), "responses": list(record.responses), "id": record.id} for record in records]


@pytest.fixture(scope="module")
def judged_here(model, rows) -> list[Verdict]:
    """The verdicts of engines in this process's Ray. They have ended before the service starts, as there are two cores."""
    with GRM(model, settings=SMALL, concurrency=1) as grm:
        verdicts = grm.score_many(rows, k=4, seed=3, critiques=True, temperature=1.0)
        check_that_cancelling_stops_the_samples(grm, rows[0])
        with pytest.raises(ServingError, match=r"row 0: .*prompt.max_tokens") as error:
            grm.score_many([{"conversation": "word " * 5000, "responses": ["a", "b"]}])
        assert error.value.status == 422
    assert ray.is_initialized(), "a Ray that ran before goes on"
    return verdicts


def check_that_cancelling_stops_the_samples(grm: GRM, row: dict[str, Any]) -> None:
    engine = grm._scorer._engines[0].actor

    async def ask() -> None:
        waiting = asyncio.ensure_future(grm.ascore(row["conversation"], row["responses"], k=64, temperature=1.0))
        while not await engine.in_flight.remote():
            assert not waiting.done()
            await asyncio.sleep(0.01)
        waiting.cancel()
        deadline = time.monotonic() + 60
        while await engine.in_flight.remote():
            assert time.monotonic() < deadline
            await asyncio.sleep(0.01)

    asyncio.run(asyncio.wait_for(ask(), 120))


@pytest.fixture(scope="module")
def service(model, judged_here) -> Iterator[str]:
    from actors.serving.session import running_service
    from launch.commands.serve import free_port
    from rlsys.serving.service import ServiceArguments, service_config

    arguments = ServiceArguments(model=str(model), settings=SMALL)
    config, scorer, _ = service_config(arguments)
    with running_service(arguments, config, scorer, "s3cret", "127.0.0.1", free_port("127.0.0.1", 0)) as running:
        yield running.url


def test_a_service_and_engines_here_give_equal_verdicts(service, judged_here, rows):
    with GRM.connect(service, token="s3cret", concurrency=1) as grm:
        verdicts = grm.score_many(rows, k=4, seed=3, critiques=True, temperature=1.0)
    assert verdicts == judged_here
    assert [len(verdict.samples) for verdict in verdicts] == [4] * len(rows)
    assert len({sample.text for verdict in verdicts for sample in verdict.samples}) > 4


def test_mistakes_are_listed_before_an_engine_starts(model):
    with pytest.raises(ConfigError) as error:
        GRM(model, settings=["rollout.actors=0", "prompt.nothing=1"])
    assert "rollout.actors" in str(error.value) and "prompt.nothing" in str(error.value)
