"""GET /: a page to try the judge by hand. It has no build step, loads nothing from other hosts, and asks POST /v1/score/stream."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from fastapi import APIRouter
from starlette.responses import Response

from rlsys.serving.boundary import PAGE
from rlsys.serving.guard import Guard
from rlsys.system.local_http import PAGE_HEADERS

STATIC = Path(__file__).parents[1] / "static"
_KINDS = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}


def router(judge: Guard) -> APIRouter:
    """Return the routes of the page's files. They say nothing about the judge, so that they need no token."""
    routes = APIRouter(include_in_schema=False)
    for path in PAGE:
        routes.get(path)(_file(STATIC / (path.removeprefix("/") or "index.html")))
    return routes


def _file(path: Path) -> Callable[[], Coroutine[Any, Any, Response]]:
    body, kind = path.read_bytes(), f"{_KINDS[path.suffix]}; charset=utf-8"

    async def file() -> Response:
        return Response(body, headers=PAGE_HEADERS, media_type=kind)

    return file
