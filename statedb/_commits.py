# SPDX-License-Identifier: Apache-2.0
"""The root that readers start from, how a commit replaces it, and which older ones are still held.

    Commits.root -> ReadTxn -> snaps[store.position] -> Snap -> rows, log, views

Whether a snapshot is held is asked of a weak reference to its token, after the root was swapped:
only then can no one take it any more. Readers register nothing.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections import deque
from typing import Any, Protocol

from mypy_extensions import mypyc_attr

from statedb import graveyard
from statedb._row import NEVER, NEWEST
from statedb._store import Snap, Store, Tracker
from statedb._watchers import answer_differs
from statedb.errors import ForeignTransaction, RevisionGone, TransactionClosed
from statedb.validate import validate
from statedb.watch import Channel, closed_channel


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


class ReadTxn:
    """An immutable snapshot of all tables. Costs nothing to take and pins what it sees while it is
    held.

        snaps  [Snap of table 0, Snap of table 1, ...]      shared by all who took it
    """

    def __init__(self, commits: Commits, snaps: list[Snap], token: object) -> None:
        self.commits = commits
        self.snaps = snaps
        self._token = token

    @property
    def closed(self) -> bool:
        """Whether the transaction can no longer be read; a snapshot always can."""
        return False

    def base(self) -> ReadTxn:
        """Return the snapshot of what is committed."""
        return self

    def snap_of(self, store: Store) -> Snap:
        """Return the part of one table.

        Raises:
            TransactionClosed: the transaction was committed or aborted.
            ForeignTransaction: the table is another database's, or newer than the transaction.
        """
        snaps = self.snaps
        position = store.position
        if position < len(snaps):
            snap = snaps[position]
            if snap.store is store:
                return snap
        raise self.no_snap(store)

    def no_snap(self, store: Store) -> Exception:
        """Return the reason why the transaction has no part of this table."""
        committed = self.commits.root.snaps
        position = store.position
        if position >= len(committed) or committed[position].store is not store:
            return ForeignTransaction(
                f"table {store.name!r} is not of database {self.commits.name!r}, "
                "which the transaction is of"
            )
        if self.closed:
            return TransactionClosed(f"table {store.name!r}: the transaction is closed")
        return ForeignTransaction(f"table {store.name!r} is newer than the transaction")


class Commits:
    """What is committed, over all tables; `DB` adds the tables by name.

    `history`: how many committed states are kept beside those that someone holds.
    """

    def __init__(self, name: str, history: int, metrics: Metrics | None) -> None:
        self.name = name
        self.metrics = metrics
        self.validating: bool = os.environ.get("STATEDB_VALIDATE", "") not in ("", "0")
        self._lock = threading.Lock()
        self._live: deque[tuple[weakref.ref[object], list[Snap], float]] = deque()
        self.root: ReadTxn = ReadTxn(self, [], Token())
        self._keeps_history: bool = history > 0
        self._history: deque[ReadTxn] = deque([self.root], maxlen=max(history, 0))

    # Reading.

    def watch(self, store: Store, snap: Snap, kind: int, position: int, argument: Any) -> Channel:
        """Return a channel that closes when the answer to the query at `snap` may have changed."""
        channel = store.watchers.register(kind, position, argument)
        if snap.rev == NEWEST:
            return channel
        snaps = self.root.snaps
        committed = snaps[store.position] if store.position < len(snaps) else snap
        if committed is snap:
            return channel
        rows = [row for run in store.runs_after(committed, snap.rev) for row in run]
        if answer_differs(kind, position, argument, store.difference(rows, snap, committed)):
            return closed_channel()
        return channel

    def _at(self, store: Store, revision: int) -> ReadTxn:
        """Return the newest kept snapshot in which the revision is not above this one.

        Raises:
            RevisionGone: the oldest kept snapshot is newer, or the table has not come that far.
        """
        position = store.position
        newest = self.root
        if revision > newest.snaps[position].rev:
            raise RevisionGone(f"table {store.name!r} has not reached revision {revision}")
        for root in [newest, *reversed(list(self._history))]:
            if position < len(root.snaps) and root.snaps[position].rev <= revision:
                return root
        raise RevisionGone(f"table {store.name!r}: revision {revision} is no longer kept")

    # Committing. `WriteTxn.commit` says in which order, and why.

    def seal(self, stores: list[Store]) -> list[Snap]:
        """Return the snaps to be committed of tables that were written."""
        if self.validating:
            for store in stores:
                validate(store)
        return [store.seal() for store in stores]

    def publish(self, stores: list[Store], snaps: list[Snap]) -> tuple[ReadTxn, list[Channel]]:
        """Make the snaps the newest state; forget what no one needs. Return the root that has
        them, and the channels to close.
        """
        with self._lock:
            root = self._swap(snaps)
            lone = not self._live
        closing: list[Channel] = []
        for at, store in enumerate(stores):
            self._settle(store, snaps[at], lone, closing)
        return root, closing

    def _settle(self, store: Store, snap: Snap, lone: bool, closing: list[Channel]) -> None:
        """Note what is committed, collect the channels to close, and forget what no one needs."""
        before = store.snap
        store.snap = snap
        wrote = len(store.tail) - store.start
        if store.watchers.count:
            difference = store.difference(store.written(), before, snap)
            closing.extend(store.watchers.take(difference))
        store.log_len += wrote
        if lone:
            store.forget_versions()
        if store.graveyard or store.log_len > store.settle_at or store.moved:
            revs = [snap.rev] if lone else self._live_revs(store.position, snap.rev)
            graveyard.settle(store, revs, wrote)

    def _swap(self, snaps: list[Snap]) -> ReadTxn:
        """Replace the root by one with these snaps, and note the old one if someone holds it.
        Needs the lock.
        """
        old = self.root
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
        self.root = old = root
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

    # Snapshots that are held.

    def newest_below(self, store: Store) -> int:
        """Return the newest revision below the current one that a held snapshot reads, or NEVER."""
        if not self._live:
            return NEVER
        position = store.position
        rev = store.rev
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

    def collect(self, store: Store) -> None:
        """Remove tombstones that all have passed; does nothing while a transaction holds the
        table.
        """
        if store.lock.acquire(False):
            try:
                revs = self._live_revs(store.position, store.rev)
                graveyard.settle(store, revs, 0)
            finally:
                store.lock.release()

    def forget_tracker(self, store: Store, tracker: Tracker) -> None:
        """Stop holding tombstones for a change iterator."""
        with self._lock:
            store.trackers = [other for other in store.trackers if other is not tracker]
        self.collect(store)
