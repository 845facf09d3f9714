"""Errors as JSON answers: {"error": {"message", "type", "code"}}, the form that OpenAI's clients read."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import ValidationError
from starlette.exceptions import HTTPException

from rlsys.serving.contract import ServingError

LOG = logging.getLogger("rlsys.serving")
SHOWN_PROBLEMS = 5
_KINDS = {401: "authentication_error", 429: "rate_limit_error", 503: "unavailable_error", 504: "timeout_error"}


def error_body(message: str, status: int) -> dict[str, Any]:
    """Return the JSON object for an error."""
    kind = _KINDS.get(status, "invalid_request_error" if status < 500 else "server_error")
    return {"error": {"message": message, "type": kind, "code": status}}


def error_response(error: ServingError) -> JSONResponse:
    """Return the answer for a request that is refused or failed."""
    headers = {} if error.retry_after_s is None else {"Retry-After": str(math.ceil(error.retry_after_s))}
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse(error_body(str(error), error.status), error.status, headers)


def as_serving_error(error: Exception) -> ServingError:
    """Return what a client may know about `error`; an unexpected one is logged, and its text kept from the client."""
    if isinstance(error, ServingError):
        return error
    if isinstance(error, ValidationError):
        return malformed(error.errors(include_url=False, include_input=False))
    LOG.error("a request failed", exc_info=error)
    return ServingError("the service failed to answer; its log says why.", 500)


def malformed(problems: Sequence[Mapping[str, Any]]) -> ServingError:
    """Return the error for pydantic's list of problems; each names its field."""
    found = [_describe(problem) for problem in problems[:SHOWN_PROBLEMS]]
    more = f" And {len(problems) - SHOWN_PROBLEMS} more." if len(problems) > SHOWN_PROBLEMS else ""
    return ServingError(" ".join(found) + more, 400)


def _describe(problem: Mapping[str, Any]) -> str:
    unknown = problem["type"] == "extra_forbidden"
    # Without pydantic's names for the members of a union, such as list[Message].
    where = ".".join(str(part) for part in problem["loc"] if part != "body" and (unknown or "[" not in str(part)))
    if unknown:
        return f"{where}: unknown key."
    if problem["type"] == "json_invalid":
        detail = problem.get("ctx", {}).get("error", "")
        return f"the body is not JSON{f' ({detail})' if detail else ''}."
    return f"{where or 'the body'}: {problem['msg']}."


def install_handlers(app: FastAPI) -> None:
    """Answer every error of `app` in the form of this module."""

    @app.exception_handler(ServingError)
    async def refused(_: Request, error: ServingError) -> JSONResponse:
        return error_response(error)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        return error_response(malformed(error.errors()))

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> JSONResponse:
        known = {
            404: f"{request.url.path}: no such route; GET /docs lists them.",
            405: f"{request.method} {request.url.path}: not allowed.",
        }
        message = known.get(error.status_code, str(error.detail))
        return JSONResponse(error_body(message, error.status_code), error.status_code, error.headers)
