# SPDX-License-Identifier: Apache-2.0
"""The remote client against a real server: the same answers as the tables give, and its errors."""

from __future__ import annotations

import itertools
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from statedb import DB
from statedb.errors import (
    BadKey,
    BrokenAnswer,
    InstanceMismatch,
    NoParser,
    NotSupported,
    Refused,
    RemoteError,
    RevisionGone,
    StateDBError,
    UnknownIndex,
    UnknownTable,
    Unreachable,
)
from statedb.shown.plain import to_plain
from statedb.web.remote import RemoteChange, RemoteDB, Restart, Synced
from tests.statedb.serving import served
from tests.statedb_application import BY_TAG, BY_YEAR, Book, Library, Shelf

BOOKS = (
    Book("Ulysses", 1922, tags=("sea", "city")),
    Book("Babbitt", 1922),
    Book("Emma", 1815),
    Book("Utopia", 1516, tags=("sea",)),
)


@pytest.fixture
def library() -> Library:
    library = Library(["--history=20"])
    with library.db.write_txn(library.books) as wtxn:
        library.books.insert_many(wtxn, BOOKS)
    return library


@pytest.fixture
def remote(library: Library, tmp_path: Path) -> Iterator[RemoteDB]:
    with served(library.db, tmp_path / "s") as path:
        yield RemoteDB(path, timeout_s=5)


def titles(found: Any) -> list[str]:
    return [book.title for book in found]


def test_remote_table_answers_as_the_table_does(library: Library, remote: RemoteDB) -> None:
    here, there = library.books, remote.table("books", Book)
    txn, rtxn = library.db.read_txn(), remote.read_txn()
    assert list(there.all(rtxn)) == list(here.all(txn))
    assert there.get(rtxn, "Emma") == here.get(txn, "Emma") == BOOKS[2]
    assert there.get(rtxn, "Iliad") is None
    assert there.get_row(rtxn, "Emma") == here.get_row(txn, "Emma")
    assert there.get(rtxn, 1922, BY_YEAR) == here.get(txn, 1922, BY_YEAR)
    assert list(there.list(rtxn, 1922, BY_YEAR)) == here.list(txn, 1922, BY_YEAR)
    assert list(there.list(rtxn, "sea", "tag")) == here.list(txn, "sea", BY_TAG)
    assert list(there.prefix(rtxn, "U")) == list(here.prefix(txn, "U"))
    assert list(there.prefix(rtxn, "s", BY_TAG)) == list(here.prefix(txn, "s", BY_TAG))
    assert list(there.lower_bound(rtxn, "Emma")) == list(here.lower_bound(txn, "Emma"))
    found = there.lower_bound(rtxn, 1600, BY_YEAR)
    assert list(found) == list(here.lower_bound(txn, 1600, BY_YEAR))
    assert there.num_objects(rtxn) == 4
    assert there.revision(rtxn) == here.revision(txn)
    assert there.initialized(rtxn)


def test_objects_are_plain_values_when_no_row_type_is_given(remote: RemoteDB) -> None:
    assert list(remote.table("books").list(remote.read_txn(), "Emma")) == [
        {**to_plain(BOOKS[2]), "tags": []}
    ]


def test_rows_are_cells_when_asked_for(remote: RemoteDB) -> None:
    with remote.table("books").rows(remote.read_txn(), "get", "Ulysses", form="cells") as rows:
        assert rows.head["columns"] == ["Title", "Year", "Author", "Tags"]
        assert list(rows) == [{"revision": 1, "cells": ["Ulysses", "1922", "unknown", "sea, city"]}]


def test_keys_are_sent_whatever_is_in_them(library: Library, remote: RemoteDB) -> None:
    odd = Book("A&B=C?/ #%é\n+", 1)
    with library.db.write_txn(library.books) as wtxn:
        library.books.insert(wtxn, odd)
    assert remote.table("books", Book).get(remote.read_txn(), odd.title) == odd


def test_pending_initializers_are_seen(library: Library, remote: RemoteDB) -> None:
    with library.db.write_txn(library.books) as wtxn:
        library.books.register_initializer(wtxn, "reflector")
    table = remote.table("books")
    assert table.pending_initializers(remote.read_txn()) == ("reflector",)
    assert not table.initialized(remote.read_txn())


def test_state_at_a_revision_is_read_when_it_is_kept(library: Library, remote: RemoteDB) -> None:
    with library.db.write_txn(library.books) as wtxn:
        library.books.delete(wtxn, BOOKS[0])
    table = remote.table("books", Book)
    assert titles(table.all(remote.read_txn())) == ["Babbitt", "Emma", "Utopia"]
    old = remote.read_txn(4)
    assert titles(table.all(old)) == ["Babbitt", "Emma", "Ulysses", "Utopia"]
    assert old.instance == library.db.instance_id  # learned, and sent from now on
    assert titles(table.prefix(old, "U")) == ["Ulysses", "Utopia"]
    dumped = json.loads(b"".join(remote.dump(old, "books")))
    assert len(dumped["tables"]["books"]) == 4
    with pytest.raises(NotSupported):
        table.num_objects(old)


def test_dump_has_all_tables_and_the_instance(library: Library, remote: RemoteDB) -> None:
    with library.db.write_txn(library.shelves) as wtxn:
        library.shelves.insert(wtxn, Shelf(1, "north", frozenset("ab")))
    dumped = json.loads(b"".join(remote.dump()))
    assert dumped["instance"] == library.db.instance_id
    assert [book["title"] for book in dumped["tables"]["books"]] == sorted(titles(BOOKS))
    assert dumped["tables"]["shelves"] == [{"number": 1, "room_name": "north", "holds": ["a", "b"]}]
    assert list(json.loads(b"".join(remote.dump(table="books")))["tables"]) == ["books"]


@pytest.mark.parametrize(
    ("table", "kind", "key", "index", "error"),
    [
        ("nothing", "all", "", None, UnknownTable),
        ("books", "get", "x", "pages", UnknownIndex),
        ("shelves", "list", "x", "room", NoParser),
        ("books", "get", "late", "year", BadKey),
        ("books", "prefix", "19", "year", NotSupported),
        ("books", "everything", "", None, NotSupported),
    ],
)
def test_server_errors_keep_their_class(
    remote: RemoteDB, table: str, kind: str, key: str, index: str | None, error: type[StateDBError]
) -> None:
    with pytest.raises(error):
        remote.table(table).rows(remote.read_txn(), kind, key, index)


def test_revision_outside_of_history_is_refused(library: Library, remote: RemoteDB) -> None:
    with pytest.raises(RevisionGone):
        list(remote.table("books").all(remote.read_txn(99)))
    with pytest.raises(InstanceMismatch):
        list(remote.table("books").all(remote.read_txn(1, "another")))
    with pytest.raises(NotSupported, match="name the table"):
        list(remote.dump(remote.read_txn(1)))


def test_another_instance_is_noticed(library: Library, tmp_path: Path) -> None:
    with served(library.db, tmp_path / "s") as path:
        remote = RemoteDB(path)
        txn = remote.read_txn()
        list(remote.table("books").all(txn))
    with (
        served(Library([]).db, tmp_path / "s"),
        pytest.raises(InstanceMismatch, match="this transaction reads"),
    ):
        list(remote.table("books").all(txn))


def changes_of(stream: Iterator[Any], number: int) -> list[Any]:
    return list(itertools.islice(stream, number))


def test_changes_begin_with_a_snapshot_and_go_on(library: Library, remote: RemoteDB) -> None:
    stream = remote.table("books", Book).changes()
    seen = changes_of(stream, 6)
    instance = library.db.instance_id
    assert seen[0] == Restart(instance, "", ("Title", "Year", "Author", "Tags"))
    assert seen[1:5] == [RemoteChange(book, rev + 1) for rev, book in enumerate(BOOKS)]
    assert seen[5] == Synced(instance, 4)
    with library.db.write_txn(library.books) as wtxn:
        library.books.insert(wtxn, Book("Zorba", 1946))
        library.books.delete(wtxn, BOOKS[0])
    assert changes_of(stream, 3) == [
        RemoteChange(Book("Zorba", 1946), 5),
        RemoteChange(BOOKS[0], 6, True),
        Synced(instance, 6),
    ]


def test_changes_resume_where_they_were_left(library: Library, remote: RemoteDB) -> None:
    token = f"{library.db.instance_id}:3"
    held = remote.table("books", Book).changes()
    changes_of(held, 6)  # keeps deletes from being forgotten
    with library.db.write_txn(library.books) as wtxn:
        library.books.delete(wtxn, BOOKS[0])
    seen = changes_of(remote.table("books", Book).changes(token), 3)
    assert seen == [
        RemoteChange(BOOKS[3], 4),
        RemoteChange(BOOKS[0], 5, True),
        Synced(library.db.instance_id, 5),
    ]


@pytest.mark.parametrize(
    ("token", "reason"),
    [("another:3", "is of instance another"), ("3", "is of instance ?"), ("{}:99", "not known")],
)
def test_stream_begins_anew_when_it_cannot_resume(
    library: Library, remote: RemoteDB, token: str, reason: str
) -> None:
    instance = library.db.instance_id
    stream = remote.table("books", Book).changes(token.replace("{}", instance))
    restart, *rest = changes_of(stream, 6)
    assert reason in restart.reason
    assert rest[-1] == Synced(instance, 4)


def test_stream_begins_anew_when_deletes_are_forgotten(tmp_path: Path) -> None:
    library = Library([])  # no history: what nobody holds is forgotten
    books = library.books
    with library.db.write_txn(books) as wtxn:
        books.insert_many(wtxn, BOOKS)
    with library.db.write_txn(books) as wtxn:
        books.delete(wtxn, BOOKS[0])
    with library.db.write_txn(books) as wtxn:
        books.insert(wtxn, BOOKS[1])
    with served(library.db, tmp_path / "s") as path:
        stream = RemoteDB(path).table("books", Book).changes(f"{library.db.instance_id}:4")
        restart, *rest = changes_of(stream, 5)
    assert isinstance(restart, Restart)
    assert "changes since revision 4 are not known" in restart.reason
    assert {change.obj for change in rest[:3]} == set(BOOKS[1:])


def test_deleted_objects_are_let_go_when_the_reader_leaves(
    library: Library, remote: RemoteDB
) -> None:
    stream = remote.table("books").changes()
    changes_of(stream, 6)
    assert library.books.num_trackers() == 1
    stream.close()  # type: ignore[attr-defined]
    for _ in range(100):
        if library.books.num_trackers() == 0:
            break
        threading.Event().wait(0.02)  # the server learns it from its socket
    assert library.books.num_trackers() == 0


def test_follow_connects_again_and_begins_anew_when_the_server_restarts(
    library: Library, tmp_path: Path
) -> None:
    lost: list[RemoteError] = []
    with served(library.db, tmp_path / "s") as path:
        stream = RemoteDB(path).table("books", Book).follow(pause_s=0.02, lost=lost.append)
        assert changes_of(stream, 6)[-1] == Synced(library.db.instance_id, 4)
    other = Library([])
    with other.db.write_txn(other.books) as wtxn:
        other.books.insert(wtxn, BOOKS[2])
    with served(other.db, tmp_path / "s"):
        restart, change, synced = changes_of(stream, 3)
        assert isinstance(restart, Restart)
        assert f"is of instance {library.db.instance_id}" in restart.reason
        assert change == RemoteChange(BOOKS[2], 1)
        assert synced == Synced(other.db.instance_id, 1)
    assert lost
    assert isinstance(lost[0], BrokenAnswer)


def test_follow_resumes_when_the_connection_broke(library: Library, tmp_path: Path) -> None:
    with served(library.db, tmp_path / "s") as path:
        stream = RemoteDB(path).table("books", Book).follow(pause_s=0.02)
        changes_of(stream, 6)
    with library.db.write_txn(library.books) as wtxn:
        library.books.insert(wtxn, Book("Zorba", 1946))
    with served(library.db, tmp_path / "s"):
        assert changes_of(stream, 2) == [
            RemoteChange(Book("Zorba", 1946), 5),
            Synced(library.db.instance_id, 5),
        ]


def test_follow_fails_at_once_when_it_cannot_begin(remote: RemoteDB, tmp_path: Path) -> None:
    with pytest.raises(Unreachable):
        next(RemoteDB(str(tmp_path / "nothing")).table("books").follow())
    with pytest.raises(UnknownTable):
        next(remote.table("nothing").follow())


def test_one_sentence_says_that_nobody_listens(tmp_path: Path) -> None:
    path = tmp_path / "missing"
    with pytest.raises(Unreachable, match=f"nobody listens on {path}: is the agent running?"):
        RemoteDB(str(path)).summary()
    bound = socket.socket(socket.AF_UNIX)
    bound.bind(str(path))  # left behind by a process that was killed
    with bound, pytest.raises(Unreachable, match="nobody listens"):
        RemoteDB(str(path)).summary()
    with pytest.raises(Unreachable, match="too long"):
        RemoteDB("/" + "x" * 200).summary()


def listening(path: Path, answer: bytes) -> threading.Thread:
    """Something that listens and sends this to whoever connects, once."""
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(path))
    server.listen(1)

    def serve() -> None:
        with server, server.accept()[0] as connection:
            connection.recv(65536)
            connection.sendall(answer)

    thread = threading.Thread(target=serve)
    thread.start()
    return thread


HEAD = b'{"instance":"i","revision":1,"table":"t","columns":[]}\n'
ROW = b'{"revision":1,"object":{}}\n'
OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (b"", BrokenAnswer),
        (b"SSH-2.0-OpenSSH\r\n", BrokenAnswer),
        (OK + b"Content-Length: 0\r\n\r\n", BrokenAnswer),
        (OK + b"Content-Length: 3\r\n\r\nabc", BrokenAnswer),
        (CHUNKED + chunk(HEAD) + chunk(ROW) + b"0\r\n\r\n", BrokenAnswer),  # no end line
        (CHUNKED + chunk(HEAD) + chunk(ROW), BrokenAnswer),  # cut off
        (CHUNKED + chunk(HEAD) + b"ff\r\n" + ROW, BrokenAnswer),  # cut off in a chunk
        (b"HTTP/1.1 404 Not Found\r\nContent-Length: 9\r\n\r\nNot Found", Refused),
        (b'HTTP/1.1 500 No\r\nContent-Length: 26\r\n\r\n{"error":"x","type":"exit"}', Refused),
    ],
)
def test_answer_that_is_none_is_told(tmp_path: Path, answer: bytes, error: type) -> None:
    thread = listening(tmp_path / "s", answer)
    remote = RemoteDB(str(tmp_path / "s"))
    table = remote.table("t")
    with pytest.raises(error):
        list(table.all(remote.read_txn()))
    thread.join()


def test_silence_is_told_after_the_timeout(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "s"))
        server.listen(1)
        with pytest.raises(Unreachable, match=r"no answer from .* within 0.05 s"):
            RemoteDB(str(tmp_path / "s"), timeout_s=0.05).summary()


def test_reading_remotely_loads_no_server() -> None:
    code = (
        "import sys, statedb.web.remote\n"
        "heavy = {'starlette', 'uvicorn', 'yaml', 'prometheus_client', 'pydantic', 'kubernetes'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ
    )
    assert done.stdout == "[]\n"


def test_database_alone_may_be_served(tmp_path: Path) -> None:
    with served(DB("empty"), tmp_path / "s") as path:
        assert RemoteDB(path).summary()["tables"] == []
        assert json.loads(b"".join(RemoteDB(path).dump()))["tables"] == {}
