"""What happens to every HTTP request before and after its route: token, size, content type, one log line, metrics."""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import time
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rlsys.serving.contract import ServingError
from rlsys.serving.errors import as_serving_error, error_response
from rlsys.serving.limits import MIB, Limits
from rlsys.serving.metrics import Metrics

LOG = logging.getLogger("rlsys.serving.requests")
PAGE = ("/", "/serve.css", "/serve.js", "/votes.js")
"""The files of the page, which asks for the token itself."""
PUBLIC = frozenset({"/healthz", "/readyz", *PAGE})
"""Routes whose GET needs no token: the page, and what probes ask."""
BATCHES = frozenset({"/v1/score/batch"})
"""Routes whose body is JSONL, with a size limit of its own."""
_JSON = ("application/json",)
_JSONL = ("application/jsonl", "application/x-ndjson", "application/json")


class Boundary:
    """ASGI middleware around all routes.

    Args:
        hosts: names that requests may have in their Host header. Without a token, another name means that a foreign page has pointed its
            own name at this machine to reach the service (DNS rebinding). None: any.
    """

    def __init__(self, app: ASGIApp, limits: Limits, metrics: Metrics, token: str | None, hosts: frozenset[str] | None = None):
        self._app, self._limits, self._metrics, self._token, self._hosts = app, limits, metrics, token, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        began, status = time.monotonic(), 0

        async def noting_status(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, await self._checked(scope, receive), noting_status)
        except Exception as error:  # whatever went wrong, the client gets an answer
            if status:
                raise  # The answer has begun: closing the connection is all that tells the client.
            await error_response(as_serving_error(error))(scope, receive, noting_status)
        finally:
            self._record(scope, status or 499, time.monotonic() - began)

    async def _checked(self, scope: Scope, receive: Receive) -> Receive:
        """Check the request's head and read its body; returns the `receive` for the route."""
        headers, path = {name.lower(): value for name, value in scope["headers"]}, _route_path(scope)
        self._check_host(headers.get(b"host", b""))
        if path not in PUBLIC or scope["method"] not in ("GET", "HEAD"):
            self._check_token(headers.get(b"authorization", b""))
        if scope["method"] not in ("POST", "PUT", "PATCH"):
            return receive
        types, limit = (_JSONL, "max_batch_mib") if path in BATCHES else (_JSON, "max_body_mib")
        _check_content_type(headers.get(b"content-type", b""), types)
        announced = headers.get(b"content-length", b"")
        self._check_size(int(announced) if announced.isdigit() else 0, limit)
        try:
            async with asyncio.timeout(self._limits.max_seconds):
                return _replayed(await self._body(receive, limit), receive)
        except TimeoutError:
            found = f"the body did not arrive within {self._limits.max_seconds} s"
            raise self._limits.exceeded(found, "max_seconds", 408) from None

    async def _body(self, receive: Receive, limit: str) -> bytes:
        body, more = bytearray(), True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ServingError("the client went away.", 499)
            body += message.get("body", b"")
            self._check_size(len(body), limit)
            more = message.get("more_body", False)
        return bytes(body)

    def _check_size(self, size: int, limit: str) -> None:
        if size > getattr(self._limits, limit) * MIB:
            raise self._limits.exceeded(f"the body has {size / MIB:.1f} MiB or more", limit, 413)

    def _check_host(self, given: bytes) -> None:
        if self._hosts is not None and _host_name(given) not in self._hosts:
            known = ", ".join(sorted(self._hosts))
            raise ServingError(f"this service has no token, and answers only requests to its own address: {known} as the Host.", 403)

    def _check_token(self, given: bytes) -> None:
        if self._token is None:
            return
        scheme, _, token = given.partition(b" ")
        if scheme.lower() != b"bearer" or not hmac.compare_digest(token.strip(b" "), self._token.encode()):
            found = "another one" if given else "none"
            raise ServingError(f"expected the header Authorization: Bearer TOKEN with the service's token, found {found}.", 401)

    def _record(self, scope: Scope, status: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", "other")  # a path made up by a client must not become a label
        self._metrics.requests.labels(route, str(status)).inc()
        self._metrics.latency.labels(route).observe(seconds)
        client = (scope.get("client") or ("-",))[0]
        # As JSON, so that nothing in a path can begin a line of its own.
        LOG.info("%s %s %d %.3f s from %s", scope["method"], json.dumps(scope["path"][:200]), status, seconds, client)


def _route_path(scope: Scope) -> str:
    """Return the path as routes know it, without the prefix that the application is served under."""
    prefix, path = scope.get("root_path", "").rstrip("/"), str(scope["path"])
    return path.removeprefix(prefix) if path.startswith(f"{prefix}/") else path


def _host_name(given: bytes) -> str | None:
    try:
        return urlsplit(f"//{given.decode('latin-1')}").hostname
    except ValueError:  # such as [ without ]
        return None


def _replayed(body: bytes, receive: Receive) -> Receive:
    """Return a `receive` that first returns a body that was read already."""
    waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return waiting.pop() if waiting else await receive()

    return replay


def _check_content_type(given: bytes, expected: tuple[str, ...]) -> None:
    # A page of another site may send other types to a local service without the browser asking first.
    kind = given.decode("latin-1").partition(";")[0].strip().lower()
    if kind not in expected:
        found = json.dumps(kind[:80]) if kind else "none"
        raise ServingError(f"expected the header Content-Type: {' or '.join(expected)}, found {found}.", 415)
