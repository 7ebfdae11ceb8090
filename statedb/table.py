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
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

import msgspec

from statedb._row import NEWEST, Row, visible
from statedb._store import Snap, Store
from statedb._watchers import BOUND, COUNT, COVER, INIT, INSIDE, KEY, PREFIX, REVISION, ROWS
from statedb.changes import ChangeIterator
from statedb.errors import (
    BadKey,
    ForeignTransaction,
    InitializerExists,
    RegistrationError,
    RevisionGone,
    TableNotLocked,
    TransactionClosed,
    UnknownIndex,
)
from statedb.index import Index
from statedb.sizing import Usage, measure
from statedb.watch import Channel

if TYPE_CHECKING:
    from statedb.db import DB
    from statedb.txn import ReadTxn, WriteTxn

T = TypeVar("T")


class Column(msgspec.Struct, frozen=True):
    """One column of a printed table: its heading, and what makes a cell of an object."""

    name: str
    cell: Callable[[Any], str]


class Table(Store, Generic[T]):
    """A table to read. Complexities: n objects, d objects written since the last ordered read."""

    def __init__(
        self,
        db: DB,
        name: str,
        primary: Index,
        secondary: Sequence[Index],
        columns: Sequence[Column],
        row_type: type[T] | None,
        to_json: Callable[[T], Any] | None,
        budget_bytes: int | None,
    ) -> None:
        super().__init__(name, primary, secondary, db.committed)
        self.db = db
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
        if index is None and self.lengths is None:
            try:
                snap = txn.snaps[self.position]
            except IndexError:
                raise self._no_snap(txn) from None
            if snap.store is not self:
                raise self._no_snap(txn)
            row = self.rows.get(key)
            rev = snap.rev
            while row is not None and row.rev > rev:
                row = row.prev
            if row is None or row.dead:
                return None
            return cast("T", row.obj)
        position = self.positions.get(index, 0)
        if position:
            second = self.secondaries[position - 1]
            moved = self.moved
            entry = second.entries.get(key)
            if not moved and not self.moved and type(entry) is not dict and second.lengths is None:
                if entry is None:
                    return None
                row = self.lookup(entry, self.snap_of(txn).rev)
                return None if row is None else cast("T", row.obj)
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
        return [row.obj for row in self._rows_with(self.snap_of(txn), key, index, False)]

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
        snap = self.snap_of(txn)
        position, declared = self._resolve(index)
        prefix = declared.encode(key)
        cut = declared.cut(prefix)
        view = self.view(snap, position)
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
        channel = self.watch(self.snap_of(txn), kind, position, prefix)
        return self.prefix(txn, key, index), channel

    def lower_bound(self, txn: ReadTxn, key: Any, index: Index | None = None) -> Iterator[T]:
        """Iterate, in key order, over the objects whose key is not less than `key`."""
        snap = self.snap_of(txn)
        position, declared = self._resolve(index)
        bound = declared.encode(key)
        view = self.view(snap, position)
        try:
            return view.from_key(bound if position == 0 else (bound,))
        except TypeError as err:
            raise BadKey(f"table {self.name!r}, index {declared.name!r}: {key!r}: {err}") from err

    def lower_bound_watch(
        self, txn: ReadTxn, key: Any, index: Index | None = None
    ) -> tuple[Iterator[T], Channel]:
        """`lower_bound`, and a channel that closes when the answer may have changed."""
        position, declared = self._resolve(index)
        channel = self.watch(self.snap_of(txn), BOUND, position, declared.encode(key))
        return self.lower_bound(txn, key, index), channel

    def all(self, txn: ReadTxn) -> Iterator[T]:
        """Iterate over all objects in primary order."""
        return self.view(self.snap_of(txn), 0).objects()

    def all_watch(self, txn: ReadTxn) -> tuple[Iterator[T], Channel]:
        """`all`, and a channel that closes when any object is written."""
        channel = self.watch(self.snap_of(txn), ROWS, 0, None)
        return self.all(txn), channel

    def by_revision(self, txn: ReadTxn, revision: int = 0) -> Iterator[tuple[T, int]]:
        """Iterate, in revision order, over (object, revision) of those written at `revision` or
        later.
        """
        snap = self.snap_of(txn)
        rows = chain.from_iterable(self.runs_after(snap, revision - 1))
        if snap.rev == NEWEST:
            return iter([*_live_pairs(self.rows, rows, NEWEST, txn)])
        return _live_pairs(self.rows, rows, snap.rev, txn)

    def by_revision_watch(
        self, txn: ReadTxn, revision: int = 0
    ) -> tuple[Iterator[tuple[T, int]], Channel]:
        """`by_revision`, and a channel that closes when the answer may have changed."""
        channel = self.watch(self.snap_of(txn), REVISION, 0, revision)
        return self.by_revision(txn, revision), channel

    def num_objects(self, txn: ReadTxn) -> int:
        """Return the number of objects; O(1)."""
        snap = self.snap_of(txn)
        return self.count if snap.rev == NEWEST else snap.count

    def num_objects_watch(self, txn: ReadTxn) -> tuple[int, Channel]:
        """`num_objects`, and a channel that closes when the number changes."""
        channel = self.watch(self.snap_of(txn), COUNT, 0, None)
        return self.num_objects(txn), channel

    def revision(self, txn: ReadTxn) -> int:
        """Return the revision of the newest write in the snapshot."""
        snap = self.snap_of(txn)
        return self.rev if snap.rev == NEWEST else snap.rev

    def initialized(self, txn: ReadTxn) -> bool:
        """Whether every registered initializer is done."""
        return not self.pending_initializers(txn)

    def initialized_watch(self, txn: ReadTxn) -> tuple[bool, Channel]:
        """`initialized`, and a channel that closes when the answer changes."""
        channel = self.watch(self.snap_of(txn), INIT, 0, None)
        return self.initialized(txn), channel

    def pending_initializers(self, txn: ReadTxn) -> tuple[str, ...]:
        """Return the names of the initializers that are not done."""
        snap = self.snap_of(txn)
        return self.pending if snap.rev == NEWEST else snap.pending

    # What the table holds.

    def usage(self, txn: ReadTxn) -> Usage:
        """Estimate the bytes in use, beside the configured budget; samples a few objects."""
        return measure(self, self.snap_of(txn), self.budget_bytes)

    def graveyard_size(self) -> int:
        """Return how many tombstones wait for change iterators or snapshots."""
        return len(self.graveyard)

    def num_trackers(self) -> int:
        """Return how many change iterators are open."""
        return len(self.trackers)

    # Inside.

    def snap_of(self, txn: ReadTxn) -> Snap:
        """Return this table's part of a transaction."""
        snaps = txn.snaps
        position = self.position
        if position < len(snaps):
            snap = snaps[position]
            if snap.store is self:
                return snap
        raise self._no_snap(txn)

    def _no_snap(self, txn: ReadTxn) -> Exception:
        if txn.db is not self.db:
            return ForeignTransaction(
                f"table {self.name!r} of database {self.db.name!r}: "
                f"the transaction is of {txn.db.name!r}"
            )
        if txn.closed:
            return TransactionClosed(f"table {self.name!r}: the transaction is closed")
        return ForeignTransaction(f"table {self.name!r} is newer than the transaction")

    def _resolve(self, index: Index | None) -> tuple[int, Index]:
        return self.position_of(index), self.primary if index is None else index

    def _rows_with(
        self, snap: Snap, key: Any, index: Index | None, first: bool
    ) -> builtins.list[Row]:
        position, declared = self._resolve(index)
        if declared.is_lpm:
            return self.rows_covering(position, declared.encode(key), snap.rev, first)
        if position == 0:
            row = self.lookup(key, snap.rev)
            return [] if row is None else [row]
        return self.rows_with(position, key, snap.rev)

    def _first_row(self, txn: ReadTxn, key: Any, index: Index | None) -> Row | None:
        rows = self._rows_with(self.snap_of(txn), key, index, True)
        return rows[0] if rows else None

    def _watch_key(self, txn: ReadTxn, key: Any, index: Index | None) -> Channel:
        position, declared = self._resolve(index)
        kind = COVER if declared.is_lpm else KEY
        return self.watch(self.snap_of(txn), kind, position, declared.encode(key))

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
        if wtxn._number != self.txn_id:
            raise self._not_locked(wtxn)
        key = self.primary_key(obj)
        old = self.rows.get(key)
        if self.indexed:
            self.reindex(obj, key, old)
        rev = self.rev + 1
        if old is None:
            row = Row(key, obj, rev, None, False)
            self.rows[key] = row
            self.tail.append(row)
            self.rev = rev
            self.count += 1
            return None, False
        if old.rev > self.base:
            row = Row(key, obj, rev, old.prev, False)
        else:
            prev = old.prev
            if prev is not None and prev.rev > self.keep:
                old.prev = prev.prev
            row = Row(key, obj, rev, old, False)
        self.rev = rev
        self.rows[key] = row
        self.tail.append(row)
        if old.dead:
            self.count += 1
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
        if wtxn._number != self.txn_id:
            raise self._not_locked(wtxn)
        old = self.rows.get(self.primary_key(obj))
        if old is None or old.dead:
            return self.insert(wtxn, obj)
        return self.insert(wtxn, merge(cast("T", old.obj), obj))

    def delete(self, wtxn: WriteTxn, obj: T) -> tuple[T | None, bool]:
        """Delete the object with the key of `obj`; return the old one and whether there was one."""
        if wtxn._number != self.txn_id:
            raise self._not_locked(wtxn)
        return self._bury(self.primary_key(obj))

    def delete_key(self, wtxn: WriteTxn, key: Any) -> tuple[T | None, bool]:
        """Delete the object with this primary key; return as `delete`."""
        if wtxn._number != self.txn_id:
            raise self._not_locked(wtxn)
        return self._bury(self.primary.encode(key))

    def delete_all(self, wtxn: WriteTxn) -> int:
        """Delete all objects and return how many there were."""
        if wtxn._number != self.txn_id:
            raise self._not_locked(wtxn)
        number = 0
        for row in list(self.rows.values()):
            if not row.dead:
                self._bury(row.key)
                number += 1
        return number

    def compare_and_swap(self, wtxn: WriteTxn, revision: int, obj: T) -> tuple[T | None, bool]:
        """Insert the object if the stored one still has this revision; return the stored one and
        whether it was.
        """
        if wtxn._number != self.txn_id:
            raise self._not_locked(wtxn)
        key = self.primary_key(obj)
        old = self.rows.get(key)
        if old is None or old.dead:
            return None, False
        if old.rev != revision:
            return cast("T", old.obj), False
        if self.indexed:
            self.reindex(obj, key, old)
        self.put(key, obj, old, False)
        return cast("T", old.obj), True

    def compare_and_delete(self, wtxn: WriteTxn, revision: int, obj: T) -> tuple[T | None, bool]:
        """Delete the object if it still has this revision; return the stored one and whether it
        was deleted.
        """
        if wtxn._number != self.txn_id:
            raise self._not_locked(wtxn)
        key = self.primary_key(obj)
        old = self.rows.get(key)
        if old is None or old.dead:
            return None, False
        if old.rev != revision:
            return cast("T", old.obj), False
        return self._bury(key)

    def register_initializer(self, wtxn: WriteTxn, name: str) -> Callable[[WriteTxn], None]:
        """Add an initializer: the table is not initialized before the returned function was called.

        Raises:
            InitializerExists: one of this name is pending.
        """
        if wtxn._number != self.txn_id:
            raise self._not_locked(wtxn)
        if name in self.pending:
            raise InitializerExists(f"table {self.name!r} has a pending initializer {name!r}")
        self.pending = (*self.pending, name)
        return Initializer(self, name)

    def changes(self, wtxn: WriteTxn, since: int = 0) -> ChangeIterator[T]:
        """Register an iterator that yields all present objects first and every change from now on.

        With `since`, go on from that revision: what was written up to it is not yielded again. It
        is gone with the transaction when that is aborted.

        Raises:
            RevisionGone: a delete after `since` is forgotten, or the table has not come that far.
        """
        if wtxn._number != self.txn_id:
            raise self._not_locked(wtxn)
        if since and not self.forgotten <= since <= self.base:
            raise RevisionGone(f"table {self.name!r}: changes since revision {since} are not known")
        return ChangeIterator(self, since)

    def _bury(self, key: Any) -> tuple[T | None, bool]:
        old = self.rows.get(key)
        if old is None or old.dead:
            return None, False
        if self.secondaries:
            self.unindex(old)
        self.put(key, old.obj, old, True)
        self.count -= 1
        return cast("T", old.obj), True

    def _not_locked(self, wtxn: WriteTxn) -> Exception:
        if wtxn.closed:
            return TransactionClosed(f"table {self.name!r}: {wtxn.opened} is closed")
        return TableNotLocked(f"table {self.name!r} is not held by {wtxn.opened}")


class Initializer:
    """Marks one initializer done; calling it again does nothing."""

    def __init__(self, table: RWTable[Any], name: str) -> None:
        self._table = table
        self._name = name

    def __call__(self, wtxn: WriteTxn) -> None:
        table = self._table
        if wtxn._number != table.txn_id:
            raise table._not_locked(wtxn)
        if self._name in table.pending:
            table.pending = tuple([name for name in table.pending if name != self._name])


def _live_pairs(
    newest: dict[Any, Row], rows: Iterable[Row], rev: int, txn: ReadTxn
) -> Iterator[tuple[Any, int]]:
    """Yield the rows that a snapshot sees; holds `txn`, so that its versions stay."""
    for row in rows:
        if not row.dead and visible(newest.get(row.key), rev) is row:
            yield row.obj, row.rev


def new_table(
    db: DB,
    name: str,
    primary: Index,
    *secondary: Index,
    columns: Sequence[Column] = (),
    row_type: type[T] | None = None,
    to_json: Callable[[T], Any] | None = None,
    budget_bytes: int | None = None,
) -> RWTable[T]:
    """Make a table and register it with the database.

    `columns` and `to_json` are kept for whoever prints the table; `row_type` is what rows are
    parsed into; `budget_bytes` is what `usage` compares the estimated size with.

    Raises:
        TableExists: the name is taken.
        RegistrationError: the primary index is not unique, has several keys, or two indexes have
        one name.
    """
    check_indexes(name, primary, secondary)
    table: RWTable[T] = RWTable(
        db, name, primary, secondary, columns, row_type, to_json, budget_bytes
    )
    db.register(table)
    return table


def check_indexes(name: str, primary: Index, secondary: Sequence[Index]) -> None:
    """Raise RegistrationError unless the indexes fit together."""
    if primary.key is None or not primary.unique:
        raise RegistrationError(f"table {name!r}: the primary index is unique and has one key")
    names = [index.name for index in (primary, *secondary)]
    if len(set(names)) != len(names):
        raise RegistrationError(f"table {name!r}: two indexes of one name: {', '.join(names)}")
