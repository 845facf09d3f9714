"""Answers that end when the client goes away, and answers that are sent while they are made."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Coroutine
from typing import Any, TypeVar

from fastapi import Request
from starlette.responses import StreamingResponse

from rlsys.io.files import finite_json
from rlsys.serving.contract import SampleDone, ScoreResponse, ServingError, TextDelta
from rlsys.serving.errors import as_serving_error, error_body

T = TypeVar("T")


async def answer(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Return the result of `work`, which is cancelled if the client goes away first."""
    working, gone = asyncio.ensure_future(work), asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait((working, gone), return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ServingError("the client went away.", 499)
    finally:
        for task in (working, gone):
            task.cancel()
        await asyncio.gather(working, gone, return_exceptions=True)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def streamed(request: Request, lines: AsyncIterator[str], media_type: str) -> StreamingResponse:
    """Return an answer that sends `lines` as they come; an error before the first one is raised.

    Closing the connection closes `lines`.
    """

    async def begin() -> str | None:
        return await anext(lines, None)

    first = await answer(request, begin())

    async def body() -> AsyncIterator[str]:
        try:
            if first is not None:
                yield first
            async for line in lines:
                yield line
        finally:
            await lines.aclose()  # type: ignore[attr-defined]  # generators

    return StreamingResponse(body(), media_type=media_type)


async def score_events(items: AsyncIterator[TextDelta | SampleDone | ScoreResponse]) -> AsyncIterator[str]:
    """Yield server-sent events: text {sample, text}, sample {sample, result}, score (the response), and error."""
    sent = False
    try:
        async for item in items:
            if isinstance(item, TextDelta):
                yield event("text", json_line({"sample": item.sample, "text": item.text}))
            elif isinstance(item, SampleDone):
                yield event("sample", json_line({"sample": item.sample, "result": item.result.model_dump()}))
            else:
                yield event("score", json_line(item.model_dump()))
            sent = True
    except Exception as error:  # the status is sent already: the error is an event
        if not sent:
            raise
        refused = as_serving_error(error)
        yield event("error", json_line(error_body(str(refused), refused.status)))
    finally:
        await items.aclose()  # type: ignore[attr-defined]  # generators


def event(name: str, data: str) -> str:
    """Return one server-sent event."""
    return f"event: {name}\ndata: {data}\n\n"


def json_line(value: Any) -> str:
    """Return JSON in which nothing can end the line, whatever separators a text contains; NaN and infinities become null."""
    return json.dumps(finite_json(value), allow_nan=False, ensure_ascii=True, separators=(",", ":"))
