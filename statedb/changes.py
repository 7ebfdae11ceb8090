# SPDX-License-Identifier: Apache-2.0
"""Change iterators: the objects that were written or deleted since the iterator was last asked.

An iterator is a revision: everything up to it was seen. While it is open, tombstones above that
revision stay in the table, so that no delete is missed. Deletes before its registration are not
reported.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Generic, TypeVar

from statedb._change import Change
from statedb._commits import Commits, ReadTxn
from statedb._row import NEWEST, visible
from statedb._store import Snap, Store, Tracker
from statedb._watchers import ROWS
from statedb.errors import IteratorClosed
from statedb.watch import Channel

T = TypeVar("T")


class ChangeIterator(Generic[T]):
    """Yields each change once, in revision order; made by `RWTable.changes`.

    Dropping it without `close` releases its tombstones too.
    """

    def __init__(self, commits: Commits, store: Store, seen: int) -> None:
        self._commits = commits
        self._store = store
        self._tracker = Tracker(seen, seen or store.rev)
        self._closed = False
        store.trackers = [*store.trackers, self._tracker]

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
            raise IteratorClosed(f"the change iterator of table {self._store.name!r} is closed")
        store, commits = self._store, self._commits
        snap = txn.snap_of(store)
        if snap.rev == NEWEST:
            txn = txn.base()
            snap = txn.snap_of(store)
        if store.graveyard:
            commits.collect(store)
        return self._run(snap, txn), commits.watch(store, snap, ROWS, 0, None)

    def _run(self, snap: Snap, txn: ReadTxn) -> Iterator[Change[T]]:
        """Yield the changes; holds `txn`, so that the versions it sees stay."""
        store = self._store
        tracker = self._tracker
        since = tracker.since
        upto = snap.rev
        newest = store.rows
        for run in store.runs_after(snap, tracker.rev):
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
            self._commits.forget_tracker(self._store, self._tracker)

    def __del__(self) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<ChangeIterator {self._store.name} at {self._tracker.rev}>"
