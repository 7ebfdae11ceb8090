# SPDX-License-Identifier: Apache-2.0
"""`GET /events?kinds=drop,trace`: what the datapath reports from now on, without end."""

from __future__ import annotations

from typing import Final

import anyio
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import BaseRoute, Route

from bpf.events import EventKind
from cilia.flows.listener import Listener
from cilia.flows.reader import EventReader
from cilia.flows.wire import ALIVE, PATH
from statedb.web.sending import HEARTBEAT_S, Sender, Streamed

__all__ = ["event_routes"]

#: Each may have a full queue.
MAX_LISTENERS: Final = 16


def event_routes(reader: EventReader) -> list[BaseRoute]:
    """Return the path at which events are listened to."""

    def listen(request: Request) -> Response:
        try:
            kinds = _kinds(request.query_params.get("kinds", ""))
        except KeyError as error:
            return PlainTextResponse(f"no kind of events is called {error}", 400)
        if reader.listeners >= MAX_LISTENERS:
            return PlainTextResponse(f"{MAX_LISTENERS} commands listen to events already", 503)
        return _Listened(reader, kinds)

    async def answer(request: Request) -> Response:
        return listen(request)

    return [Route(PATH, answer)]


def _kinds(names: str) -> frozenset[EventKind]:
    """Raises: KeyError for a name of no kind."""
    if not names:
        return frozenset(EventKind)
    return frozenset(EventKind[name.upper()] for name in names.split(","))


class _Listened(Streamed):
    """Sends frames until the listener goes away or hangs."""

    def __init__(self, reader: EventReader, kinds: frozenset[EventKind]) -> None:
        super().__init__("application/octet-stream")
        self._reader = reader
        self._kinds = kinds

    async def send_all(self, sender: Sender) -> None:
        with self._reader.listening(Listener(self._kinds)) as listener:
            while True:
                frame = ALIVE
                with anyio.move_on_after(HEARTBEAT_S):
                    frame = await listener.next()
                await sender.send(frame)
