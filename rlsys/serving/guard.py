"""A judge behind limits: what every route calls, whatever its shape."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import aclosing, contextmanager
from typing import TypeVar

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
from rlsys.serving.limits import Limits
from rlsys.serving.metrics import Metrics
from rlsys.serving.tasks import gather_or_cancel

T = TypeVar("T")
DRAIN_RETRY_S = 10.0
LONGEST_RETRY_S = 60.0


class Guard(JudgeBackend):
    """Passes requests on to a backend, within the limits; refuses them at once instead of queueing without end."""

    def __init__(self, backend: JudgeBackend, limits: Limits, metrics: Metrics):
        self._backend, self.limits, self.metrics = backend, limits, metrics
        self.model, self.version = backend.model, backend.version
        self._in_progress = 0
        self._draining = False
        self._waiting = 0
        self._usual_s = 1.0
        self._batches = 0
        self._batch_places = asyncio.Semaphore(max(1, limits.max_pending // 2))

    @property
    def in_progress(self) -> int:
        """Number of judgements and chats that are not answered yet."""
        return self._in_progress

    @property
    def draining(self) -> bool:
        return self._draining

    def drain(self) -> None:
        """Refuse all further requests."""
        self._draining = True

    async def score(self, request: ScoreRequest) -> ScoreResponse:
        self.limits.check_score(request)
        with self._admitted():
            return self._count(await self._in_time(self._backend.score(request)))

    @contextmanager
    def batch(self) -> Iterator[None]:
        """Surround a batch, whose body stays in memory until its last line is answered: only so many are admitted."""
        if self._batches >= self.limits.max_batches:
            raise self._busy(f"{self._batches} batches in progress", "max_batches")
        self._batches += 1
        try:
            yield
        finally:
            self._batches -= 1

    async def score_line(self, request: ScoreRequest) -> ScoreResponse:
        """Score a request of a batch, which waits for its turn instead of being refused."""
        self.limits.check_score(request)
        async with self._batch_places:
            with self._admitted(waited=True):
                return self._count(await self._in_time(self._backend.score(request)))

    async def several(self, judgements: Sequence[Callable[[], Awaitable[T]]]) -> list[T]:
        """Return the results of one request's judgements in order; the first failure, or the caller's cancellation, cancels the rest.

        They wait for their turn, so the request is refused while as many judgements of such requests wait or run as may be in progress.
        """
        if self._waiting >= self.limits.max_pending:
            raise self._busy(f"{self._waiting} judgements of requests with several in progress")
        self._waiting += len(judgements)
        try:
            return await self._in_time(gather_or_cancel([one() for one in judgements]))
        finally:
            self._waiting -= len(judgements)

    async def stream(self, request: ScoreRequest) -> AsyncIterator[TextDelta | SampleDone | ScoreResponse]:
        self.limits.check_score(request)
        with self._admitted():
            async with aclosing(self._items_in_time(self._backend.stream(request))) as items:
                async for item in items:
                    yield self._count(item) if isinstance(item, ScoreResponse) else item

    async def chat(self, request: ChatRequest) -> ChatResponse:
        self.limits.check_chat(request)
        with self._admitted():
            return self._count_chat(await self._in_time(self._backend.chat(request)))

    async def stream_chat(self, request: ChatRequest) -> AsyncIterator[TextDelta | ChatResponse]:
        self.limits.check_chat(request)
        with self._admitted():
            async with aclosing(self._items_in_time(self._backend.stream_chat(request))) as items:
                async for item in items:
                    yield self._count_chat(item) if isinstance(item, ChatResponse) else item

    @contextmanager
    def _admitted(self, waited: bool = False) -> Iterator[None]:
        if self._draining:
            raise ServingError("the service is shutting down; ask another one, or later.", 503, DRAIN_RETRY_S)
        if not waited and self._in_progress >= self.limits.max_pending:
            raise self._busy(f"{self._in_progress} requests in progress")
        began = time.monotonic()
        self._in_progress += 1
        self.metrics.in_progress.set(self._in_progress)
        try:
            yield
            self._usual_s += 0.1 * (time.monotonic() - began - self._usual_s)
        finally:
            self._in_progress -= 1
            self.metrics.in_progress.set(self._in_progress)

    async def _in_time(self, answer: Awaitable[T]) -> T:
        try:
            async with asyncio.timeout(self.limits.max_seconds):
                return await answer
        except TimeoutError as error:
            raise self._too_late() from error

    async def _items_in_time(self, items: AsyncIterator[T]) -> AsyncGenerator[T]:
        deadline = asyncio.get_running_loop().time() + self.limits.max_seconds
        try:
            while True:
                # Not around the whole loop: a time limit must not fire while the caller handles an item.
                async with asyncio.timeout_at(deadline):
                    try:
                        item = await anext(items)
                    except StopAsyncIteration:
                        return
                yield item
        except TimeoutError as error:
            raise self._too_late() from error
        finally:
            await items.aclose()  # type: ignore[attr-defined]  # backends' iterators are generators

    def _busy(self, found: str, limit: str = "max_pending") -> ServingError:
        return self.limits.exceeded(found, limit, 429, retry_after_s=min(LONGEST_RETRY_S, max(1.0, self._usual_s)))

    def _too_late(self) -> ServingError:
        return self.limits.exceeded(f"not finished after {self.limits.max_seconds} s", "max_seconds", 504)

    def _count(self, response: ScoreResponse) -> ScoreResponse:
        for sample in response.samples:
            self.metrics.count_sample(sample)
        self.metrics.tokens.labels("prompt").inc(response.prompt_tokens)
        return response

    def _count_chat(self, response: ChatResponse) -> ChatResponse:
        self.metrics.tokens.labels("prompt").inc(response.prompt_tokens)
        self.metrics.tokens.labels("generated").inc(sum(choice.tokens for choice in response.choices))
        return response
