# SPDX-License-Identifier: Apache-2.0
"""Rows of any table to claims in ``ipcache``.

Each change of the table costs what that row claims, however many rows there are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import islice
from typing import Any, Final, Generic, TypeVar

import anyio.lowlevel

from cilia.identity.ipcache.writer import Claims, IPCacheWriter
from statedb import DB, Change, ChangeIterator, ReadTxn, RWTable, Table, WatchSet, WriteTxn
from tables.identity.ipcache import IPCacheEntry

__all__ = ["Follower", "Known", "Mark"]

T = TypeVar("T")

#: Says inside a transaction how far a source of claims is known.
Mark = Callable[[WriteTxn], None]

#: Rows in one transaction: 100,000 at a start hold nobody up for more than some milliseconds.
BATCH: Final = 1000


class Follower(Generic[T]):
    """One task calls `run`. Owns the claims of one table's rows."""

    def __init__(
        self,
        db: DB,
        table: RWTable[T],
        writer: IPCacheWriter,
        claims_of: Callable[[T], Claims],
    ) -> None:
        """`claims_of`: the claims of a row; no two rows make one of the same source and owner."""
        self._db = db
        self._table = table
        self._writer = writer
        self._claims_of = claims_of
        self._known = Known(db, writer.table, table)
        # By primary key, a cache of ``ipcache``.
        self._held: dict[Any, Claims] = {}

    async def run(self) -> None:
        """Follow the table for ever; may be called again after a failure."""
        with self._db.write_txn(self._table) as wtxn:
            changes = self._table.changes(wtxn)
        try:
            # What went while nobody looked is in no change.
            self._db.look(self._forget_missing)
            while True:
                watches = self._db.look(partial(self.step, changes))
                if watches is None:
                    await anyio.lowlevel.checkpoint()
                else:
                    await watches.wait()
        finally:
            changes.close()

    def _forget_missing(self, txn: ReadTxn) -> None:
        missing = [key for key in self._held if self._table.get(txn, key) is None]
        self._write({key: {} for key in missing}, None)

    def step(self, iterator: ChangeIterator[T], txn: ReadTxn) -> WatchSet | None:
        """Take some changes; return what to wait for, None if there are more."""
        found, changed = iterator.next(txn)
        changes = list(islice(found, BATCH))
        ended = len(changes) < BATCH
        self._write(self._wanted(changes), self._known.mark(txn) if ended else None)
        return WatchSet(changed, self._table.filled_watch(txn)[1]) if ended else None

    def _wanted(self, changes: Sequence[Change[T]]) -> dict[Any, Claims]:
        """Return the claims of the rows that make others now, by primary key."""
        key_of = self._table.primary_key
        wanted = {key_of(c.obj): {} if c.deleted else self._claims_of(c.obj) for c in changes}
        return {key: claims for key, claims in wanted.items() if claims != self._held.get(key, {})}

    def _write(self, wanted: Mapping[Any, Claims], mark: Mark | None) -> None:
        if not wanted and mark is None:
            return
        with self._db.write_txn(self._writer.table) as wtxn:
            pairs = ((self._held.get(key, {}), claims) for key, claims in wanted.items())
            self._writer.exchange(wtxn, pairs)
            if mark is not None:
                mark(wtxn)
        for key, claims in wanted.items():
            if claims:
                self._held[key] = claims
            else:
                self._held.pop(key, None)


class Known:
    """Tells ``ipcache`` how far a table is known that claims are made from."""

    def __init__(
        self, db: DB, ipcache: RWTable[IPCacheEntry], inputs: Table[Any], name: str = ""
    ) -> None:
        self.name = name or inputs.name
        self._ipcache = ipcache
        self._inputs = inputs
        with db.write_txn(ipcache) as wtxn:
            self._done = ipcache.register_initializer(wtxn, self.name)

    def mark(self, txn: ReadTxn) -> Mark | None:
        """Return what says that the table is known, or all that can be had of it; None: no news."""
        if self.name not in self._ipcache.pending_initializers(txn):
            return None
        if self._inputs.initialized(txn):
            return self._done
        stalled = self.name in self._ipcache.stalled_initializers(txn)
        return self._done.stall if self._inputs.filled(txn) and not stalled else None
