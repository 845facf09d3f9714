"""A small server of the OpenAI shape, whose answers a test scripts: it counts requests, refuses keys, limits rates, fails and dawdles."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

Answer = Callable[[dict[str, Any], int], "str | tuple[int, dict[str, Any], dict[str, str]]"]
"""(body, number of the attempt on this body, from 0) -> the text, or (status, body, headers)."""


@dataclass
class Peer:
    """What the server was asked, and how it answers."""

    answer: Answer
    key: str | None = None
    """Required key."""
    models: tuple[str, ...] = ("judge",)
    delay_s: float = 0.0
    finish_reason: str = "stop"
    url: str = ""
    bodies: list[dict[str, Any]] = field(default_factory=list)
    """Of all attempts, in the order of arrival."""
    headers: list[dict[str, str]] = field(default_factory=list)
    active: int = 0
    most_active: int = 0

    def app(self) -> FastAPI:
        app = FastAPI()

        @app.get("/v1/models")
        def models(request: Request) -> JSONResponse:
            if self._refused(request):
                return error(401, "Incorrect API key provided")
            return JSONResponse({"object": "list", "data": [{"id": name, "object": "model"} for name in self.models]})

        @app.post("/v1/chat/completions")
        async def completions(request: Request) -> JSONResponse:
            body = await request.json()
            if self._refused(request):
                return error(401, "Incorrect API key provided")
            if body["model"] not in self.models:
                return error(404, f"The model `{body['model']}` does not exist.")
            attempt = self.bodies.count(body)
            self.bodies.append(body)
            self.headers.append(dict(request.headers))
            self.active += 1
            self.most_active = max(self.most_active, self.active)
            try:
                await asyncio.sleep(self.delay_s)
                found = self.answer(body, attempt)
            finally:
                self.active -= 1
            if isinstance(found, tuple):
                status, content, headers = found
                return JSONResponse(content, status, headers)
            usage = {"prompt_tokens": len(body["messages"][0]["content"].split()), "completion_tokens": len(found.split())}
            choice = {"index": 0, "message": {"role": "assistant", "content": found}, "finish_reason": self.finish_reason}
            shape = {"id": "c", "object": "chat.completion", "created": 0, "model": body["model"], "choices": [choice]}
            return JSONResponse(shape | {"usage": usage | {"total_tokens": sum(usage.values())}})

        return app

    def _refused(self, request: Request) -> bool:
        return self.key is not None and request.headers.get("authorization") != f"Bearer {self.key}"


def error(status: int, message: str, headers: dict[str, str] | None = None, code: str | None = None) -> JSONResponse:
    return JSONResponse({"error": {"message": message, "type": "error", "code": code}}, status, headers)


def failure(status: int, message: str, headers: dict[str, str] | None = None, code: str | None = None):
    """An answer of `Peer.answer`: an error of the OpenAI shape."""
    return status, {"error": {"message": message, "type": "error", "code": code}}, headers or {}


@contextmanager
def running(peer: Peer) -> Iterator[Peer]:
    """Serve `peer` on a free port of this machine until the block ends."""
    server = uvicorn.Server(uvicorn.Config(peer.app(), host="127.0.0.1", port=0, log_level="error", lifespan="off"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    ready = threading.Event()
    for _ in range(1000):
        if server.started:
            break
        ready.wait(0.01)
    assert server.started, "the server did not start"
    port = server.servers[0].sockets[0].getsockname()[1]
    peer.url = f"http://127.0.0.1:{port}/v1"
    try:
        yield peer
    finally:
        server.should_exit = server.force_exit = True
        thread.join(10)
