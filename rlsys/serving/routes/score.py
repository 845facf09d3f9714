"""The service's own shape: POST /v1/score, /v1/score/batch and /v1/score/stream."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import StreamingResponse

from rlsys.serving.contract import ScoreRequest, ScoreResponse, ServingError
from rlsys.serving.errors import as_serving_error, error_body
from rlsys.serving.guard import Guard
from rlsys.serving.streams import answer, json_line, score_events, streamed

Row = dict[str, Any]


def router(judge: Guard) -> APIRouter:
    """Return the routes."""
    routes = APIRouter(tags=["score"])

    @routes.post("/v1/score")
    async def score(body: ScoreRequest, request: Request) -> ScoreResponse:
        """Score the responses of one request by the vote of k samples."""
        return await answer(request, judge.score(body))

    @routes.post("/v1/score/stream", response_class=StreamingResponse)
    async def score_stream(body: ScoreRequest, request: Request) -> StreamingResponse:
        """Score, as server-sent events: `text` {sample, text} as it is generated, `sample` {sample, result}, and `score` (as
        /v1/score answers) last; `error` if it fails midway.
        """
        return await streamed(request, score_events(judge.stream(body)), "text/event-stream")

    @routes.post("/v1/score/batch", response_class=StreamingResponse, openapi_extra=_BATCH_BODY)
    async def score_batch(request: Request) -> StreamingResponse:
        """Score a JSONL body, one request of /v1/score per line. The answer is JSONL in any order, one line per line: `line` (its number,
        from 1), and the answer of /v1/score, or `error`.
        """
        return await streamed(request, batch_lines(judge, await request.body()), "application/jsonl")

    return routes


_BATCH_BODY = {
    "requestBody": {"required": True, "content": {"application/jsonl": {"schema": {"type": "string"}}}},
    "responses": {"200": {"description": "JSONL", "content": {"application/jsonl": {"schema": {"type": "string"}}}}},
}


async def batch_lines(judge: Guard, body: bytes) -> AsyncIterator[str]:
    """Yield the answers to the lines of a batch, each as soon as it is known."""
    lines, running = _numbered(body), set[asyncio.Task[Row]]()
    with judge.batch():
        try:
            while True:
                while len(running) < judge.limits.max_pending and (numbered := next(lines, None)):
                    running.add(asyncio.ensure_future(_line_answer(judge, *numbered)))
                if not running:
                    return
                done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    yield json_line(task.result()) + "\n"
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)


def _numbered(body: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield the lines that are not blank, one at a time, with their numbers from 1."""
    number, start = 0, 0
    while start < len(body):
        end = body.find(b"\n", start) % (len(body) + 1)
        number += 1
        if line := body[start:end].strip():
            yield number, line
        start = end + 1


def _parsed(line: bytes) -> Any:
    try:
        return json.loads(line.decode())
    except (ValueError, RecursionError) as error:
        raise ServingError(f"the line is not JSON in UTF-8: {error}.") from error


def _shown_id(row: Any) -> str | int | None:
    """Return the id of a row that may be malformed, to show it with the error."""
    found = row.get("id") if isinstance(row, dict) else None
    return found if isinstance(found, str | int) and not isinstance(found, bool) else None


async def _line_answer(judge: Guard, number: int, line: bytes) -> Row:
    request_id = None
    try:
        judge.limits.check_line(line)
        row = _parsed(line)
        request_id = _shown_id(row)
        response = await judge.score_line(ScoreRequest.model_validate(row))
        return {"line": number} | response.model_dump()
    except Exception as error:  # noqa: BLE001  # one line's failure is that line's answer
        refused = as_serving_error(error)
        return {"line": number, "id": request_id, **error_body(str(refused), refused.status)}
