"""The viewer over HTTP: three static files, and JSON documents under /api/."""

from __future__ import annotations

import hashlib
import json
import socket
import sys
from collections.abc import Callable, Mapping
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from rlsys.io.files import finite_json
from rlsys.reporting.view.viewer import NotFound, Viewer
from rlsys.system.local_http import PAGE_HEADERS, own_names
from rlsys.system.printable import printable

STATIC = Path(__file__).parent / "static"
FILES = {
    "/": ("index.html", "text/html"),
    "/view.css": ("view.css", "text/css"),
    "/view.js": ("view.js", "text/javascript"),
    "/render.js": ("render.js", "text/javascript"),
}


def serve(viewer: Viewer, host: str, port: int) -> ThreadingHTTPServer:
    """Bind the viewer's server; the caller runs and closes it.

    Args:
        port: 0 takes a free one, `server_address` says which.

    Raises:
        OSError: the address cannot be bound.
    """
    names = own_names(host)
    kind = Server6 if ":" in host else Server
    return kind((host, port), partial(Handler, viewer, names))


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Print the traceback of a bug; a browser that closes a connection early is none."""
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):
            super().handle_error(request, client_address)


class Server6(Server):
    address_family = socket.AF_INET6


class Handler(BaseHTTPRequestHandler):
    """Answers GET requests.

    Args:
        names: host names that requests may use. On a loopback address, another name means that a foreign page has pointed its own name at
            this machine to read the texts (DNS rebinding). None: any.
    """

    protocol_version = "HTTP/1.1"
    timeout = 60

    def __init__(self, viewer: Viewer, names: frozenset[str] | None, *arguments: Any):
        self._viewer, self._names = viewer, names
        self._answers: Mapping[str, Callable[[Mapping[str, str]], dict[str, Any]]] = {
            "/api/runs": viewer.runs,
            "/api/groups": viewer.groups,
            "/api/group": viewer.group,
            "/api/text": viewer.text,
        }
        super().__init__(*arguments)

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        if self._names is not None and urlsplit(f"//{self.headers.get('Host', '')}").hostname not in self._names:
            self._send(HTTPStatus.FORBIDDEN, "text/plain", b"This viewer answers requests to its own address only.\n")
        elif url.path in FILES:
            name, kind = FILES[url.path]
            self._send(HTTPStatus.OK, kind, (STATIC / name).read_bytes())
        elif url.path in self._answers:
            self._answer(self._answers[url.path], dict(parse_qsl(url.query, keep_blank_values=True)))
        else:
            self._send(HTTPStatus.NOT_FOUND, "text/plain", b"There is no such page.\n")

    def _answer(self, answer: Callable[[Mapping[str, str]], dict[str, Any]], query: Mapping[str, str]) -> None:
        status, document = HTTPStatus.OK, {}
        try:
            document = answer(query)
        except NotFound as error:
            status, document = HTTPStatus.NOT_FOUND, {"error": printable(str(error))}
        except (ValueError, OSError) as error:
            status, document = HTTPStatus.INTERNAL_SERVER_ERROR, {"error": printable(str(error))}
        # ASCII: a lone surrogate has no UTF-8.
        self._send(status, "application/json", json.dumps(finite_json(document), allow_nan=False).encode("ascii"))

    def _send(self, status: HTTPStatus, kind: str, body: bytes) -> None:
        tag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
        if status == HTTPStatus.OK and self.headers.get("If-None-Match") == tag:
            status, body = HTTPStatus.NOT_MODIFIED, b""
        self.send_response(status)
        for name, value in PAGE_HEADERS.items():
            self.send_header(name, value)
        self.send_header("ETag", tag)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Print nothing: the page asks every two seconds."""
