"""What happens to a request when its replica dies, refuses it, or its client goes away; with handles in memory instead of Serve's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import ActorDiedError, RayTaskError

from actors.serving import backend
from actors.serving.backend import TRIES, ServedJudge
from rlsys.serving.contract import ScoreRequest, ServingError, TextDelta

REQUEST = ScoreRequest(conversation="q", responses=["a"])


class Response:
    """One remote call: awaited, or iterated over."""

    def __init__(self, outcome: Any):
        self.outcome, self.cancelled = outcome, False

    def cancel(self) -> None:
        self.cancelled = True

    def __await__(self) -> Any:
        return self._result().__await__()

    async def _result(self) -> Any:
        if isinstance(self.outcome, Exception):
            raise self.outcome
        if self.outcome == "never":
            await asyncio.Event().wait()
        return self.outcome

    async def __aiter__(self) -> AsyncIterator[Any]:
        for item in self.outcome:
            if isinstance(item, Exception):
                raise item
            yield item


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr(backend, "RETRY_S", 0.0)


def judge_of(*outcomes: Any) -> tuple[ServedJudge, list[Response]]:
    """A judge whose calls have these outcomes, one after the other, and the calls made."""
    calls: list[Response] = []

    def remote(*_: Any) -> Response:
        calls.append(Response(outcomes[len(calls)]))
        return calls[-1]

    methods = {name: SimpleNamespace(remote=remote) for name in ("score", "stream", "chat", "stream_chat", "identity")}
    handle = SimpleNamespace(**methods, options=lambda **_: SimpleNamespace(**methods))
    return ServedJudge(handle), calls


def raised(error: Exception) -> Exception:
    """As a remote call raises what its actor raised."""
    return RayTaskError("score", "traceback", error).as_instanceof_cause()


def run(use: Callable[[], Any]) -> Any:
    return asyncio.run(asyncio.wait_for(use(), 30))


def test_a_request_whose_replica_dies_is_sent_to_another():
    judge, calls = judge_of(ActorDiedError(), ActorDiedError(), "answer")
    assert run(lambda: judge.score(REQUEST)) == "answer" and len(calls) == TRIES


def test_after_three_deaths_the_client_is_reported_to_ask_again():
    judge, calls = judge_of(*[ActorDiedError()] * (TRIES + 1))
    with pytest.raises(ServingError) as caught:
        run(lambda: judge.score(REQUEST))
    assert caught.value.status == 503 and caught.value.retry_after_s and len(calls) == TRIES


def test_a_refusal_reaches_the_client_as_it_is_and_is_not_repeated():
    judge, calls = judge_of(raised(ServingError("k: too many.", 422, 3.0)))
    with pytest.raises(ServingError) as caught:
        run(lambda: judge.score(REQUEST))
    assert (str(caught.value), caught.value.status, caught.value.retry_after_s) == ("k: too many.", 422, 3.0) and len(calls) == 1


def test_cancelling_a_request_cancels_the_replicas_work():
    judge, calls = judge_of("never")

    async def use() -> None:
        task = asyncio.ensure_future(judge.score(REQUEST))
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    run(use)
    assert calls[0].cancelled


def test_a_stream_is_repeated_only_before_its_first_item():
    first, second = TextDelta(0, "a"), TextDelta(0, "b")

    async def items(judge: ServedJudge) -> list[Any]:
        return [item async for item in judge.stream(REQUEST)]

    judge, calls = judge_of([ActorDiedError()], [first, second])
    assert run(lambda: items(judge)) == [first, second] and len(calls) == 2
    judge, calls = judge_of([first, ActorDiedError()], [first, second])
    with pytest.raises(ServingError) as caught:
        run(lambda: items(judge))
    assert caught.value.status == 503 and len(calls) == 1


def test_closing_a_stream_cancels_the_replicas_work():
    judge, calls = judge_of([TextDelta(0, "a"), TextDelta(0, "b")])

    async def use() -> None:
        items = judge.stream(REQUEST)
        await anext(items)
        await items.aclose()

    run(use)
    assert calls[0].cancelled


def test_the_service_is_not_ready_while_no_replica_answers(monkeypatch):
    monkeypatch.setattr(backend, "IDENTITY_S", 0.05)
    judge, _ = judge_of("never")
    with pytest.raises(ServingError) as caught:
        run(judge.ready)
    assert caught.value.status == 503
    run(judge_of({"model": "m", "version": "v"})[0].ready)
