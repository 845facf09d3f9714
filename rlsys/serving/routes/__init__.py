"""The routes of the service, one module for each shape that clients speak.

A module defines `router(judge: Guard) -> APIRouter`; `ROUTERS` lists them. Handlers call the guard, which applies the limits, and let
every `ServingError` through. `rlsys.serving.streams.answer` stops the work when the client goes away.
"""

from __future__ import annotations

from collections.abc import Callable

from fastapi import APIRouter

from rlsys.serving.guard import Guard
from rlsys.serving.routes import nemo_gym, openai, openrlhf, page, rerank, score, slime

ROUTERS: tuple[Callable[[Guard], APIRouter], ...] = (
    page.router,
    score.router,
    openai.router,
    rerank.router,
    openrlhf.router,
    slime.router,
    nemo_gym.router,
)
