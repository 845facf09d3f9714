"""The HTTP app of a judge: its routes, and what surrounds them. It knows a judge only as a `JudgeBackend`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from fastapi import FastAPI
from starlette.responses import HTMLResponse, JSONResponse, Response

from rlsys.serving.boundary import Boundary
from rlsys.serving.contract import JudgeBackend, ServingError
from rlsys.serving.errors import install_handlers
from rlsys.serving.guard import Guard
from rlsys.serving.limits import Limits
from rlsys.serving.metrics import Metrics
from rlsys.serving.reference import reference_page
from rlsys.serving.routes import ROUTERS


@dataclass(frozen=True)
class Settings:
    """Settings of the app."""

    limits: Limits = field(default_factory=Limits)
    token: str | None = field(default=None, repr=False)
    """Bearer token that every request has to send, except to `rlsys.serving.boundary.PUBLIC`. None: no token is needed."""
    hosts: frozenset[str] | None = None
    """Host names that requests without a token may be sent to. None: any."""


async def _always_ready() -> None:
    pass


def create_app(backend: JudgeBackend, settings: Settings | None = None, ready: Callable[[], Awaitable[None]] = _always_ready) -> FastAPI:
    """Return the app that serves `backend`. Its `state.guard` drains it: `app.state.guard.drain()`.

    Args:
        ready: returns if requests can be answered now, and raises ServingError with the reason otherwise.
    """
    settings, metrics = settings or Settings(), Metrics()
    guard = Guard(backend, settings.limits, metrics)
    app = FastAPI(title="rlsys serve", summary=f"The judge {backend.model}", version=backend.version, docs_url=None, redoc_url=None)
    app.state.guard = guard
    app.add_middleware(Boundary, settings.limits, metrics, settings.token, settings.hosts if settings.token is None else None)
    install_handlers(app)
    for router in ROUTERS:
        app.include_router(router(guard))
    _add_service_routes(app, guard, metrics, ready)
    return app


def _add_service_routes(app: FastAPI, guard: Guard, metrics: Metrics, ready: Callable[[], Awaitable[None]]) -> None:
    @app.get("/healthz", tags=["service"])
    async def healthz() -> JSONResponse:
        """Answers as long as the HTTP server runs."""
        return JSONResponse({"status": "ok"})

    @app.get("/readyz", tags=["service"])
    async def readyz() -> JSONResponse:
        """Answers 200 while requests can be answered, else 503 with the reason."""
        if guard.draining:
            raise ServingError("the service is shutting down.", 503)
        await ready()
        return JSONResponse({"status": "ready", "model": guard.model, "version": guard.version, "in_progress": guard.in_progress})

    @app.get("/metrics", tags=["service"])
    async def prometheus() -> Response:
        """Metrics in Prometheus' text format."""
        return Response(metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return HTMLResponse(reference_page(app.openapi()))
