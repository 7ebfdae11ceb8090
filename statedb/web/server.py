# SPDX-License-Identifier: Apache-2.0
"""A database seen over HTTP, read only.

    GET /statedb                       the tables: counts, indexes, columns, initializers
    GET /statedb/dump[/TABLE]          one JSON document with all objects
    GET /statedb/query?table=&kind=&key=&index=&revision=&form=      JSON lines: head, rows, end
    GET /statedb/changes/TABLE?resume=INSTANCE:REVISION&form=        JSON lines, without end

Every answer names the database's instance; a revision means something in its own instance only.
Answers are pulled: the next chunk is made, on a worker thread, when the one before it has left for
the socket, so a big table holds up neither the event loop nor memory. A reader that takes nothing
for `STALL_S`, or falls `MAX_LAG` changes behind, is cut off: what it keeps alive (an old snapshot,
deleted objects) would grow without bound. It can resume.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import anyio
import anyio.to_thread
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from statedb.errors import (
    InstanceMismatch,
    NotSupported,
    RevisionGone,
    StateDBError,
    UnknownIndex,
    UnknownTable,
)
from statedb.shown.answers import dump_chunks, query_chunks, summary
from statedb.shown.plain import json_line
from statedb.shown.queries import At, writable
from statedb.web.sending import HEARTBEAT_S, Sender, Streamed
from statedb.web.streams import ChangeStream

if TYPE_CHECKING:
    from statedb.db import DB

MAX_LAG = 100_000  # revisions a reader may fall behind: what the table keeps for it is bounded
LAG_LOOK_S = 1.0  # between two looks at it, while a reader may be stuck in a write to its socket
MAX_STREAMS = 64  # streams of changes at once; each keeps a change iterator
WORKERS = 4  # threads that make chunks; the other threads of the program's pool stay free

_JSON = "application/json"
_LINES = "application/x-ndjson"


def routes(db: DB, path: str = "/statedb") -> list[Route]:
    """The routes to add to a Starlette application; any of them may be called at any time."""
    return _Outside(db).routes(path)


class _Outside:
    def __init__(self, db: DB) -> None:
        self.db = db
        self.workers: anyio.CapacityLimiter | None = None  # made in the event loop that serves
        self.streams = 0

    def routes(self, path: str) -> list[Route]:
        return [
            Route(path, self._answered(self._summary)),
            Route(f"{path}/dump", self._answered(self._dump)),
            Route(f"{path}/dump/{{table}}", self._answered(self._dump)),
            Route(f"{path}/query", self._answered(self._query)),
            Route(f"{path}/changes/{{table}}", self._answered(self._changes)),
        ]

    def _answered(self, answer: Callable[[Request], Response]) -> Any:
        """An endpoint that turns errors of this package into a status and a JSON object."""

        async def endpoint(request: Request) -> Response:
            try:
                response: Response = await self.in_thread(answer, request)
            except StateDBError as error:
                response = self._refusal(_status(error), error)
            return response

        return endpoint

    def _refusal(self, status: int, error: Exception) -> Response:
        body = {
            "instance": self.db.instance_id,
            "error": str(error),
            "type": type(error).__name__,
        }
        return Response(json_line(body) + b"\n", status, media_type=_JSON)

    async def in_thread(self, function: Callable[..., Any], *args: Any) -> Any:
        if self.workers is None:
            self.workers = anyio.CapacityLimiter(WORKERS)
        return await anyio.to_thread.run_sync(function, *args, limiter=self.workers)

    def _summary(self, request: Request) -> Response:
        return Response(json_line(summary(self.db)) + b"\n", media_type=_JSON)

    def _dump(self, request: Request) -> Response:
        name = request.path_params.get("table")
        at = At.parse(request.query_params.get("revision", ""))
        if name:
            table = self.db.table(name)
            return _Pulled(self, dump_chunks(self.db, [table], at.txn(self.db, table)), _JSON)
        if at.revision:
            raise NotSupported("revisions count in one table: name the table to dump")
        return _Pulled(self, dump_chunks(self.db, self.db.tables(), self.db.read_txn()), _JSON)

    def _query(self, request: Request) -> Response:
        asked = request.query_params
        chunks = query_chunks(
            self.db,
            self.db.table(asked.get("table", "")),
            asked.get("kind", "all"),
            asked.get("key", ""),
            asked.get("index", ""),
            At.parse(asked.get("revision", "")),
            asked.get("form", "object"),
        )
        return _Pulled(self, chunks, _LINES)

    def _changes(self, request: Request) -> Response:
        if self.streams >= MAX_STREAMS:
            return self._refusal(503, StateDBError(f"{MAX_STREAMS} streams of changes are open"))
        stream = ChangeStream(
            self.db,
            writable(self.db, request.path_params["table"]),
            request.query_params.get("resume", ""),
            request.query_params.get("form", "object"),
        )
        return _Followed(self, stream)


def _status(error: StateDBError) -> int:
    match error:
        case UnknownTable() | UnknownIndex():
            return 404
        case InstanceMismatch():
            return 409
        case RevisionGone():
            return 410
    return 400


class _Pulled(Streamed):
    """Sends chunks as the reader takes them."""

    def __init__(self, outside: _Outside, chunks: Iterator[bytes], media_type: str) -> None:
        super().__init__(media_type)
        self._outside = outside
        self._chunks = chunks

    async def send_all(self, sender: Sender) -> None:
        await self._send_chunks(sender, self._chunks)
        await sender.end()

    async def _send_chunks(self, sender: Sender, chunks: Iterator[bytes]) -> None:
        while chunk := await self._outside.in_thread(next, chunks, b""):
            await sender.send(chunk)


class _Followed(_Pulled):
    """A stream of changes: batch after batch, with a heartbeat while nothing changes."""

    def __init__(self, outside: _Outside, stream: ChangeStream) -> None:
        super().__init__(outside, iter(()), _LINES)
        self._stream = stream

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._outside.streams += 1
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._outside.streams -= 1
            with anyio.CancelScope(shield=True):
                await self._outside.in_thread(self._stream.close)

    async def send_all(self, sender: Sender) -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(self._cancel_when_behind, group.cancel_scope)
            while True:
                chunks, changed = await self._outside.in_thread(self._stream.next)
                await self._send_chunks(sender, chunks)
                while not changed.closed:
                    with anyio.move_on_after(HEARTBEAT_S) as idle:
                        await changed.wait()
                    if idle.cancelled_caught:
                        await sender.send(b"\n")

    async def _cancel_when_behind(self, scope: anyio.CancelScope) -> None:
        while self._stream.lag() < MAX_LAG:
            await anyio.sleep(LAG_LOOK_S)
        scope.cancel()
