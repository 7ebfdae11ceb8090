# SPDX-License-Identifier: Apache-2.0
"""HTTP of the agent: everything on a unix socket of mode 0600, metrics and health also over TCP.

Table dumps never leave the socket. The TCP listeners are off unless asked for, each answers its one
path only.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import uvicorn
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp

from cilia.agent.errors import AgentError
from cilia.agent.status import StatusView

__all__ = ["health_app", "metrics_app", "serve", "tcp_socket", "unix_socket"]

BACKLOG = 128


def health_app(status: StatusView) -> Starlette:
    return Starlette(routes=health_routes(status))


def metrics_app(registry: CollectorRegistry) -> Starlette:
    return Starlette(routes=metrics_routes(registry))


def health_routes(status: StatusView) -> list[BaseRoute]:
    """`/healthz`: 200 while nothing is degraded, else 503, with the degraded components."""

    def healthz(_: Request) -> Response:
        degraded = status.degraded()
        body = {"status": "degraded" if degraded else "ok", "degraded": degraded}
        return JSONResponse(body, status_code=503 if degraded else 200)

    return [Route("/healthz", healthz)]


def metrics_routes(registry: CollectorRegistry) -> list[BaseRoute]:
    def metrics(_: Request) -> Response:
        return PlainTextResponse(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    return [Route("/metrics", metrics)]


def status_routes(status: StatusView) -> list[BaseRoute]:
    return [Route("/status", lambda _: JSONResponse(status.as_dict()))]


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
        AgentError: the address cannot be bound; names the option.
    """
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, int(port)), family=family, backlog=BACKLOG)
    except OSError as error:
        raise AgentError(f"{option}={address}: {error.strerror}") from None


class _Server(uvicorn.Server):
    """uvicorn without its own signal handling: the agent's task group ends it."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def serve(app: ASGIApp, listener: socket.socket) -> None:
    """Serve `app` on a listening socket until cancelled; open streams end with the event loop."""
    config = uvicorn.Config(app, log_config=None, access_log=False, lifespan="off")
    try:
        await _Server(config).serve(sockets=[listener])
    finally:
        listener.close()
