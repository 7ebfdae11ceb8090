# SPDX-License-Identifier: Apache-2.0
"""Listening sockets, and an HTTP server that a task group ends.

A unix socket has mode 0600. TCP listeners are off unless asked for, and on loopback if no host is
given.
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
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp

from cilia.program.errors import ProgramError

__all__ = ["metrics_routes", "serve", "tcp_socket", "unix_socket"]

BACKLOG = 128


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


class _Server(uvicorn.Server):
    """uvicorn without its own signal handling: the task group ends it."""

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
