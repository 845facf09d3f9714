"""The judge replicas as one `JudgeBackend`: routes to them, stops their work with the caller's, and asks another one if one dies."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from ray.exceptions import ActorDiedError, ActorUnavailableError, RayError
from ray.serve.exceptions import RayServeException, RequestCancelledError
from ray.serve.handle import DeploymentHandle

from rlsys.serving.contract import (
    ChatRequest,
    ChatResponse,
    JudgeBackend,
    SampleDone,
    ScoreRequest,
    ScoreResponse,
    ServingError,
    TextDelta,
)

TRIES = 3
"""Replicas that a request is sent to, one after the other, if they die."""
RETRY_S = 1.0
"""Seconds before the next try, in which the router hears of the death."""
IDENTITY_S = 10.0
"""Seconds in which a replica has to answer for the service to be ready."""
_DEAD = (ActorDiedError, ActorUnavailableError)


class ServedJudge(JudgeBackend):
    """Sends every request to one of the replicas behind `handle`."""

    def __init__(self, handle: DeploymentHandle):
        self._handle = handle
        self._streaming = handle.options(stream=True)

    async def learn_identity(self) -> None:
        """Ask a replica for model and version, once at the start."""
        found = await self._handle.identity.remote()
        self.model, self.version = found["model"], found["version"]

    async def ready(self) -> None:
        """Return if a replica answers.

        Raises:
            ServingError: none does.
        """
        try:
            await asyncio.wait_for(self._call(self._handle.identity), IDENTITY_S)
        except (TimeoutError, ServingError) as error:
            raise ServingError("no engine answers; they are starting, or busy.", 503, IDENTITY_S) from error

    async def score(self, request: ScoreRequest) -> ScoreResponse:
        return await self._call(self._handle.score, request)

    def stream(self, request: ScoreRequest) -> AsyncIterator[TextDelta | SampleDone | ScoreResponse]:
        return self._stream(self._streaming.stream, request)

    async def chat(self, request: ChatRequest) -> ChatResponse:
        return await self._call(self._handle.chat, request)

    def stream_chat(self, request: ChatRequest) -> AsyncIterator[TextDelta | ChatResponse]:
        return self._stream(self._streaming.stream_chat, request)

    async def _call(self, method: Any, *arguments: Any) -> Any:
        """Call a replica. One that dies is replaced by another: the same request has the same answer."""
        for tries_left in reversed(range(TRIES)):
            response = method.remote(*arguments)
            try:
                return await response
            except asyncio.CancelledError:
                response.cancel()
                raise
            except (RayError, RayServeException) as error:
                if not (tries_left and isinstance(error, _DEAD)):
                    raise serving_error(error) from error
            await asyncio.sleep(RETRY_S)
        raise AssertionError

    async def _stream(self, method: Any, request: Any) -> AsyncIterator[Any]:
        """Call a replica and pass on what it yields. What was yielded cannot be taken back, so there is no second try after that."""
        for tries_left in reversed(range(TRIES)):
            items, begun = method.remote(request), False
            try:
                async for item in items:
                    begun = True
                    yield item
                return
            except (RayError, RayServeException) as error:
                if begun or not (tries_left and isinstance(error, _DEAD)):
                    raise serving_error(error) from error
            finally:
                items.cancel()
            await asyncio.sleep(RETRY_S)


def serving_error(error: Exception) -> Exception:
    """Return what a failed remote call means for the client: the ServingError that the replica raised, if it did."""
    cause: Any = getattr(error, "cause", None)
    if isinstance(cause, ServingError):
        return cause
    if isinstance(error, ServingError):
        return ServingError(str(error.args[0]) if error.args else str(error), error.status, error.retry_after_s)
    if isinstance(error, (*_DEAD, RequestCancelledError)):
        return ServingError("the engine that computed this was lost, and so were those asked next; ask again.", 503, 10.0)
    return error
