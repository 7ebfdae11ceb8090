# SPDX-License-Identifier: Apache-2.0
"""Change iterators: the objects that were written or deleted since the iterator was last asked.

An iterator is a revision: everything up to it was seen. While it is open, tombstones above that
revision stay in the table, so that no delete is missed. Deletes before its registration are not
reported.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Generic, TypeVar

from statedb._change import Change
from statedb._row import NEWEST, visible
from statedb._watchers import ROWS
from statedb.errors import IteratorClosed
from statedb.watch import Channel

if TYPE_CHECKING:
    from statedb.table import Table
    from statedb.txn import ReadTxn

T = TypeVar("T")


class Tracker:
    """How far one iterator has come; held by its table."""

    def __init__(self, rev: int, since: int) -> None:
        self.rev = rev
        self.since = since


class ChangeIterator(Generic[T]):
    """Yields each change once, in revision order; made by `RWTable.changes`.

    Dropping it without `close` releases its tombstones too.
    """

    def __init__(self, table: Table[T], seen: int = 0) -> None:
        self._table = table
        self._tracker = Tracker(seen, seen or table.rev)
        self._closed = False
        table.trackers = [*table.trackers, self._tracker]

    @property
    def revision(self) -> int:
        """The revision up to which all changes were yielded."""
        return self._tracker.rev

    def next(self, txn: ReadTxn) -> tuple[Iterator[Change[T]], Channel]:
        """Return what changed up to the snapshot `txn`, and a channel that closes at the next
        change.

        A change counts as seen when it is yielded: what was left over comes again with the next
        call.

        A write transaction stands for the snapshot that it started from: its own writes may never
        happen.

        Raises:
            IteratorClosed: after `close`.
        """
        if self._closed:
            raise IteratorClosed(f"the change iterator of table {self._table.name!r} is closed")
        table = self._table
        snap = table.snap_of(txn)
        if snap.rev == NEWEST:
            txn = txn.base()
            snap = table.snap_of(txn)
        if table.graveyard:
            table.db.collect(table)
        return self._run(snap.rev, txn), table.watch(snap, ROWS, 0, None)

    def _run(self, upto: int, txn: ReadTxn) -> Iterator[Change[T]]:
        """Yield the changes; holds `txn`, so that the versions it sees stay."""
        table = self._table
        tracker = self._tracker
        since = tracker.since
        newest = table.rows
        for run in table.runs_after(table.snap_of(txn), tracker.rev):
            for row in run:
                rev = row.rev
                if rev <= tracker.rev:
                    continue
                newer = newest.get(row.key)
                if newer is not row and visible(newer, upto) is not row:
                    continue
                if row.dead and rev <= since:
                    continue
                tracker.rev = rev
                yield Change(row.obj, rev, row.dead)
        if tracker.rev < upto:
            tracker.rev = upto

    def close(self) -> None:
        """Stop holding tombstones; closing twice does nothing."""
        if not self._closed:
            self._closed = True
            self._table.db.forget_tracker(self._table, self._tracker)

    def __del__(self) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<ChangeIterator {self._table.name} at {self._tracker.rev}>"
