"""A judge in memory, as the peer of the HTTP app in tests, and an HTTP client for the app without a network."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import httpx
from fastapi import FastAPI

from rlsys.serving.contract import (
    ChatChoice,
    ChatRequest,
    ChatResponse,
    JudgeBackend,
    SampleDone,
    SampleResult,
    ScoreRequest,
    ScoreResponse,
    ServingError,
    TextDelta,
)


class LengthJudge(JudgeBackend):
    """Scores each response by its length in characters; every second sample of a request does not parse.

    A conversation "wait" waits until `release` is set, "refuse" is refused, and "break" raises an error that no client may read.
    """

    model, version = "length", "v1"

    def __init__(self) -> None:
        self.release = asyncio.Event()
        self.running = 0
        self.cancelled = 0

    async def score(self, request: ScoreRequest) -> ScoreResponse:
        await self._work(request.conversation)
        k, n = request.k or 2, len(request.responses)
        scores = [float(len(response)) for response in request.responses]
        samples = [
            SampleResult(scores=None, order=list(range(n)), parse_failure="no_box", tokens=3, truncated=True)
            if number % 2
            else SampleResult(scores=scores, order=list(range(n)), tokens=5, text="critique" if request.critiques else None)
            for number in range(k)
        ]
        return ScoreResponse(
            id=request.id or "derived",
            scores=scores,
            best=scores.index(max(scores)),
            margin=None if n == 1 else sorted(scores)[-1] - sorted(scores)[-2],
            tied=scores.count(max(scores)) > 1,
            abstained=False,
            parsed=(k + 1) // 2,
            samples=samples,
            prompt_tokens=7,
            generated_tokens=sum(sample.tokens for sample in samples),
            strategy=request.strategy or "vote",
            model=self.model,
            version=self.version,
        )

    async def stream(self, request: ScoreRequest) -> AsyncIterator[TextDelta | SampleDone | ScoreResponse]:
        response = await self.score(request)
        for number, sample in enumerate(response.samples):
            yield TextDelta(number, "crit")
            if request.conversation == "midway":
                raise ServingError("the engine was lost.", 503)
            yield TextDelta(number, "ique\u2028")
            yield SampleDone(number, sample)
        yield response

    async def chat(self, request: ChatRequest) -> ChatResponse:
        await self._work(request.messages[-1].content)
        return ChatResponse(choices=[ChatChoice(text="hello", finish_reason="stop", tokens=1)] * request.n, prompt_tokens=4)

    async def stream_chat(self, request: ChatRequest) -> AsyncIterator[TextDelta | ChatResponse]:
        for number in range(request.n):
            yield TextDelta(number, "hello")
        yield await self.chat(request)

    async def _work(self, what: object) -> None:
        self.running += 1
        try:
            if what == "wait":
                await self.release.wait()
            if what == "refuse":
                raise ServingError("strategy: no such strategy.", 422)
            if what == "break":
                raise RuntimeError("secret of the engine")
            await asyncio.sleep(0)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.running -= 1


def client_of(app: FastAPI, **headers: str) -> httpx.AsyncClient:
    """Return a client that calls `app` in this process."""
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://judge", headers=headers, timeout=60)
