# SPDX-License-Identifier: Apache-2.0
"""The tables of another process, read over its unix socket with the calls that read tables here.

Standard library only. A `RemoteTxn` names what a query reads: the newest state, or the state at a
revision within the server's history; it remembers the database's instance and refuses answers of
another one. Objects are plain values (dict, list, str, ...), or objects of the row type given to
`RemoteDB.table`. Keys are sent as text and read by the index's parser.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar, overload
from urllib.parse import quote

from statedb import errors
from statedb.errors import BrokenAnswer, Refused, RemoteError
from statedb.web.unix_http import Answer, ask

T = TypeVar("T")
Form = Literal["object", "cells"]

TIMEOUT_S = 60.0  # silence of the server: four heartbeats of a stream, or a long wait for a thread


@dataclass
class RemoteTxn:
    """What queries read: `revision` None is the newest state at the time of each query."""

    revision: int | None = None
    instance: str | None = None  # of the first answer, if it was not given; later ones must agree


@dataclass(frozen=True)
class RemoteChange(Generic[T]):
    """An object as it became at `revision`, or as it was when it was deleted."""

    obj: T
    revision: int
    deleted: bool = False


@dataclass(frozen=True)
class Restart:
    """A full snapshot follows: what is not in it, up to the next `Synced`, is gone."""

    instance: str
    reason: str  # empty: nothing was to be resumed
    columns: tuple[str, ...]


@dataclass(frozen=True)
class Synced:
    """All changes up to this revision have been told; `token` resumes here."""

    instance: str
    revision: int

    @property
    def token(self) -> str:
        return f"{self.instance}:{self.revision}"


class RemoteDB:
    """The database behind a unix socket; each call connects anew, so that threads may share it."""

    def __init__(
        self, path: str, *, prefix: str = "/statedb", timeout_s: float = TIMEOUT_S
    ) -> None:
        self.path = path
        self._prefix = prefix
        self._timeout_s = timeout_s

    def read_txn(self, revision: int | None = None, instance: str | None = None) -> RemoteTxn:
        """The newest state, or the state at a revision."""
        return RemoteTxn(revision, instance)

    @overload
    def table(self, name: str, row_type: type[T]) -> RemoteTable[T]: ...
    @overload
    def table(self, name: str, row_type: None = None) -> RemoteTable[Any]: ...
    def table(self, name: str, row_type: type[Any] | None = None) -> RemoteTable[Any]:
        """The table of this name; its existence shows with the first query."""
        return RemoteTable(self, name, row_type)

    def summary(self) -> dict[str, Any]:
        """Instance, revision, and of each table its counts, indexes, columns and initializers."""
        with self.ask("") as answer:
            return answer.json()

    def dump(self, txn: RemoteTxn | None = None, table: str = "") -> Iterator[bytes]:
        """One JSON document with all objects of all tables or of one, piece by piece."""
        path = f"/dump/{quote(table, safe='')}" if table else "/dump"
        with self.ask(path, **_revision(txn or RemoteTxn())) as answer:
            yield from answer.pieces()

    def ask(self, path: str, **params: str) -> Answer:
        """Sends one request; see `statedb.web.unix_http.ask`."""
        return ask(self.path, self._prefix + path, params, self._timeout_s)


class RemoteTable(Generic[T]):
    """The read half of a table, over the socket; `index` is the name of an index, or has one."""

    def __init__(self, db: RemoteDB, name: str, row_type: type[T] | None = None) -> None:
        self.db = db
        self.name = name
        self._row_type = row_type

    def get(self, txn: RemoteTxn, key: Any, index: Any = None) -> T | None:
        """The first object with this key."""
        row = self.get_row(txn, key, index)
        return None if row is None else row[0]

    def get_row(self, txn: RemoteTxn, key: Any, index: Any = None) -> tuple[T, int] | None:
        """The first object with this key, and the revision at which it was written."""
        return next(iter(list(self._objects(txn, "get", key, index))), None)

    def list(self, txn: RemoteTxn, key: Any, index: Any = None) -> Iterator[T]:
        """All objects with this key."""
        return (obj for obj, _ in self._objects(txn, "list", key, index))

    def prefix(self, txn: RemoteTxn, key: Any, index: Any = None) -> Iterator[T]:
        """All objects whose key begins with this one."""
        return (obj for obj, _ in self._objects(txn, "prefix", key, index))

    def lower_bound(self, txn: RemoteTxn, key: Any, index: Any = None) -> Iterator[T]:
        """All objects whose key is this one or comes after it."""
        return (obj for obj, _ in self._objects(txn, "lower_bound", key, index))

    def all(self, txn: RemoteTxn) -> Iterator[T]:
        """All objects in the order of the primary key."""
        return (obj for obj, _ in self._objects(txn, "all"))

    def num_objects(self, txn: RemoteTxn) -> int:
        """How many objects the table has."""
        return int(self._described(txn)["objects"])

    def revision(self, txn: RemoteTxn) -> int:
        """The table's revision."""
        return int(self._described(txn)["revision"])

    def initialized(self, txn: RemoteTxn) -> bool:
        """Whether no initializer is pending."""
        return not self.pending_initializers(txn)

    def pending_initializers(self, txn: RemoteTxn) -> tuple[str, ...]:
        """The initializers that the table waits for."""
        return tuple(self._described(txn)["pending_initializers"])

    def _described(self, txn: RemoteTxn) -> dict[str, Any]:
        if txn.revision is not None:
            raise errors.NotSupported("counts and initializers are known of the newest state only")
        summary = self.db.summary()
        _agree(txn, summary["instance"])
        for table in summary["tables"]:
            if table["name"] == self.name:
                return dict(table)
        raise errors.UnknownTable(f"no table {self.name!r}")

    def _objects(
        self, txn: RemoteTxn, kind: str, key: Any = "", index: Any = None
    ) -> Iterator[tuple[T, int]]:
        with self.rows(txn, kind, key, index) as rows:
            for row in rows:
                yield self._object(row["object"]), row["revision"]

    def _object(self, plain: Any) -> T:
        if self._row_type is None:
            return plain  # type: ignore[no-any-return]
        from statedb.shown.plain import from_plain

        return from_plain(plain, self._row_type)  # type: ignore[no-any-return]

    def rows(
        self,
        txn: RemoteTxn,
        kind: str = "all",
        key: Any = "",
        index: Any = None,
        form: Form = "object",
    ) -> RemoteRows:
        """The rows as the server sends them: dicts of `revision` and `object`, or `cells`.

        The head has the table's `columns`. Iterating raises BrokenAnswer if the end is missing.
        """
        params = {"table": self.name, "kind": kind, "key": str(key), "form": form, **_revision(txn)}
        if index is not None:
            params["index"] = index if isinstance(index, str) else index.name
        return RemoteRows(self.db.ask("/query", **params), txn)

    def changes(
        self, resume: str = "", form: Form = "object"
    ) -> Iterator[Restart | RemoteChange[T] | Synced]:
        """Changes as they come, from one connection; begins with a `Restart` unless it can resume.

        `resume` is the token of a `Synced`. With the form `cells`, `obj` is the list of cells.

        Raises:
            BrokenAnswer: the server ended the stream (it stops, or this reader is too slow).
            Unreachable: the server went away.
        """
        params = {"resume": resume, "form": form}
        with self.db.ask(f"/changes/{quote(self.name, safe='')}", **params) as answer:
            instance = ""
            for line in answer.lines():
                event = json.loads(line)
                if "instance" in event:
                    instance = event["instance"]
                    if event["snapshot"]:
                        yield Restart(instance, event["reason"], tuple(event["columns"]))
                elif "synced" in event:
                    yield Synced(instance, event["synced"])
                else:
                    obj = event["cells"] if form == "cells" else self._object(event["object"])
                    yield RemoteChange(obj, event["revision"], event.get("deleted", False))
        raise BrokenAnswer(f"{self.db.path}: the stream of changes ended")

    def follow(
        self,
        form: Form = "object",
        pause_s: float = 1.0,
        lost: Callable[[RemoteError], object] = id,
    ) -> Iterator[Restart | RemoteChange[T] | Synced]:
        """`changes` without end: after a break it connects again, every `pause_s`, and resumes.

        The first connection must succeed; `lost` is told each later failure.
        """
        token, told = "", False
        while True:
            try:
                for event in self.changes(token, form):
                    told = True
                    if isinstance(event, Synced):
                        token = event.token
                    yield event
            except RemoteError as error:
                if not told or isinstance(error, Refused):
                    raise
                lost(error)
                time.sleep(pause_s)


class RemoteRows:
    """Rows of one query, read from the socket as they are iterated; a context manager."""

    def __init__(self, answer: Answer, txn: RemoteTxn) -> None:
        self._answer = answer
        self._lines = answer.lines()
        try:
            self.head = self._read_head()
            _agree(txn, self.head["instance"])
        except BaseException:
            answer.close()
            raise

    def _read_head(self) -> dict[str, Any]:
        try:
            return dict(json.loads(next(self._lines)))
        except (StopIteration, ValueError) as error:
            raise BrokenAnswer("the answer has no head") from error

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for line in self._lines:
            row = json.loads(line)
            if "rows" in row:
                return
            yield row
        raise BrokenAnswer("the answer ended before its last row")

    def __enter__(self) -> RemoteRows:
        return self

    def __exit__(self, *exc: object) -> None:
        self._answer.close()


def _revision(txn: RemoteTxn) -> dict[str, str]:
    if txn.revision is None:
        return {}
    return {"revision": f"{txn.instance}:{txn.revision}" if txn.instance else str(txn.revision)}


def _agree(txn: RemoteTxn, instance: str) -> None:
    if txn.instance is None:
        txn.instance = instance
    if txn.instance != instance:
        raise errors.InstanceMismatch(
            f"the server's database is {instance} now, this transaction reads {txn.instance}"
        )
