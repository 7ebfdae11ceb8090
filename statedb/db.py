# SPDX-License-Identifier: Apache-2.0
"""The database: a registry of tables and the root that readers start from.

The design follows cilium/statedb (Go): tables of immutable objects, snapshots without locks, a
write lock a table, watch channels. What is inside differs: where the original has persistent radix
trees, here are versioned rows in dictionaries and a log, because that is what is quick in Python
(see `statedb._store`).
"""

from __future__ import annotations

import itertools
import os
import threading
import time
import uuid
import weakref
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from mypy_extensions import mypyc_attr

from statedb import graveyard
from statedb._row import NEVER
from statedb._store import Snap
from statedb.errors import (
    InstanceMismatch,
    RevisionGone,
    TableExists,
    TransactionError,
    UnknownTable,
)
from statedb.table import RWTable, Table
from statedb.txn import ReadTxn, WriteTxn
from statedb.validate import validate
from statedb.watch import Channel

T = TypeVar("T")


@mypyc_attr(native_class=False)
class Token:
    """Lives as long as a snapshot is held: native classes cannot be weakly referenced."""

    __slots__ = ("__weakref__",)


class Metrics(Protocol):
    """What is told to whoever counts; times in seconds. Called outside all locks."""

    def write_txn(
        self, db: str, tables: tuple[str, ...], lock_wait_s: float, duration_s: float
    ) -> None:
        """A write transaction was committed or aborted; the duration is that of holding tables."""

    def committed(self, table: str) -> None:
        """A table was written."""


class DB:
    """Tables, and the root with a snapshot of each.

        DB._root -> ReadTxn -> snaps[table.position] -> Snap -> rows, log, views

    Looking up: 1. take the root; 2. take the table's snap; 3. take the newest row of the key and go
    back to the first whose revision is not above the snap's.

    Writing: 1. lock the tables in table order; 2. add rows above the committed revision, which
    nobody sees; 3. make a snap of each written table; 4. swap the root; 5. close the watch channels
    whose answers changed; 6. forget what no live snapshot and no change iterator needs; 7. unlock.

    Observing deletes: a change iterator is registered with the table; rows of deleted objects stay
    as tombstones until all iterators passed them.

    `history`: how many committed states are kept for `read_txn_at`.
    """

    def __init__(
        self, name: str = "db", *, history: int = 0, metrics: Metrics | None = None
    ) -> None:
        self.name = name
        self.instance_id: str = uuid.uuid4().hex
        self.metrics = metrics
        self.validating: bool = os.environ.get("STATEDB_VALIDATE", "") not in ("", "0")
        self._lock = threading.Lock()
        self._tables: list[RWTable[Any]] = []
        self._by_name: dict[str, RWTable[Any]] = {}
        self._numbers: Any = itertools.count(1)
        self._live: deque[tuple[weakref.ref[object], list[Snap], float]] = deque()
        self._root: ReadTxn = ReadTxn(self, [], Token())
        self._keeps_history: bool = history > 0
        self._history: deque[ReadTxn] = deque([self._root], maxlen=max(history, 0))

    # Tables.

    def register(self, table: RWTable[Any]) -> None:
        """Add a table; `new_table` does it.

        Raises:
            TableExists: the name is taken.
        """
        with self._lock:
            if table.name in self._by_name:
                raise TableExists(f"database {self.name!r} has a table {table.name!r} already")
            table.position = len(self._tables)
            self._tables.append(table)
            self._by_name[table.name] = table
            self._swap([table.snap])

    def tables(self) -> list[Table[Any]]:
        """Return all tables in table order."""
        return list(self._tables)

    def table(self, name: str) -> Table[Any]:
        """Return the table of this name.

        Raises:
            UnknownTable: there is none.
        """
        table = self._by_name.get(name)
        if table is None:
            raise UnknownTable(f"database {self.name!r} has no table {name!r}")
        return table

    # Transactions.

    def read_txn(self) -> ReadTxn:
        """Return an immutable snapshot of all tables; O(1)."""
        return self._root

    def write_txn(self, *tables: RWTable[Any]) -> WriteTxn:
        """Lock the tables, in table order, and return the transaction that may write them.

        Raises:
            TransactionOpen: this thread holds one of them already.
            UnknownTable: a table of another database.
        """
        number: int = next(self._numbers)
        if len(tables) == 1 and tables[0].db is self:
            return WriteTxn(self, [tables[0]], number)
        return WriteTxn(self, self._in_order(tables), number)

    def look(self, see: Callable[[ReadTxn], T]) -> T:
        """Return what `see` makes of a new snapshot, which lives for this call alone.

        A task that waits must hold no snapshot: every row that is deleted meanwhile would stay, in
        all tables. So asynchronous code looks through this, and keeps what it needs of the rows.
        """
        return see(self.read_txn())

    def _in_order(self, tables: tuple[RWTable[Any], ...]) -> list[Table[Any]]:
        if not tables:
            raise TransactionError("a write transaction needs at least one table")
        ordered: dict[int, Table[Any]] = {}
        for table in tables:
            if table.db is not self:
                raise UnknownTable(f"table {table.name!r} is not of database {self.name!r}")
            ordered[table.position] = table
        return [ordered[position] for position in sorted(ordered)]

    def read_txn_at(self, table: Table[Any], revision: int, instance_id: str = "") -> ReadTxn:
        """Return the newest kept snapshot in which the table's revision is not above `revision`.

        Raises:
            RevisionGone: the oldest kept snapshot is newer (see `history`), or the table has not
            come that far.
            InstanceMismatch: `instance_id` is given and another database's.
        """
        if instance_id and instance_id != self.instance_id:
            raise InstanceMismatch(
                f"revision {revision} is of instance {instance_id}, this is {self.instance_id}"
            )
        position = table.position
        newest = self._root
        if revision > newest.snaps[position].rev:
            raise RevisionGone(f"table {table.name!r} has not reached revision {revision}")
        for root in [newest, *reversed(list(self._history))]:
            if position < len(root.snaps) and root.snaps[position].rev <= revision:
                return root
        raise RevisionGone(f"table {table.name!r}: revision {revision} is no longer kept")

    # Commit.

    def _commit(self, wtxn: WriteTxn) -> ReadTxn:
        """Publish the writes of a transaction.

        Watch channels close only after the root is swapped, so that whoever wakes finds the new
        state. Versions are forgotten only after the swap too: whether a snapshot is held can be
        told only when no one can take it any more.
        """
        tables = wtxn._tables
        changed = tables if len(tables) == 1 else [table for table in tables if table.dirty]
        if not changed or not changed[0].dirty:
            wtxn._release()
            return self._root
        try:
            if self.validating:
                for table in changed:
                    validate(table)
            snaps = [table.seal() for table in changed]
        except BaseException:
            wtxn.abort()
            raise
        wtxn._detach()
        with self._lock:
            root = self._swap(snaps)
            lone = not self._live
        closing: list[Channel] = []
        for at, table in enumerate(changed):
            self._settle(table, snaps[at], lone, closing)
        wtxn._release()
        for channel in closing:
            channel.close()
        if self.metrics is not None:
            for table in changed:
                self.metrics.committed(table.name)
        return root

    def _settle(self, table: Table[Any], snap: Snap, lone: bool, closing: list[Channel]) -> None:
        """Note what is committed, collect the channels to close, and forget what no one needs."""
        before = table.snap
        table.snap = snap
        start = table.start
        wrote = len(table.tail) - start
        if table.watchers.count:
            closing.extend(table.watchers.take(table, table.written(), before, snap))
        table.log_len += wrote
        if lone:
            table.forget_versions()
        if table.graveyard or table.log_len > table.settle_at or table.moved:
            revs = [snap.rev] if lone else self._live_revs(table.position, snap.rev)
            graveyard.settle(table, revs, wrote)

    def _swap(self, snaps: list[Snap]) -> ReadTxn:
        """Replace the root by one with these snaps, and note the old one if someone holds it.
        Needs the lock.
        """
        old = self._root
        old_snaps = old.snaps
        new_snaps = old_snaps.copy()
        for snap in snaps:
            position = snap.store.position
            if position < len(new_snaps):
                new_snaps[position] = snap
            else:
                new_snaps.append(snap)
        ref: weakref.ref[object] = weakref.ref(old._token)
        root = ReadTxn(self, new_snaps, Token())
        self._root = old = root
        if self._keeps_history:
            self._history.append(root)
        live = self._live
        if ref() is not None:
            live.append((ref, old_snaps, time.monotonic()))
        while live and live[-1][0]() is None:
            live.pop()
        while live and live[0][0]() is None:
            live.popleft()
        return root

    def _newest_below(self, table: Table[Any]) -> int:
        """Return the newest revision below the current one that a held snapshot reads, or NEVER."""
        position = table.position
        rev = table.rev
        with self._lock:
            for ref, snaps, _ in reversed(self._live):
                if position < len(snaps) and snaps[position].rev < rev and ref() is not None:
                    return snaps[position].rev
        return NEVER

    def _live_revs(self, position: int, current: int) -> list[int]:
        """Return all revisions of the table that are read by held snapshots, and the current one,
        ascending.
        """
        revs = {current}
        with self._lock:
            for ref, snaps, _ in self._live:
                if position < len(snaps) and ref() is not None:
                    revs.add(snaps[position].rev)
        return sorted(revs)

    def oldest_held(self) -> tuple[object, float] | None:
        """Return the token of the oldest snapshot below the newest that someone holds, and since
        when it is not the newest any more (`time.monotonic`); None if there is none. The history
        that the database keeps is nobody's.
        """
        kept = [root._token for root in list(self._history)]
        with self._lock:
            for ref, _, since in self._live:
                token = ref()
                if token is not None and not any(token is own for own in kept):
                    return token, since
        return None

    def collect(self, table: Table[Any]) -> None:
        """Remove tombstones that all have passed; does nothing while a transaction holds the
        table.
        """
        if table.lock.acquire(False):
            try:
                revs = self._live_revs(table.position, table.rev)
                graveyard.settle(table, revs, 0)
            finally:
                table.lock.release()

    def forget_tracker(self, table: Table[Any], tracker: Any) -> None:
        """Stop holding tombstones for a change iterator."""
        with self._lock:
            table.trackers = [other for other in table.trackers if other is not tracker]
        self.collect(table)

    def committed(self, position: int) -> Snap | None:
        """Return the committed snap of a table."""
        snaps = self._root.snaps
        return snaps[position] if position < len(snaps) else None

    def __repr__(self) -> str:
        return f"<DB {self.name} {len(self._tables)} tables>"
