# SPDX-License-Identifier: Apache-2.0
"""Tables: everything that users read and write with.

`Table[T]` is the permission to read, `RWTable[T]` to write as well: functions take the narrower
one. Every query has a `_watch` twin with the same arguments that also returns a channel, which
closes when the answer may have changed.

A transaction given to a read is a snapshot or an open write transaction, which sees its own writes.
"""

from __future__ import annotations

import builtins
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from typing import Any, Generic, TypeVar, cast

import msgspec

from statedb._commits import Commits, ReadTxn
from statedb._row import NEWEST, Row, visible
from statedb._store import Snap, Store
from statedb._views import view_of
from statedb._watchers import BOUND, COUNT, COVER, FILLED, INIT, INSIDE, KEY, PREFIX, REVISION, ROWS
from statedb.changes import ChangeIterator
from statedb.errors import (
    BadKey,
    InitializerExists,
    RevisionGone,
    TableNotLocked,
    TransactionClosed,
    UnknownIndex,
)
from statedb.index import Index
from statedb.sizing import Usage, measure
from statedb.txn import WriteTxn
from statedb.watch import Channel

T = TypeVar("T")


class Column(msgspec.Struct, frozen=True):
    """One column of a printed table: its heading, and what makes a cell of an object."""

    name: str
    cell: Callable[[Any], str]


class Table(Generic[T]):
    """A table to read. Complexities: n objects, d objects written since the last ordered read."""

    def __init__(
        self,
        commits: Commits,
        name: str,
        primary: Index,
        secondary: Sequence[Index],
        columns: Sequence[Column],
        row_type: type[T] | None,
        to_json: Callable[[T], Any] | None,
        budget_bytes: int | None,
    ) -> None:
        self._commits = commits
        self._store = Store(name, primary, secondary)
        self.name = name
        self.primary = primary
        #: Returns the primary key of an object.
        self.primary_key: Callable[[T], Any] = cast("Callable[[T], Any]", primary.key)
        self.secondary: tuple[Index, ...] = tuple(secondary)
        self.columns: tuple[Column, ...] = tuple(columns)
        self.row_type = row_type
        self.to_json = to_json
        self.budget_bytes = budget_bytes

    @property
    def indexes(self) -> tuple[Index, ...]:
        """The primary index and the secondary ones."""
        return (self.primary, *self.secondary)

    def index(self, name: str) -> Index:
        """Return the index of this name.

        Raises:
            UnknownIndex: there is none.
        """
        for index in self.indexes:
            if index.name == name:
                return index
        raise UnknownIndex(f"table {self.name!r} has no index {name!r}")

    # Queries.

    def get(self, txn: ReadTxn, key: Any, index: Index | None = None) -> T | None:
        """Return the object with this key, of several the first in primary order; O(1).

        In a longest-prefix index: the object of the longest prefix that covers the key.
        """
        store = self._store
        if index is None and store.lengths is None:
            try:
                snap = txn.snaps[store.position]
            except IndexError:
                raise txn.no_snap(store) from None
            if snap.store is not store:
                raise txn.no_snap(store)
            row = store.rows.get(key)
            rev = snap.rev
            while row is not None and row.rev > rev:
                row = row.prev
            if row is None or row.dead:
                return None
            return cast("T", row.obj)
        found = self._first_row(txn, key, index)
        return None if found is None else cast("T", found.obj)

    def get_row(self, txn: ReadTxn, key: Any, index: Index | None = None) -> tuple[T, int] | None:
        """Return the object with this key and its revision; O(1)."""
        found = self._first_row(txn, key, index)
        return None if found is None else (found.obj, found.rev)

    def get_watch(
        self, txn: ReadTxn, key: Any, index: Index | None = None
    ) -> tuple[T | None, Channel]:
        """`get`, and a channel that closes when the answer may have changed."""
        channel = self._watch_key(txn, key, index)
        return self.get(txn, key, index), channel

    def get_row_watch(
        self, txn: ReadTxn, key: Any, index: Index | None = None
    ) -> tuple[tuple[T, int] | None, Channel]:
        """`get_row`, and a channel that closes when the answer may have changed."""
        channel = self._watch_key(txn, key, index)
        return self.get_row(txn, key, index), channel

    def list(self, txn: ReadTxn, key: Any, index: Index | None = None) -> list[T]:
        """Return all objects with this key in primary order; O(found).

        In a longest-prefix index: the objects of all prefixes that cover the key, longest first.
        """
        return [row.obj for row in self._rows_with(txn.snap_of(self._store), key, index, False)]

    def list_watch(
        self, txn: ReadTxn, key: Any, index: Index | None = None
    ) -> tuple[builtins.list[T], Channel]:
        """`list`, and a channel that closes when the answer may have changed."""
        channel = self._watch_key(txn, key, index)
        return self.list(txn, key, index), channel

    def prefix(self, txn: ReadTxn, key: Any, index: Index | None = None) -> Iterator[T]:
        """Iterate, in key order, over the objects whose key begins with `key` (str, bytes or
        tuple).

        In a longest-prefix index: over those inside the prefix. O(log n + found), and O(d log n)
        once a snapshot.
        """
        snap = txn.snap_of(self._store)
        position, declared = self._resolve(index)
        prefix = declared.encode(key)
        cut = declared.cut(prefix)
        view = view_of(self._store, snap, position)
        try:
            if position == 0:
                return view.starting_with(prefix, cut)
            return view.starting_with((prefix,), lambda pair: (cut(pair[0]),))
        except TypeError as err:
            raise BadKey(f"table {self.name!r}, index {declared.name!r}: {key!r}: {err}") from err

    def prefix_watch(
        self, txn: ReadTxn, key: Any, index: Index | None = None
    ) -> tuple[Iterator[T], Channel]:
        """`prefix`, and a channel that closes when the answer may have changed."""
        position, declared = self._resolve(index)
        prefix = declared.encode(key)
        declared.cut(prefix)
        kind = INSIDE if declared.is_lpm else PREFIX
        channel = self._watch(txn, kind, position, prefix)
        return self.prefix(txn, key, index), channel

    def lower_bound(self, txn: ReadTxn, key: Any, index: Index | None = None) -> Iterator[T]:
        """Iterate, in key order, over the objects whose key is not less than `key`."""
        snap = txn.snap_of(self._store)
        position, declared = self._resolve(index)
        bound = declared.encode(key)
        view = view_of(self._store, snap, position)
        try:
            return view.from_key(bound if position == 0 else (bound,))
        except TypeError as err:
            raise BadKey(f"table {self.name!r}, index {declared.name!r}: {key!r}: {err}") from err

    def lower_bound_watch(
        self, txn: ReadTxn, key: Any, index: Index | None = None
    ) -> tuple[Iterator[T], Channel]:
        """`lower_bound`, and a channel that closes when the answer may have changed."""
        position, declared = self._resolve(index)
        channel = self._watch(txn, BOUND, position, declared.encode(key))
        return self.lower_bound(txn, key, index), channel

    def all(self, txn: ReadTxn) -> Iterator[T]:
        """Iterate over all objects in primary order."""
        return view_of(self._store, txn.snap_of(self._store), 0).objects()

    def all_watch(self, txn: ReadTxn) -> tuple[Iterator[T], Channel]:
        """`all`, and a channel that closes when any object is written."""
        channel = self._watch(txn, ROWS, 0, None)
        return self.all(txn), channel

    def by_revision(self, txn: ReadTxn, revision: int = 0) -> Iterator[tuple[T, int]]:
        """Iterate, in revision order, over (object, revision) of those written at `revision` or
        later.
        """
        store = self._store
        snap = txn.snap_of(store)
        rows = chain.from_iterable(store.runs_after(snap, revision - 1))
        if snap.rev == NEWEST:
            return iter([*_live_pairs(store.rows, rows, NEWEST, txn)])
        return _live_pairs(store.rows, rows, snap.rev, txn)

    def by_revision_watch(
        self, txn: ReadTxn, revision: int = 0
    ) -> tuple[Iterator[tuple[T, int]], Channel]:
        """`by_revision`, and a channel that closes when the answer may have changed."""
        channel = self._watch(txn, REVISION, 0, revision)
        return self.by_revision(txn, revision), channel

    def num_objects(self, txn: ReadTxn) -> int:
        """Return the number of objects; O(1)."""
        snap = txn.snap_of(self._store)
        return self._store.count if snap.rev == NEWEST else snap.count

    def num_objects_watch(self, txn: ReadTxn) -> tuple[int, Channel]:
        """`num_objects`, and a channel that closes when the number changes."""
        channel = self._watch(txn, COUNT, 0, None)
        return self.num_objects(txn), channel

    def revision(self, txn: ReadTxn) -> int:
        """Return the revision of the newest write in the snapshot."""
        snap = txn.snap_of(self._store)
        return self._store.rev if snap.rev == NEWEST else snap.rev

    def initialized(self, txn: ReadTxn) -> bool:
        """Whether every registered initializer is done."""
        return not self.pending_initializers(txn)

    def initialized_watch(self, txn: ReadTxn) -> tuple[bool, Channel]:
        """`initialized`, and a channel that closes when the answer changes."""
        channel = self._watch(txn, INIT, 0, None)
        return self.initialized(txn), channel

    def pending_initializers(self, txn: ReadTxn) -> tuple[str, ...]:
        """Return the names of the initializers that are not done."""
        snap = txn.snap_of(self._store)
        return self._store.pending if snap.rev == NEWEST else snap.pending

    def filled(self, txn: ReadTxn) -> bool:
        """Whether the table has all that can be had now: each initializer is done or stalled.

        Rows may be added by this; what is missing is not known to be gone.
        """
        return len(self.stalled_initializers(txn)) == len(self.pending_initializers(txn))

    def filled_watch(self, txn: ReadTxn) -> tuple[bool, Channel]:
        """`filled`, and a channel that closes when an initializer is added, done or stalled."""
        channel = self._watch(txn, INIT, 0, FILLED)
        return self.filled(txn), channel

    def stalled_initializers(self, txn: ReadTxn) -> tuple[str, ...]:
        """Return the names of the pending initializers that cannot be done now."""
        snap = txn.snap_of(self._store)
        return self._store.stalled if snap.rev == NEWEST else snap.stalled

    # What the table holds.

    def usage(self, txn: ReadTxn) -> Usage:
        """Estimate the bytes in use, beside the configured budget; samples a few objects."""
        return measure(self._store, txn.snap_of(self._store), self.budget_bytes)

    def graveyard_size(self) -> int:
        """Return how many tombstones wait for change iterators or snapshots."""
        return len(self._store.graveyard)

    def num_trackers(self) -> int:
        """Return how many change iterators are open."""
        return len(self._store.trackers)

    # Inside.

    def _resolve(self, index: Index | None) -> tuple[int, Index]:
        return self._store.position_of(index), self.primary if index is None else index

    def _rows_with(
        self, snap: Snap, key: Any, index: Index | None, first: bool
    ) -> builtins.list[Row]:
        store = self._store
        second = store.secondary_of(index)
        if second is not None and second.lengths is None:
            return store.rows_with(second, key, snap.rev)
        declared = self.primary if index is None else index
        if declared.is_lpm:
            position = 0 if second is None else second.position
            return store.rows_covering(position, declared.encode(key), snap.rev, first)
        row = store.lookup(key, snap.rev)
        return [] if row is None else [row]

    def _first_row(self, txn: ReadTxn, key: Any, index: Index | None) -> Row | None:
        store = self._store
        snap = txn.snap_of(store)
        second = store.secondary_of(index)
        if second is not None and second.lengths is None:
            return store.first_with(second, key, snap.rev)
        rows = self._rows_with(snap, key, index, True)
        return rows[0] if rows else None

    def _watch(self, txn: ReadTxn, kind: int, position: int, argument: Any) -> Channel:
        store = self._store
        return self._commits.watch(store, txn.snap_of(store), kind, position, argument)

    def _watch_key(self, txn: ReadTxn, key: Any, index: Index | None) -> Channel:
        position, declared = self._resolve(index)
        kind = COVER if declared.is_lpm else KEY
        return self._watch(txn, kind, position, declared.encode(key))

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}>"


class RWTable(Table[T]):
    """A table to read and write. Every write needs a transaction that was opened for this table.

    Each write gives the object a revision of its own, above all earlier ones of the table.
    """

    def insert(self, wtxn: WriteTxn, obj: T) -> tuple[T | None, bool]:
        """Put the object in the place of the one with its key; return the old one and whether
        there was one.
        """
        store = self._store
        if wtxn._number != store.txn_id:
            raise _not_locked(store, wtxn)
        key = store.primary_key(obj)
        old = store.rows.get(key)
        if store.indexed:
            store.reindex(obj, key, old)
        rev = store.rev + 1
        if old is None:
            row = Row(key, obj, rev, None, False)
            store.rows[key] = row
            store.tail.append(row)
            store.rev = rev
            store.count += 1
            return None, False
        if old.rev > store.base:
            row = Row(key, obj, rev, old.prev, False)
        else:
            prev = old.prev
            if prev is not None and prev.rev > store.keep:
                old.prev = prev.prev
            row = Row(key, obj, rev, old, False)
        store.rev = rev
        store.rows[key] = row
        store.tail.append(row)
        if old.dead:
            store.count += 1
            return None, False
        return cast("T", old.obj), True

    def insert_many(self, wtxn: WriteTxn, objs: Iterable[T]) -> int:
        """Insert all objects and return how many there were; a key given twice keeps the last."""
        number = 0
        for obj in objs:
            self.insert(wtxn, obj)
            number += 1
        return number

    def modify(self, wtxn: WriteTxn, obj: T, merge: Callable[[T, T], T]) -> tuple[T | None, bool]:
        """Insert `merge(old, obj)`, or `obj` when there is no old one; return as `insert`."""
        store = self._store
        if wtxn._number != store.txn_id:
            raise _not_locked(store, wtxn)
        key = store.primary_key(obj)
        old = store.rows.get(key)
        if old is None or old.dead:
            return self.insert(wtxn, obj)
        rev = store.rev
        merged = merge(cast("T", old.obj), obj)
        same = merged is obj or store.primary_key(merged) == key
        if not same or store.rev != rev or wtxn._number != store.txn_id:  # `merge` may write too
            return self.insert(wtxn, merged)
        if store.indexed:
            store.reindex(merged, key, old)
        store.put(key, merged, old, False)
        return cast("T", old.obj), True

    def delete(self, wtxn: WriteTxn, obj: T) -> tuple[T | None, bool]:
        """Delete the object with the key of `obj`; return the old one and whether there was one."""
        if wtxn._number != self._store.txn_id:
            raise _not_locked(self._store, wtxn)
        return self._bury(self._store.primary_key(obj))

    def delete_key(self, wtxn: WriteTxn, key: Any) -> tuple[T | None, bool]:
        """Delete the object with this primary key; return as `delete`."""
        if wtxn._number != self._store.txn_id:
            raise _not_locked(self._store, wtxn)
        return self._bury(self.primary.encode(key))

    def delete_all(self, wtxn: WriteTxn) -> int:
        """Delete all objects and return how many there were."""
        if wtxn._number != self._store.txn_id:
            raise _not_locked(self._store, wtxn)
        number = 0
        for row in list(self._store.rows.values()):
            if not row.dead:
                self._bury(row.key)
                number += 1
        return number

    def compare_and_swap(self, wtxn: WriteTxn, revision: int, obj: T) -> tuple[T | None, bool]:
        """Insert the object if the stored one still has this revision; return the stored one and
        whether it was.
        """
        store = self._store
        if wtxn._number != store.txn_id:
            raise _not_locked(store, wtxn)
        key = store.primary_key(obj)
        old = store.rows.get(key)
        if old is None or old.dead:
            return None, False
        if old.rev != revision:
            return cast("T", old.obj), False
        if store.indexed:
            store.reindex(obj, key, old)
        store.put(key, obj, old, False)
        return cast("T", old.obj), True

    def compare_and_delete(self, wtxn: WriteTxn, revision: int, obj: T) -> tuple[T | None, bool]:
        """Delete the object if it still has this revision; return the stored one and whether it
        was deleted.
        """
        store = self._store
        if wtxn._number != store.txn_id:
            raise _not_locked(store, wtxn)
        key = store.primary_key(obj)
        old = store.rows.get(key)
        if old is None or old.dead:
            return None, False
        if old.rev != revision:
            return cast("T", old.obj), False
        return self._bury(key)

    def register_initializer(self, wtxn: WriteTxn, name: str) -> Initializer:
        """Add an initializer: the table is not initialized before the returned function was called.

        Raises:
            InitializerExists: one of this name is pending.
        """
        if wtxn._number != self._store.txn_id:
            raise _not_locked(self._store, wtxn)
        store = self._store
        if name in store.pending:
            raise InitializerExists(f"table {self.name!r} has a pending initializer {name!r}")
        store.pending = (*store.pending, name)
        return Initializer(store, name)

    def changes(self, wtxn: WriteTxn, since: int = 0) -> ChangeIterator[T]:
        """Register an iterator that yields all present objects first and every change from now on.

        With `since`, go on from that revision: what was written up to it is not yielded again. It
        is gone with the transaction when that is aborted.

        Raises:
            RevisionGone: a delete after `since` is forgotten, or the table has not come that far.
        """
        if wtxn._number != self._store.txn_id:
            raise _not_locked(self._store, wtxn)
        if since and not self._store.forgotten <= since <= self._store.base:
            raise RevisionGone(f"table {self.name!r}: changes since revision {since} are not known")
        return ChangeIterator(self._commits, self._store, since)

    def _bury(self, key: Any) -> tuple[T | None, bool]:
        store = self._store
        old = store.rows.get(key)
        if old is None or old.dead:
            return None, False
        if store.secondaries:
            store.unindex(old)
        store.put(key, old.obj, old, True)
        store.count -= 1
        return cast("T", old.obj), True


class Initializer:
    """Marks one initializer done; calling it again does nothing.

    Until then it may be stalled: what is missing cannot be had now, and nobody knows until when.
    """

    def __init__(self, store: Store, name: str) -> None:
        self._store = store
        self._name = name

    def __call__(self, wtxn: WriteTxn) -> None:
        store = self._store
        if wtxn._number != store.txn_id:
            raise _not_locked(store, wtxn)
        if self._name in store.pending:
            store.pending = tuple([name for name in store.pending if name != self._name])
        if self._name in store.stalled:
            store.stalled = tuple([name for name in store.stalled if name != self._name])

    def stall(self, wtxn: WriteTxn) -> None:
        """Say that the table has all that can be had now. Idempotent; nothing once it is done."""
        store = self._store
        if wtxn._number != store.txn_id:
            raise _not_locked(store, wtxn)
        if self._name in store.pending and self._name not in store.stalled:
            store.stalled = (*store.stalled, self._name)


def _not_locked(store: Store, wtxn: WriteTxn) -> Exception:
    if wtxn.closed:
        return TransactionClosed(f"table {store.name!r}: {wtxn.opened} is closed")
    return TableNotLocked(f"table {store.name!r} is not held by {wtxn.opened}")


def _live_pairs(
    newest: dict[Any, Row], rows: Iterable[Row], rev: int, txn: ReadTxn
) -> Iterator[tuple[Any, int]]:
    """Yield the rows that a snapshot sees; holds `txn`, so that its versions stay."""
    for row in rows:
        if not row.dead and visible(newest.get(row.key), rev) is row:
            yield row.obj, row.rev
