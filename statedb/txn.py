# SPDX-License-Identifier: Apache-2.0
"""Write transactions: they hold tables, and see the snapshot that they started from with the live
state in place of each table that they hold.
"""

from __future__ import annotations

import sys
import time
from threading import get_ident
from types import TracebackType
from typing import Final

from statedb._commits import Commits, ReadTxn
from statedb._opened import Opened, describe, refuse_reopen
from statedb._row import COMPILED
from statedb._store import Snap, Store
from statedb.errors import TransactionClosed, TransactionForgotten

_CALLER: Final = 0 if COMPILED else 2
"""Frames from `WriteTxn.__init__` to who called `DB.write_txn`: compiled functions have none."""


_CLOSED: Final[list[Snap]] = []
"""What a closed transaction sees."""


class WriteTxn(ReadTxn):
    """Holds the tables it was opened for until it is committed or aborted; sees its own writes.

    As a context manager it commits at the end of the block, and aborts when the block raises.
    """

    def __init__(self, commits: Commits, stores: list[Store], number: int) -> None:
        self._number = 0
        super().__init__(commits, _CLOSED, None)
        self._stores = stores
        frame = sys._getframe(_CALLER)
        self._opened: Opened = (stores, frame.f_code, frame.f_lasti, get_ident())
        self.lock_wait_s = 0.0
        self.began_s = 0.0 if commits.metrics is None else time.perf_counter()
        if len(stores) == 1:
            self._acquire(stores[0])
        else:
            self._acquire_all()
        self._number = number
        root = commits.root
        self._base: ReadTxn | None = root
        snaps = root.snaps.copy()
        for store in stores:
            snaps[store.position] = store.begin(number, commits.newest_below(store))
        self.snaps = snaps

    def _acquire(self, store: Store) -> None:
        """Take a table's lock; refuse to wait for this very thread."""
        if not store.lock.acquire(False):
            refuse_reopen(store.opened)
            start = time.perf_counter()
            store.lock.acquire()
            self.lock_wait_s += time.perf_counter() - start
        store.opened = self._opened

    def _acquire_all(self) -> None:
        held: list[Store] = []
        try:
            for store in self._stores:
                self._acquire(store)
                held.append(store)
        except BaseException:
            for store in held:
                store.release()
            raise

    def base(self) -> ReadTxn:
        """Return the snapshot that the transaction started from."""
        if self._base is None:
            raise TransactionClosed(f"{self.opened} is closed")
        return self._base

    @property
    def opened(self) -> str:
        """The tables of the transaction and where it was opened."""
        return describe(self._opened)

    @property
    def closed(self) -> bool:
        """Whether the transaction was committed or aborted."""
        return self._number == 0

    def commit(self) -> ReadTxn:
        """Publish all writes at once and return the snapshot that has them.

        Watch channels close only after the root is swapped and the tables are released, so that
        whoever wakes finds the new state. Versions are forgotten only after the swap too: whether
        a snapshot is held can be told only when no one can take it any more.

        Raises:
            TransactionClosed: it was committed or aborted before.
        """
        if self._number == 0:
            raise TransactionClosed(f"{self.opened} is closed: commit")
        commits, stores = self.commits, self._stores
        changed = stores if len(stores) == 1 else [store for store in stores if store.dirty]
        if not changed or not changed[0].dirty:
            self._release()
            return commits.root
        try:
            snaps = commits.seal(changed)
        except BaseException:
            self.abort()
            raise
        self._detach()
        root, closing = commits.publish(changed, snaps)
        self._release()
        for channel in closing:
            channel.close()
        metrics = commits.metrics
        if metrics is not None:
            for store in changed:
                metrics.committed(store.name)
        return root

    def abort(self) -> None:
        """Take back all writes; without effect on a closed transaction."""
        if self._number:
            for store in self._stores:
                store.undo()
            self._release()

    def _detach(self) -> None:
        """Let go of the snapshot that the transaction started from."""
        self._base = None
        self.snaps = _CLOSED

    def _release(self) -> None:
        self._detach()
        self._number = 0
        for store in self._stores:
            store.release()
        metrics = self.commits.metrics
        if metrics is not None and self.began_s:
            held_s = time.perf_counter() - self.began_s - self.lock_wait_s
            names = tuple([store.name for store in self._stores])
            metrics.write_txn(self.commits.name, names, self.lock_wait_s, held_s)

    def __enter__(self) -> WriteTxn:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._number:
            if kind is None:
                self.commit()
            else:
                self.abort()

    def __del__(self) -> None:
        if self._number:
            self.abort()
            raise TransactionForgotten(f"{self.opened} was dropped without commit or abort")
