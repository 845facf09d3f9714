"""POST /v1/chat/completions and GET /v1/models, as OpenAI's clients ask: plain chat with the judge's model, and judgements."""

from __future__ import annotations

import time
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from rlsys.io.files import finite_json
from rlsys.serving.completions import Answering, Chatting, Completion, Judging, completion, completion_events
from rlsys.serving.contract import ServingError
from rlsys.serving.guard import Guard
from rlsys.serving.openai_shape import CompletionRequest
from rlsys.serving.streams import answer, streamed

JUDGE = ":judge"
"""Ends the name of the model that judges the conversation's trailing assistant messages."""


def router(judge: Guard) -> APIRouter:
    """Return the routes."""
    routes, created = APIRouter(tags=["OpenAI"]), int(time.time())
    models = {name: {"id": name, "object": "model", "created": created, "owned_by": "rlsys"} for name in (judge.model, judge.model + JUDGE)}

    @routes.get("/v1/models", summary="Models")
    async def list_models() -> dict[str, Any]:
        """List the judge's model for plain chat, and its name for judgements."""
        return {"object": "list", "data": list(models.values())}

    @routes.get("/v1/models/{name:path}", summary="A model")
    async def get_model(name: str) -> dict[str, Any]:
        """Return one model."""
        _check_model(name, models)
        return models[name]

    @routes.post("/v1/chat/completions", summary="Chat completions", response_class=JSONResponse, response_model=None)
    async def complete(request: Request, body: CompletionRequest) -> Response:
        """Answer the conversation; or judge it, if the model's name ends in `:judge`.

        Such a conversation ends with the candidate responses, one assistant message each. Every choice is one sample: its text, the scores
        in the request's order, and the order that it was shown; `judgement` is the vote over the n samples.
        """
        _check_model(body.model, models)
        answering: Answering = Judging(judge, body) if body.model.endswith(JUDGE) and body.model != judge.model else Chatting(judge, body)
        about = Completion(body.model, judge.version)
        if body.stream:
            return await streamed(request, completion_events(answering, about, body.include_usage), "text/event-stream")
        return JSONResponse(finite_json(await answer(request, completion(answering, about))))

    return routes


def _check_model(name: str, models: dict[str, dict[str, Any]]) -> None:
    if name not in models:
        raise ServingError(f"model: expected {' or '.join(map(repr, models))}, found {name[:200]!r}.", 404)
