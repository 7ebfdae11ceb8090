# SPDX-License-Identifier: Apache-2.0
"""A database behind a real HTTP server on a unix socket, in a thread of its own."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path

import uvicorn
from starlette.applications import Starlette

from statedb import DB
from statedb.web.server import routes


class Server(uvicorn.Server):
    """Says when it listens, and ends when it is told to, so that nobody has to poll."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.listening = threading.Event()

    async def startup(self, sockets: object = None) -> None:
        self._loop, self._ended = asyncio.get_running_loop(), asyncio.Event()
        await super().startup()
        self.listening.set()

    async def main_loop(self) -> None:
        await self.on_tick(0)
        await self._ended.wait()

    async def shutdown(self, sockets: object = None) -> None:
        """Cut what is open: the event loop cancels the answers that are being made."""
        for server in self.servers:
            server.close()
        for connection in list(self.server_state.connections):
            connection.transport.abort()

    def end(self) -> None:
        """Stop the server, from any thread."""
        self._loop.call_soon_threadsafe(self._ended.set)


@contextlib.contextmanager
def served(db: DB, socket: Path) -> Iterator[str]:
    """Serves the database while the block runs; open streams are cut at its end."""
    config = uvicorn.Config(
        Starlette(routes=routes(db)),
        uds=str(socket),
        lifespan="off",
        log_level="critical",
    )
    server = Server(config)
    thread = threading.Thread(target=server.run, name="statedb-server")
    thread.start()
    try:
        assert server.listening.wait(10), "the server did not start"
        yield str(socket)
    finally:
        server.end()
        thread.join(10)
        assert not thread.is_alive(), "the server did not stop"
