# SPDX-License-Identifier: Apache-2.0
"""Listening sockets, and an HTTP server that a task group ends.

A unix socket has mode 0600. TCP listeners are off unless asked for, and on loopback if no host is
given. Every listener bounds its connections in number and the wait for a request in time.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import socket
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import h11
import msgspec
import uvicorn
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from cilia.api.client import DEADLINE
from cilia.program.errors import ProgramError
from cilia.program.http_log import take_over

__all__ = [
    "BadBody",
    "allow_many_files",
    "application",
    "json_object",
    "metrics_routes",
    "serve",
    "tcp_socket",
    "unix_socket",
    "within_deadline",
]

BACKLOG = 128
#: Connections of one listener at a time: scrapers, probes and people's commands are few.
MAX_CONNECTIONS = 256
#: Longest that a client may take with the head of its first request, in seconds.
REQUEST_TIMEOUT_S = 5.0
# The body of a request may be as long as the files of a line of the shell.
MOST_BYTES = 16 << 20


def application(routes: Sequence[BaseRoute]) -> Starlette:
    """Answer these paths and no others: to redirect from one with a slash at its end, the library
    decodes whatever a client wrote behind it.
    """
    app = Starlette(routes=routes)
    app.router.redirect_slashes = False
    return app


def allow_many_files(least: int = 0) -> None:
    """Raise the soft limit of open files to the hard one: the customary 1024 is for `select`.

    Raises:
        ProgramError: the hard limit is below `least`.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if hard < least:
        raise ProgramError(
            f"this process may open {hard} files, and needs {least} or more: raise the hard limit"
            " (LimitNOFILE= of a systemd unit, `ulimit -Hn` of a shell, --ulimit of a container)"
        )


class BadBody(ValueError):
    """The body of a request is not what is expected; the text says what is."""


async def json_object(request: Request) -> dict[str, Any]:
    """Return the body of a request, a JSON object of bounded length.

    Raises BadBody.
    """
    parts, size = [], 0
    async for part in request.stream():
        parts.append(part)
        size += len(part)
        if size > MOST_BYTES:
            raise BadBody(f"the body is longer than {MOST_BYTES} bytes")
    try:
        body = msgspec.json.decode(b"".join(parts))
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise BadBody(f"the body is no JSON: {error}") from None
    if not isinstance(body, dict):
        raise BadBody("the body is no JSON object")
    return body


def metrics_routes(registry: CollectorRegistry) -> list[BaseRoute]:
    def metrics(_: Request) -> Response:
        return PlainTextResponse(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    return [Route("/metrics", metrics)]


def unix_socket(path: Path) -> socket.socket:
    """A listening socket of mode 0600; whoever holds the instance lock may replace a dead one."""
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    previous = os.umask(0o177)
    try:
        listener.bind(str(path))
    finally:
        os.umask(previous)
    listener.listen(BACKLOG)
    return listener


def tcp_socket(option: str, address: str) -> socket.socket:
    """A listening TCP socket on HOST:PORT or [V6]:PORT.

    Raises:
        ProgramError: the address cannot be bound; names the option.
    """
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, int(port)), family=family, backlog=BACKLOG)
    except OSError as error:
        raise ProgramError(f"{option}={address}: {error.strerror}") from None


class _BoundedProtocol(H11Protocol):
    """Refuses connections above a number, and ends those that do not send a request in time.

    Otherwise anybody who reaches a listener can take all descriptors of the process by connecting.
    """

    _refused = False
    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        if len(self.connections) >= MAX_CONNECTIONS:
            self._refused = True
            transport.write(_refusal())
            transport.close()
            return
        super().connection_made(transport)
        self._deadline = self.loop.call_later(REQUEST_TIMEOUT_S, self._end_without_request)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        if not self._refused:
            super().connection_lost(exc)

    def _end_without_request(self) -> None:
        if self.conn.their_state is h11.IDLE:
            self.transport.close()


def _refusal() -> bytes:
    """The answer to a connection that is one too many; whoever sent it is told who is busy."""
    text = (
        f"the process {os.getpid()} serves its {MAX_CONNECTIONS} connections already; try again, or"
        " look who holds them (`ss -xp`, `ss -tp`)\n"
    )
    head = (
        "HTTP/1.1 503 Service Unavailable\r\nContent-Type: text/plain; charset=utf-8\r\n"
        f"Content-Length: {len(text)}\r\nConnection: close\r\n\r\n"
    )
    return f"{head}{text}".encode()


class _Server(uvicorn.Server):
    """uvicorn without its own signal handling: the task group ends it."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def within_deadline(app: ASGIApp) -> ASGIApp:
    """Refuse requests that nobody waits for any more: the sender gave up while this program was
    stopped or busy, and must not be surprised by what it does later.
    """

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and _is_late(Headers(scope=scope).get(DEADLINE, "")):
            refusal = PlainTextResponse("nobody waits for this any more", status_code=408)
            await refusal(scope, receive, send)
            return
        await app(scope, receive, send)

    return answer


def _is_late(deadline: str) -> bool:
    try:
        return bool(deadline) and time.monotonic() > float(deadline)
    except ValueError:
        return False


async def serve(app: ASGIApp, listener: socket.socket) -> None:
    """Serve `app` on a listening socket until cancelled; open streams end with the event loop."""
    take_over()
    config = uvicorn.Config(
        app,
        http=_BoundedProtocol,
        backlog=BACKLOG,  # so many are accepted at once, before the first is refused
        log_config=None,
        access_log=False,
        lifespan="off",
    )
    try:
        await _Server(config).serve(sockets=[listener])
    finally:
        listener.close()
