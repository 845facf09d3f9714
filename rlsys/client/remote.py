"""A judge behind a service: HTTP with bounded retries and waits."""

from __future__ import annotations

import asyncio
import os
import time
from typing import Any
from urllib.parse import urlsplit

import httpx
from pydantic import BaseModel, ValidationError

from rlsys.serving.contract import ScoreRequest, ScoreResponse, ServingError

TOKEN_VARIABLE = "RLSYS_TOKEN"
CONNECT_S = 10.0
"""Seconds until a connection must be open."""
FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 30.0
"""Seconds between tries where the service names none: doubled each time."""
RETRIED = (429, 502, 503)
"""HTTP statuses after which the same request is sent again: too busy, or not ready."""


class _Problem(BaseModel):
    """How services report errors: ours and OpenAI's {"error": {"message"}}, FastAPI's {"detail"}."""

    error: Any = None
    detail: Any = None

    @property
    def message(self) -> str:
        found = self.error.get("message") if isinstance(self.error, dict) else self.error
        return str(found or self.detail or "")


class RemoteJudge:
    """Sends requests to `rlsys serve`.

    Args:
        url: the service's address, for example http://127.0.0.1:8000.
        token: its bearer token; None: the environment variable RLSYS_TOKEN, if it is set.
        timeout_s: seconds that a request may take, with all its tries and the waits between them.

    Raises:
        ValueError: the URL is not one, or the token cannot be sent.
    """

    def __init__(self, url: str, token: str | None = None, timeout_s: float = 600.0):
        self.url, self.timeout_s = _checked_url(url), timeout_s
        token = os.environ.get(TOKEN_VARIABLE, "") if token is None else token
        if not all("!" <= char <= "~" for char in token):
            raise ValueError("token: expected printable ASCII characters without blanks or line ends, found others.")
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._client = httpx.AsyncClient(
            base_url=self.url, headers=headers, timeout=httpx.Timeout(None, connect=CONNECT_S), limits=httpx.Limits(max_connections=None)
        )
        self._answered = False

    def __repr__(self) -> str:
        return self.url

    async def score(self, request: ScoreRequest) -> ScoreResponse:
        """Return the service's answer.

        Raises:
            ServingError: it refused the request, did not answer within `timeout_s`, or cannot be reached.
        """
        reply = await self._post("/v1/score", request.model_dump(exclude_none=True))
        try:
            return ScoreResponse.model_validate_json(reply.content)
        except ValidationError as error:
            problem = error.errors(include_url=False)[0]
            where = ".".join(map(str, problem["loc"])) or "the body"
            raise ServingError(f"{self.url}/v1/score: {where}: {problem['msg']}. Is this `rlsys serve`, of this version?", 502) from error

    async def close(self) -> None:
        await self._client.aclose()

    async def _post(self, route: str, body: dict[str, Any]) -> httpx.Response:
        """Send until the service answers; what it is too busy for is sent again, within the time limit."""
        deadline, wait, last = time.monotonic() + self.timeout_s, FIRST_WAIT_S, None
        while True:
            try:
                async with asyncio.timeout(deadline - time.monotonic()):
                    return await self._post_once(route, body)
            except TimeoutError:
                raise self._too_late(route, last) from None
            except ServingError as error:
                if error.status not in RETRIED or not self._answered:
                    raise
                last = error
            pause = max(last.retry_after_s or wait, FIRST_WAIT_S)
            if time.monotonic() + pause >= deadline:
                raise self._too_late(route, last)
            await asyncio.sleep(pause)
            wait = min(2 * wait, LONGEST_WAIT_S)

    async def _post_once(self, route: str, body: dict[str, Any]) -> httpx.Response:
        try:
            reply = await self._client.post(route, json=body)
        except httpx.TransportError as error:
            found = f"{type(error).__name__}: {error}"
            raise ServingError(f"{self.url}: cannot be reached ({found}). Is `rlsys serve` running there?", 503) from error
        self._answered = True
        if reply.status_code != 200:
            raise self._refusal(route, reply)
        return reply

    def _too_late(self, route: str, last: ServingError | None) -> ServingError:
        limit = f"{self.url}{route}: not answered within timeout_s={self.timeout_s:g}, with all tries{f' (last: {last})' if last else ''}"
        return ServingError(f"{limit}. Raise timeout_s, lower concurrency, or give the service more replicas.", 504)

    def _refusal(self, route: str, reply: httpx.Response) -> ServingError:
        status = reply.status_code
        try:
            message = _Problem.model_validate_json(reply.content).message
        except ValidationError:
            message = reply.text[:200]
        if status == 401:
            message += f" Pass token=..., or set {TOKEN_VARIABLE}."
        if status in (404, 405) or 300 <= status < 400:
            message += " Is this the address of `rlsys serve`?"
        return ServingError(f"{self.url}{route}: HTTP {status}: {message}".strip(), status, _seconds(reply.headers.get("Retry-After")))


def _seconds(retry_after: str | None) -> float | None:
    """Parse a Retry-After header in seconds; None for none, or a date."""
    return float(retry_after) if retry_after is not None and retry_after.isascii() and retry_after.isdigit() else None


def _checked_url(url: str) -> str:
    try:
        parts = urlsplit(url)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        valid = False
    if not valid or parts.query or parts.fragment:
        raise ValueError(f"url {url!r}: expected the address of a service, for example http://127.0.0.1:8000.")
    return url.rstrip("/").removesuffix("/v1")
