# SPDX-License-Identifier: Apache-2.0
"""What a table keeps: versions, a revision log, entries of secondary indexes, and the snapshots of
them.

    rows      dict  key -> newest Row -> older Row -> ...       (uncommitted ones included)
    log       [[Row, Row, ...], ..., tail]                      in revision order
    entries   dict  secondary key -> primary key(s)             a superset, checked against the row
    when read
    views     sorted (key, object) pairs of one snapshot        made by the first ordered read

One append to the log serves as by-revision index, change feed, undo log and pending delta of all
views, so that a write costs one dictionary entry and one append. A row of the log counts for a
snapshot if looking its key up in that snapshot gives this very row.

Why readers need no lock: a row is complete before it enters the dictionary; its revision is above
that of every snapshot until its transaction commits; lists only grow beyond the length that a
snapshot noted, and everything that shrinks is replaced by a new list. Each step that a reader takes
is one operation under the interpreter's lock.
"""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterable
from operator import attrgetter
from typing import Any, Final

from statedb._opened import Opened
from statedb._row import NEVER, NEWEST, Row, unlink, visible
from statedb._secondary import Secondary
from statedb._tree import View
from statedb._watchers import Difference, Watchers
from statedb.errors import DuplicateKey, UnknownIndex
from statedb.index import Index
from statedb.lpm import Lengths, LpmKey

NO_TXN: Final = -1
"""What `txn_id` is when no transaction holds the table; a closed transaction has number 0."""
SEGMENT: Final = 4096
"""Rows in a segment of the log: compaction rewrites one at a time, 80 us."""

SLACK: Final = 1024
"""Superseded rows that a log may hold beyond the number of its live ones."""

_rev_of: Final = attrgetter("rev")


class Snap:
    """What one committed state of one table is: a revision, and how far the table's lists counted
    then.

    The snap of an open write transaction has revision `NEWEST` and no lengths: it sees all there
    is.
    """

    def __init__(
        self,
        store: Store,
        rev: int,
        count: int,
        segments: list[list[Row]],
        tail: list[Row],
        moved: list[tuple[Secondary, Any, Any, int]],
        pending: tuple[str, ...],
        stalled: tuple[str, ...],
        views: list[View | None],
    ) -> None:
        self.store = store
        self.rev = rev
        self.count = count
        self.segments = segments
        self.tail = tail
        self.tail_len = len(tail)
        self.moved = moved
        self.moved_len = len(moved)
        self.pending = pending
        self.stalled = stalled
        self.views = views


class Tracker:
    """How far one change iterator has come: tombstones above `rev` stay for it. Deletes up to
    `since` are not reported to it.
    """

    def __init__(self, rev: int, since: int) -> None:
        self.rev = rev
        self.since = since


class Store:
    """State and internal procedures of a table; `statedb.table` has what users call.

    Written only by the holder of `lock`; `txn_id` is the holder's number.
    """

    def __init__(self, name: str, primary: Index, secondary: Iterable[Index]) -> None:
        self.name = name
        self.position = -1
        self.primary = primary
        self.primary_key: Any = primary.key
        self.secondaries: list[Secondary] = [
            Secondary(index, at) for at, index in enumerate(secondary, 1)
        ]
        self.lengths: Lengths | None = Lengths() if primary.is_lpm else None
        self.indexed: bool = bool(self.secondaries) or self.lengths is not None

        self.rows: dict[Any, Row] = {}
        self.segments: list[list[Row]] = []
        self.tail: list[Row] = []
        self.rev = 0
        self.count = 0
        self.moved: list[tuple[Secondary, Any, Any, int]] = []
        self.moved_rev: int = NEVER
        self.pending: tuple[str, ...] = ()
        self.stalled: tuple[str, ...] = ()
        self.views: list[View | None] = [None] * (1 + len(self.secondaries))
        self.viewed = False
        self.graveyard: deque[Row] = deque()
        self.forgotten = 0  # revision of the newest tombstone that was removed
        self.trackers: list[Tracker] = []
        self.old_trackers: list[Tracker] = self.trackers
        self.log_horizon: int = NEVER
        self.log_len = 0
        self.compact_at = -1
        self.settle_at = 0
        self.segment_rows: int = SEGMENT
        self.slack_rows: int = SLACK
        self.watchers = Watchers()

        self.lock = threading.Lock()
        self.opened: Opened | None = None
        self.txn_id = NO_TXN
        self.base = 0
        self.start = 0
        self.keep: int = NEVER
        self.snap: Snap = self._snapshot()
        self.live: Snap = self._snapshot()
        self.live.rev = NEWEST

    # Transactions: begin, seal or undo, release.

    def release(self) -> None:
        """Give the table's lock back."""
        self.txn_id = NO_TXN
        self.opened = None
        self.lock.release()

    def begin(self, txn_id: int, keep: int) -> Snap:
        """Start a write transaction and return what it sees; the lock is held.

        `keep`: the newest revision below the current one that a live snapshot reads, or NEVER.
        """
        self.txn_id = txn_id
        self.base = self.rev
        self.start = len(self.tail)
        self.keep = keep
        self.old_trackers = self.trackers
        self.live.views = self.views
        return self.live

    @property
    def dirty(self) -> bool:
        """Whether the open transaction changed anything."""
        snap = self.snap
        if self.pending is not snap.pending or self.stalled is not snap.stalled:
            return True
        return self.rev != self.base

    def seal(self) -> Snap:
        """Return the snapshot of the state as it is now, to be committed."""
        if self.viewed:
            self.views = [
                view if view is not None and self.usable(view, at) else None
                for at, view in enumerate(self.views)
            ]
        return self._snapshot()

    def _snapshot(self) -> Snap:
        return Snap(
            self,
            self.rev,
            self.count,
            self.segments,
            self.tail,
            self.moved,
            self.pending,
            self.stalled,
            self.views,
        )

    def undo(self) -> None:
        """Take back all writes of the open transaction."""
        tail = self.tail
        rows = self.rows
        moved = self.moved
        for at in range(len(tail) - 1, self.start - 1, -1):
            row = tail[at]
            if row.prev is None:
                rows.pop(row.key, None)
            else:
                rows[row.key] = row.prev
            for second in self.secondaries:
                for skey in second.index.keys_of(row.obj):
                    moved.append((second, skey, row.key, self.base))
        del tail[self.start :]
        if self.trackers is not self.old_trackers:
            self.trackers = [tracker for tracker in self.trackers if tracker in self.old_trackers]
        graveyard = self.graveyard
        while graveyard and graveyard[-1].rev > self.base:
            graveyard.pop()
        self.rev = self.base
        self.count = self.snap.count
        self.pending = self.snap.pending
        self.stalled = self.snap.stalled

    def written(self) -> list[Row]:
        """Return the rows of the open transaction in revision order."""
        return self.tail[self.start :]

    def forget_versions(self) -> None:
        """Drop the predecessors of all rows of this transaction: no snapshot older than it is read
        any more.
        """
        tail = self.tail
        for at in range(self.start, len(tail)):
            unlink(tail[at])

    def roll(self) -> None:
        """Close the tail of the log and start a new one."""
        tail = self.tail
        size = self.segment_rows
        if len(tail) <= 2 * size:
            self.segments = [*self.segments, tail]
        else:
            parts = [tail[at : at + size] for at in range(0, len(tail), size)]
            self.segments = self.segments + parts
        self.tail = []

    # Writing one row.

    def put(self, key: Any, obj: Any, old: Row | None, dead: bool) -> None:
        """Add the new version of `key`; `old` is its newest row.

        A version of the same transaction is skipped in the chain, and one that no snapshot reads is
        cut out.
        """
        rev = self.rev + 1
        if old is None:
            row = Row(key, obj, rev, None, dead)
        elif old.rev > self.base:
            row = Row(key, obj, rev, old.prev, dead)
        else:
            prev = old.prev
            if prev is not None and prev.rev > self.keep:
                old.prev = prev.prev
            row = Row(key, obj, rev, old, dead)
        self.rev = rev
        self.rows[key] = row
        self.tail.append(row)
        if dead:
            self.graveyard.append(row)

    def reindex(self, obj: Any, key: Any, old: Row | None) -> None:
        """Add the entries of a new version; a duplicate key, or an index function that raises,
        leaves none.

        An entry that an older version of the same object may not have is recorded as moved before
        it is added, so that a reader who finds the entry also finds the need to check it.
        """
        if self.lengths is not None and old is None:
            self.lengths.add(key)
        if old is None:
            self._index_new(obj, key)
            return
        steps: list[tuple[Secondary, list[Any], list[Any]]] = []
        before = old.obj
        dead = old.dead
        for second in self.secondaries:
            if second.single:
                skey = second.key(obj)
                was = second.key(before)
                if not dead and (was is skey or was == skey):
                    continue
                steps.append((second, [was], [skey]))
            else:
                skeys = second.index.keys_of(obj)
                had = second.index.keys_of(before)
                if not dead and skeys == had:
                    continue
                steps.append((second, had, skeys))
            if second.unique:
                self._refuse_duplicates(second, steps[-1][2], key)
        for second, had, skeys in steps:
            self._move(second, had, skeys, key, dead)

    def _index_new(self, obj: Any, key: Any) -> None:
        """Add the entries of an object whose key the table does not have."""
        secondaries = self.secondaries
        if len(secondaries) == 1 and secondaries[0].single:
            second = secondaries[0]
            skey = second.key(obj)
            if second.unique:
                self._refuse_duplicates(second, [skey], key)
            second.add(skey, key)
            return
        keys: list[Any] = []  # one key, or a list of them where an index has several
        for second in secondaries:
            if second.single:
                skey = second.key(obj)
                keys.append(skey)
                if second.unique:
                    self._refuse_duplicates(second, [skey], key)
            else:
                skeys = second.index.keys_of(obj)
                keys.append(skeys)
                if second.unique:
                    self._refuse_duplicates(second, skeys, key)
        for at, second in enumerate(secondaries):
            if second.single:
                second.add(keys[at], key)
            else:
                for skey in keys[at]:
                    second.add(skey, key)

    def _move(
        self,
        second: Secondary,
        before: list[Any],
        skeys: list[Any],
        key: Any,
        dead: bool,
    ) -> None:
        rev = self.rev + 1
        for skey in before:
            if skey not in skeys:
                self.moved.append((second, skey, key, rev))
        for skey in skeys:
            if skey not in before:
                self.moved.append((second, skey, key, rev))
                second.add(skey, key)
            elif dead:
                second.add(skey, key)

    def _refuse_duplicates(self, second: Secondary, skeys: list[Any], key: Any) -> None:
        for skey in skeys:
            for other in second.candidates(skey) if skey in second.entries else ():
                row = self.rows.get(other)
                if row is not None and not row.dead and other != key and second.has(row.obj, skey):
                    raise DuplicateKey(
                        f"table {self.name!r}: unique index {second.index.name!r} has {skey!r} "
                        f"for object {other!r}, refused for {key!r}"
                    )

    def unindex(self, old: Row) -> None:
        """Record that the entries of a deleted object are due for removal."""
        obj = old.obj
        rev = self.rev + 1
        for second in self.secondaries:
            if second.single:
                self.moved.append((second, second.key(obj), old.key, rev))
            else:
                for skey in second.index.keys_of(obj):
                    self.moved.append((second, skey, old.key, rev))

    # Reading.

    def lookup(self, key: Any, rev: int) -> Row | None:
        """Return the live version of `key` at a revision."""
        row = visible(self.rows.get(key), rev)
        return None if row is None or row.dead else row

    def secondary_of(self, index: Index | None) -> Secondary | None:
        """Return the entries of a secondary index, None for the primary index.

        A table has few, so that a look at each is quicker than a dictionary.

        Raises:
            UnknownIndex: it is none of this table's.
        """
        if index is None or index is self.primary:
            return None
        for second in self.secondaries:
            if second.index is index:
                return second
        raise UnknownIndex(f"table {self.name!r} has no index {index.name!r}")

    def position_of(self, index: Index | None) -> int:
        """Return the index's number in this table. Raises: UnknownIndex."""
        second = self.secondary_of(index)
        return 0 if second is None else second.position

    def first_with(self, second: Secondary, skey: Any, rev: int) -> Row | None:
        """Return the first of `rows_with`, whose reasons hold here too."""
        moved = self.moved
        entry = second.entries.get(skey)
        if entry is None:
            return None
        if moved or self.moved or type(entry) is dict:
            rows = self.rows_with(second, skey, rev)
            return rows[0] if rows else None
        row = self.rows.get(entry)
        while row is not None and row.rev > rev:
            row = row.prev
        return None if row is None or row.dead else row

    def rows_with(self, second: Secondary, skey: Any, rev: int) -> list[Row]:
        """Return the live rows with this key in a secondary index, in primary order.

        Entries are exact while nothing is recorded as moved, looked at before they are read (they
        may be trimmed then) and after (a writer records first and adds then).
        """
        moved = self.moved
        entry = second.entries.get(skey)
        if entry is None:
            return []
        check = bool(moved or self.moved)
        keys: list[Any] = sorted(entry) if type(entry) is dict else [entry]
        rows = self.rows
        found: list[Row] = []
        for key in keys:
            row = rows.get(key)
            while row is not None and row.rev > rev:
                row = row.prev
            if row is not None and not row.dead and (not check or second.has(row.obj, skey)):
                found.append(row)
        return found

    def rows_covering(self, position: int, asked: LpmKey, rev: int, first: bool) -> list[Row]:
        """Return the live rows whose prefix covers `asked`, longest first; only the longest with
        `first`.
        """
        found: list[Row] = []
        second = None if position == 0 else self.secondaries[position - 1]
        lengths = self.lengths if second is None else second.lengths
        assert lengths is not None
        width, value, most = asked
        for length in lengths.by_width.get(width, ()):
            if length > most:
                continue
            shift = width - length
            skey = (width, value >> shift << shift, length)
            if second is None:
                row = self.lookup(skey, rev)
                if row is not None:
                    found.append(row)
            elif skey in second.entries:
                found.extend(self.rows_with(second, skey, rev))
            if first and found:
                break
        return found

    def runs_after(self, snap: Snap, rev: int) -> list[list[Row]]:
        """Return the rows of the snapshot's log above revision `rev`, as a list of runs; some may
        be outdated.

        O(log n), and a copy of the first and last run's pointers.
        """
        live = snap.rev == NEWEST
        tail = self.tail if live else snap.tail
        end = len(tail) if live else snap.tail_len
        if end and tail[0].rev <= rev + 1:
            return [tail[_after(tail, rev, end) : end]]
        runs: list[list[Row]] = []
        segments = self.segments if live else snap.segments
        first = len(segments)
        while first and segments[first - 1][-1].rev > rev:
            first -= 1
        if first < len(segments):
            segment = segments[first]
            runs.append(segment[_after(segment, rev, len(segment)) :])
            runs.extend(segments[first + 1 :])
        if end:
            runs.append(tail[:end])
        return runs

    def usable(self, view: View, position: int) -> bool:
        """Whether the log (and the moved entries) still hold all that happened since the view."""
        if view.rev < self.log_horizon:
            return False
        return position == 0 or view.rev >= self.moved_rev

    def index_keys_of(self, position: int) -> Callable[[Any], list[Any]]:
        """Return what gives an object's keys in the index of this number."""
        if position == 0:
            return self.primary.keys_of
        return self.secondaries[position - 1].index.keys_of

    def difference(self, rows: list[Row], before: Snap, after: Snap) -> Difference:
        """Return what watched queries compare; `rows` were written between the snapshots."""
        return Difference(
            self.rows,
            self.index_keys_of,
            rows,
            before.rev,
            after.rev,
            before.count != after.count,
            bool(before.pending) != bool(after.pending),
            before.pending != after.pending or before.stalled != after.stalled,
        )


def _after(rows: list[Row], rev: int, end: int) -> int:
    """Return the position of the first row above revision `rev` among the first `end`."""
    guess = rev + 1 - rows[0].rev
    if 0 <= guess < end and rows[guess].rev == rev + 1:
        return guess
    return bisect_right(rows, rev, 0, end, key=_rev_of)
