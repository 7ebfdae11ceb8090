# SPDX-License-Identifier: Apache-2.0
"""The HTTP answers: what is in them, and how they behave with big tables and slow readers."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from starlette.applications import Starlette
from starlette.types import Receive, Scope, Send

from statedb import DB, Index, RWTable, new_table
from statedb.web import sending, server
from statedb.web.server import routes
from tests.statedb.serving import served
from tests.statedb_application import Book, Library, Shelf


class Reader:
    """One request to the application, whose answer is taken only as fast as the test says."""

    def __init__(self, app: Starlette, url: str, method: str = "GET") -> None:
        path, _, query = url.partition("?")
        self._app = app
        self._scope: dict[str, Any] = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": method,
            "path": path,
            "raw_path": path.encode(),
            "root_path": "",
            "scheme": "http",
            "query_string": query.encode(),
            "headers": [],
            "server": ("localhost", 80),
            "client": None,
        }
        self.status = 0
        self.body = b""
        self.ended = False  # the answer has its end
        self.sent = 0  # chunks
        self.offered = anyio.Event()  # the first chunk
        self.taking = anyio.Event()
        self.gone = anyio.Event()
        self.progress = anyio.Event()

    async def run(self) -> None:
        self._asked = False
        await self._app(self._scope, self._receive, self._send)

    async def _receive(self) -> dict[str, Any]:
        if not self._asked:
            self._asked = True
            return {"type": "http.request", "body": b"", "more_body": False}
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            return
        self.offered.set()
        await self.taking.wait()
        self.body += message.get("body", b"")
        self.sent += 1
        self.ended = not message.get("more_body", False)
        self.progress.set()
        self.progress = anyio.Event()

    async def until(self, holds: Callable[[], bool]) -> None:
        with anyio.fail_after(5):
            while not holds():
                await self.progress.wait()

    @property
    def lines(self) -> list[Any]:
        return [json.loads(line) for line in self.body.split(b"\n") if line]


async def get(db: DB, url: str) -> Reader:
    reader = Reader(Starlette(routes=routes(db)), url)
    reader.taking.set()
    await reader.run()
    return reader


@asynccontextmanager
async def reading(db: DB, url: str) -> AsyncIterator[Reader]:
    """A request that goes on while the block runs."""
    reader = Reader(Starlette(routes=routes(db)), url)
    async with anyio.create_task_group() as group:
        group.start_soon(reader.run)
        yield reader
        reader.gone.set()


@pytest.fixture
def library() -> Library:
    library = Library(["--history=5"])
    with library.db.write_txn(library.books) as wtxn:
        library.books.insert(wtxn, Book("Emma", 1815))
        library.books.insert(wtxn, Book("Walden", 1854))
    return library


async def test_summary_describes_tables_by_name(library: Library) -> None:
    answer = await get(library.db, "/statedb")
    assert json.loads(answer.body) == {
        "instance": library.db.instance_id,
        "tables": [
            {
                "name": "books",
                "objects": 2,
                "deleted": 0,
                "revision": 2,
                "type": "Book",
                "indexes": ["title", "year", "tag"],
                "columns": ["Title", "Year", "Author", "Tags"],
                "pending_initializers": [],
            },
            {
                "name": "shelves",
                "objects": 0,
                "deleted": 0,
                "revision": 0,
                "type": "Shelf",
                "indexes": ["number", "room"],
                "columns": ["Number", "RoomName", "Holds"],
                "pending_initializers": [],
            },
        ],
        "oldest_snapshot": None,
    }


@pytest.mark.parametrize(
    ("url", "status", "kind"),
    [
        ("/statedb/dump/nothing", 404, "UnknownTable"),
        ("/statedb/query?table=nothing", 404, "UnknownTable"),
        ("/statedb/query", 404, "UnknownTable"),
        ("/statedb/changes/nothing", 404, "UnknownTable"),
        ("/statedb/query?table=books&kind=get&index=x", 404, "UnknownIndex"),
        ("/statedb/query?table=books&kind=get&index=year&key=x", 400, "BadKey"),
        ("/statedb/query?table=books&kind=any", 400, "NotSupported"),
        ("/statedb/query?table=books&form=any", 400, "BadFormat"),
        ("/statedb/changes/books?form=any", 400, "BadFormat"),
        ("/statedb/query?table=books&revision=x", 400, "BadKey"),
        ("/statedb/changes/books?resume=x", 400, "BadKey"),
        ("/statedb/query?table=books&revision=abc:1", 409, "InstanceMismatch"),
        ("/statedb/query?table=books&revision=9", 410, "RevisionGone"),
        ("/statedb/dump?revision=1", 400, "NotSupported"),
    ],
)
async def test_errors_have_status_class_and_instance(
    library: Library, url: str, status: int, kind: str
) -> None:
    answer = await get(library.db, url)
    told = json.loads(answer.body)
    assert (answer.status, told["type"]) == (status, kind)
    assert told["instance"] == library.db.instance_id
    assert told["error"]


async def test_query_has_head_rows_and_end(library: Library) -> None:
    url = "/statedb/query?table=books&kind=lower_bound&key=F&form=cells"
    assert (await get(library.db, url)).lines == [
        {
            "instance": library.db.instance_id,
            "revision": 2,
            "table": "books",
            "columns": ["Title", "Year", "Author", "Tags"],
        },
        {"revision": 2, "cells": ["Walden", "1854", "unknown", ""]},
        {"rows": 1},
    ]


async def test_own_form_of_a_table_is_used() -> None:
    db = DB()
    key = Index("number", lambda shelf: shelf.number, parse=int)
    shelves = new_table(db, "shelves", key, row_type=Shelf, to_json=lambda s: {"no": s.number})
    with db.write_txn(shelves) as wtxn:
        shelves.insert(wtxn, Shelf(3, "x"))
    rows = (await get(db, "/statedb/query?table=shelves")).lines
    assert rows[1] == {"revision": 1, "object": {"no": 3}}
    dumped = json.loads((await get(db, "/statedb/dump")).body)
    assert dumped["tables"] == {"shelves": [{"no": 3}]}


async def test_only_reading_is_allowed(library: Library) -> None:
    reader = Reader(Starlette(routes=routes(library.db)), "/statedb/dump", "POST")
    reader.taking.set()
    await reader.run()
    assert reader.status == 405


class Big:
    """A table of many rows that notes who makes the answers, and how many rows they made."""

    def __init__(self, rows: int = 20_000) -> None:
        self.db = DB()
        key = Index("number", lambda shelf: shelf.number, parse=int)
        self.made = 0
        self.threads: set[int] = set()
        self.table: RWTable[Shelf] = new_table(
            self.db, "shelves", key, row_type=Shelf, to_json=self._to_json
        )
        with self.db.write_txn(self.table) as wtxn:
            self.table.insert_many(wtxn, (Shelf(n, "x" * 100) for n in range(rows)))

    def _to_json(self, shelf: Shelf) -> Any:
        self.made += 1
        self.threads.add(threading.get_ident())
        return shelf

    def rewrite(self, rows: int) -> None:
        with self.db.write_txn(self.table) as wtxn:
            self.table.insert_many(wtxn, (Shelf(n, "y") for n in range(rows)))


BIG_URLS = [
    "/statedb/dump",
    "/statedb/query?table=shelves",
    "/statedb/changes/shelves",
]


@pytest.mark.parametrize("url", BIG_URLS)
async def test_rows_are_made_outside_of_the_event_loop_and_as_they_are_taken(url: str) -> None:
    big = Big()
    async with reading(big.db, url) as reader:
        reader.taking.set()
        await reader.until(lambda: big.made == 20_000 and b"}\n" in reader.body[-4:])
    assert threading.get_ident() not in big.threads
    assert reader.sent > 20  # no chunk is big
    assert len(reader.body) > 20_000 * 100


@pytest.mark.parametrize("url", BIG_URLS)
async def test_nothing_is_made_ahead_of_a_slow_reader(url: str) -> None:
    big = Big()
    async with reading(big.db, url) as reader:
        with anyio.fail_after(5):
            await reader.offered.wait()
        made = big.made
    assert 0 < made <= 512
    assert big.made == made  # the answer has ended with its threads: none made the next chunk
    assert not reader.ended


@pytest.mark.parametrize("url", BIG_URLS)
async def test_reader_that_stalls_is_cut_off(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sending, "STALL_S", 0.05)
    big = Big()
    reader = Reader(Starlette(routes=routes(big.db)), url)
    with anyio.fail_after(5):
        await reader.run()  # returns, although the reader neither takes nor leaves
    assert not reader.ended  # which the server turns into a broken connection
    assert big.table.num_trackers() == 0


async def test_reader_that_falls_behind_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "MAX_LAG", 1000)
    monkeypatch.setattr(server, "LAG_LOOK_S", 0.01)
    big = Big(100)
    reader = Reader(Starlette(routes=routes(big.db)), "/statedb/changes/shelves")
    async with anyio.create_task_group() as group:
        group.start_soon(reader.run)
        reader.taking.set()
        await reader.until(lambda: b"synced" in reader.body)
        for _ in range(50):  # as long as it reads it may see any number of changes
            big.rewrite(100)
            await anyio.sleep(0.005)
        assert big.table.num_trackers() == 1
        reader.taking = anyio.Event()
        with anyio.fail_after(5):
            while big.table.num_trackers():
                big.rewrite(100)
                await anyio.sleep(0.005)
    assert not reader.ended


async def test_tracker_is_closed_when_the_reader_goes_away(library: Library) -> None:
    async with reading(library.db, "/statedb/changes/books") as reader:
        reader.taking.set()
        await reader.until(lambda: b"synced" in reader.body)
        assert library.books.num_trackers() == 1
    assert library.books.num_trackers() == 0


async def test_idle_stream_has_a_heartbeat(
    library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "HEARTBEAT_S", 0.02)
    async with reading(library.db, "/statedb/changes/books") as reader:
        reader.taking.set()
        await reader.until(lambda: reader.body.endswith(b"}\n\n\n"))


async def test_streams_are_limited(library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "MAX_STREAMS", 2)
    app = Starlette(routes=routes(library.db))
    readers = [Reader(app, "/statedb/changes/books") for _ in range(4)]
    for reader in readers:
        reader.taking.set()
    async with anyio.create_task_group() as group:
        for reader in readers[:2]:
            group.start_soon(reader.run)
            with anyio.fail_after(5):
                while b"synced" not in reader.body:
                    await reader.progress.wait()
        await readers[2].run()
        assert readers[2].status == 503
        assert json.loads(readers[2].body)["error"] == "2 streams of changes are open"
        readers[0].gone.set()
        await anyio.wait_all_tasks_blocked()
        while library.books.num_trackers() == 2:
            await anyio.sleep(0.005)
        group.start_soon(readers[3].run)
        await readers[3].until(lambda: b"synced" in readers[3].body)
        readers[1].gone.set()
        readers[3].gone.set()


async def test_batches_tell_the_last_state_of_each_object(library: Library) -> None:
    async with reading(library.db, "/statedb/changes/books") as reader:
        reader.taking.set()
        await reader.until(lambda: b"synced" in reader.body)
        with library.db.write_txn(library.books) as wtxn:
            for year in range(10):
                library.books.insert(wtxn, Book("Emma", year))
        await reader.until(lambda: reader.body.count(b"synced") == 2)
    emma = [line for line in reader.lines[1:] if line.get("object", {}).get("title") == "Emma"]
    assert [line["object"]["year"] for line in emma] == [1815, 9]


def test_server_stops_sending_to_a_socket_that_nobody_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sending, "STALL_S", 0.3)
    ended = threading.Event()
    answer = server._Pulled.__call__

    async def noted(response: Any, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await answer(response, scope, receive, send)
        finally:
            ended.set()

    monkeypatch.setattr(server._Pulled, "__call__", noted)
    big = Big(50_000)  # 6 MB, far more than sockets and buffers hold
    with (
        served(big.db, tmp_path / "s") as path,
        socket.socket(socket.AF_UNIX) as client,
    ):
        client.connect(path)
        client.sendall(b"GET /statedb/dump HTTP/1.1\r\nHost: x\r\n\r\n")
        client.settimeout(10)
        first = client.recv(1)
        assert ended.wait(10), "the server goes on with the answer"
        made = big.made
        assert 0 < made < 25_000
        rest = b""
        while piece := client.recv(1 << 16):
            rest += piece
    assert first + rest[:11] == b"HTTP/1.1 200"
    assert not rest.endswith(b"0\r\n\r\n")
    assert big.made == made
