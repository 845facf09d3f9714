"""A judge whose scores stand in the responses, and the HTTP app over it on a real port."""

from __future__ import annotations

import asyncio
import re
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager

import uvicorn
from fastapi import FastAPI

from rlsys.prompts.rendering import seed_for, shuffled
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


class ScriptedJudge(JudgeBackend):
    """Scores "... score=7 ..." with 7, and any other response with 1; in 0..1, and only for "score=1", if it is alone.

    A conversation with "unparsed" has no scores at all, one with "lost" fails midway, one with "wait" waits for `release`. Requests are
    kept in `requests`. Orders depend on the seed, and texts speak of responses in the order shown, as a real judge's do.
    """

    model, version = "scripted", "v1"

    def __init__(self, meta_rewards: bool = False) -> None:
        self.requests: list[ScoreRequest] = []
        self.chats: list[ChatRequest] = []
        self.release = threading.Event()
        self.running = self.cancelled = 0
        self.seconds = 0.0
        self._meta_rewards = meta_rewards

    async def score(self, request: ScoreRequest) -> ScoreResponse:
        await self._admit(request)
        n, parsed = len(request.responses), not _says(request, "unparsed")
        scores = [_score(response, alone=n == 1) for response in request.responses]
        samples = [self._sample(request, scores if parsed else None, number) for number in range(request.k or 2)]
        top = max(scores)
        return ScoreResponse(
            id=request.id or "derived",
            scores=scores if parsed else None,
            score_range=(0, 1) if n == 1 else (1, 10),
            best=scores.index(top) if parsed else None,
            margin=top - sorted(scores)[-2] if parsed and n > 1 else None,
            tied=parsed and scores.count(top) > 1,
            abstained=False,
            parsed=len(samples) if parsed else 0,
            samples=samples,
            prompt_tokens=7,
            generated_tokens=sum(sample.tokens for sample in samples),
            strategy=request.strategy or "vote",
            model=self.model,
            version=self.version,
        )

    async def stream(self, request: ScoreRequest) -> AsyncIterator[TextDelta | SampleDone | ScoreResponse]:
        response = await self.score(request)
        texts = [sample.text or "" for sample in response.samples]
        for number, text in enumerate(texts):
            yield TextDelta(number, text[: len(text) // 2])
        if _says(request, "lost"):
            raise ServingError("the engine was lost.", 503, 1.0)
        for number, (sample, text) in enumerate(zip(response.samples, texts)):
            yield TextDelta(number, text[len(text) // 2 :])
            yield SampleDone(number, sample)
        yield response

    async def chat(self, request: ChatRequest) -> ChatResponse:
        self.chats.append(request)
        choices = [
            ChatChoice(
                text=f"{request.messages[-1].content} {number}", finish_reason="length" if request.max_tokens == 1 else "stop", tokens=2
            )
            for number in range(request.n)
        ]
        return ChatResponse(choices=choices, prompt_tokens=5)

    async def stream_chat(self, request: ChatRequest) -> AsyncIterator[TextDelta | ChatResponse]:
        response = await self.chat(request)
        for number, choice in enumerate(response.choices):
            for word in re.split("(?= )", choice.text):
                yield TextDelta(number, word)
        yield response

    async def _admit(self, request: ScoreRequest) -> None:
        self.requests.append(request)
        self.running += 1
        try:
            while _says(request, "wait") and not self.release.is_set():
                await asyncio.sleep(0.01)
            await asyncio.sleep(self.seconds)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.running -= 1

    def _sample(self, request: ScoreRequest, scores: list[float] | None, number: int) -> SampleResult:
        order = shuffled(len(request.responses), request.seed, number)
        box = "none" if scores is None else ", ".join(f"{scores[index]:g}" for index in order)
        shown = " ".join(f"Response {place + 1}: {request.responses[index][:200]}" for place, index in enumerate(order))
        return SampleResult(
            scores=scores,
            order=order,
            parse_failure="no_box" if scores is None else None,
            meta_reward=seed_for(number) % 9 - 4.5 if self._meta_rewards else None,
            tokens=4,
            text=f"Criteria {request.principles or number}. {shown} Scores: \\boxed{{{box}}}" if request.critiques else None,
        )


def _score(response: str, alone: bool) -> float:
    found = re.search(r"score=(\d+)", response)
    score = min(10, int(found[1])) if found else 1
    return float(found is not None and score == 1) if alone else float(max(1, score))


def _says(request: ScoreRequest, word: str) -> bool:
    conversation = request.conversation
    return word in (conversation if isinstance(conversation, str) else " ".join(message.content for message in conversation))


@contextmanager
def served(app: FastAPI) -> Iterator[str]:
    """Serve the app on a free port of this machine; yield its address."""
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="warning", lifespan="off"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        deadline = time.monotonic() + 60
        while not server.started:
            assert thread.is_alive() and time.monotonic() < deadline, "uvicorn did not start"
            time.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(30)
