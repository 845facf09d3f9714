"""A judge without a model, and HTTP services over it, for tests of clients."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

from scripted_judge import served
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from rlsys.serving.app import Settings, create_app
from rlsys.serving.contract import SampleResult, ScoreRequest, ScoreResponse


def digest(*key: object, below: int = 10) -> int:
    return int.from_bytes(hashlib.blake2b(repr(key).encode(), digest_size=4).digest()) % below


def fake_answer(request: ScoreRequest) -> ScoreResponse:
    """Return scores 1 to 10 that depend on the whole request. Nothing parses if a response says "unparsable"."""
    asked = request.model_dump_json()
    n, k = len(request.responses), request.k or 4
    parses = "unparsable" not in request.responses
    samples = [
        SampleResult(
            scores=[1.0 + digest(asked, response, sample) for response in request.responses] if parses else None,
            order=list(range(n)),
            parse_failure=None if parses else "no_box",
            tokens=5,
            text=f"critique {sample} <b>" if request.critiques else None,
        )
        for sample in range(k)
    ]
    scores = [sum(sample.scores[i] for sample in samples) / k for i in range(n)] if parses else None
    best = max(range(n), key=scores.__getitem__) if scores else None
    return ScoreResponse(
        id=request.id or "made-up",
        scores=scores,
        score_range=(1, 10) if parses else None,
        best=best,
        margin=None if scores is None or n == 1 else sorted(scores)[-1] - sorted(scores)[-2],
        tied=bool(scores) and scores.count(max(scores)) > 1,
        abstained=False,
        parsed=k if parses else 0,
        samples=samples,
        prompt_tokens=10,
        generated_tokens=5 * k,
        strategy=request.strategy or "vote",
        model="fake <model>",
        version="1",
    )


class FakeJudge:
    """A judge in this process, for `GRM.over` and for the service's app.

    Args:
        before: is called with each request, and may raise.
        seconds: how long an answer takes.
    """

    model, version = "fake <model>", "1"

    def __init__(self, before: Callable[[ScoreRequest], None] = lambda request: None, seconds: float = 0.0):
        self.before, self.seconds = before, seconds
        self.asked, self.cancelled, self.at_once, self.most_at_once, self.closed = [], 0, 0, 0, False

    async def score(self, request: ScoreRequest) -> ScoreResponse:
        self.asked.append(request)
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            self.before(request)
            await asyncio.sleep(self.seconds)
            return fake_answer(request)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.at_once -= 1

    async def close(self) -> None:
        self.closed = True

    def __repr__(self) -> str:
        return "fake"


@contextmanager
def fake_service(judge: FakeJudge, token: str | None = None) -> Iterator[str]:
    """Run the service's app over `judge` on a free port; yields its URL."""
    with served(create_app(judge, Settings(token=token))) as url:
        yield url


@contextmanager
def odd_service(answer: Callable[[Request], Awaitable[Response]]) -> Iterator[str]:
    """Serve POST /v1/score by `answer` on a free port; yields the URL."""
    with served(Starlette(routes=[Route("/v1/score", answer, methods=["POST"])])) as url:
        yield url
