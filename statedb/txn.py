# SPDX-License-Identifier: Apache-2.0
"""Transactions: a read transaction is the root it was taken from; a write transaction holds tables.

ReadTxn   snaps  [Snap of table 0, Snap of table 1, ...]      immutable, shared by all who took it
WriteTxn  the same list, with the live state in place of each table that it holds
"""

from __future__ import annotations

import sys
import time
from threading import get_ident
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final

from statedb._opened import Opened, describe, refuse_reopen
from statedb._row import COMPILED, NEVER
from statedb._store import Snap
from statedb.errors import TransactionClosed, TransactionForgotten

if TYPE_CHECKING:
    from statedb.db import DB
    from statedb.table import Table


_CALLER: Final = 0 if COMPILED else 2
"""Frames from `WriteTxn.__init__` to who called `DB.write_txn`: compiled functions have none."""


_CLOSED: Final[list[Snap]] = []
"""What a closed transaction sees."""


class ReadTxn:
    """An immutable snapshot of all tables. Costs nothing to take and pins what it sees while it is
    held.
    """

    def __init__(self, db: DB, snaps: list[Snap], token: object) -> None:
        self._db = db
        self.snaps = snaps
        self._token = token

    @property
    def db(self) -> DB:
        """The database of this snapshot."""
        return self._db

    @property
    def closed(self) -> bool:
        """Whether the transaction can no longer be read; a snapshot always can."""
        return False

    def base(self) -> ReadTxn:
        """Return the snapshot of what is committed."""
        return self


class WriteTxn(ReadTxn):
    """Holds the tables it was opened for until it is committed or aborted; sees its own writes.

    As a context manager it commits at the end of the block, and aborts when the block raises.
    """

    def __init__(self, db: DB, tables: list[Table[Any]], number: int) -> None:
        self._number = 0
        super().__init__(db, _CLOSED, None)
        self._tables = tables
        frame = sys._getframe(_CALLER)
        self._opened: Opened = (tables, frame.f_code, frame.f_lasti, get_ident())
        self.lock_wait_s = 0.0
        self.began_s = 0.0 if db.metrics is None else time.perf_counter()
        if len(tables) == 1:
            self._acquire(tables[0])
        else:
            self._acquire_all()
        self._number = number
        root = db._root
        self._base: ReadTxn | None = root
        snaps = root.snaps.copy()
        for table in tables:
            keep = db._newest_below(table) if db._live else NEVER
            snaps[table.position] = table.begin(number, keep)
        self.snaps = snaps

    def _acquire(self, table: Table[Any]) -> None:
        """Take a table's lock; refuse to wait for this very thread."""
        if not table.lock.acquire(False):
            refuse_reopen(table)
            start = time.perf_counter()
            table.lock.acquire()
            self.lock_wait_s += time.perf_counter() - start
        table.opened = self._opened

    def _acquire_all(self) -> None:
        held: list[Table[Any]] = []
        try:
            for table in self._tables:
                self._acquire(table)
                held.append(table)
        except BaseException:
            for table in held:
                table.release()
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
    def tables(self) -> list[Table[Any]]:
        """The tables held, in table order."""
        return list(self._tables)

    @property
    def closed(self) -> bool:
        """Whether the transaction was committed or aborted."""
        return self._number == 0

    def commit(self) -> ReadTxn:
        """Publish all writes at once and return the snapshot that has them.

        Raises:
            TransactionClosed: it was committed or aborted before.
        """
        if self._number == 0:
            raise TransactionClosed(f"{self.opened} is closed: commit")
        return self._db._commit(self)

    def abort(self) -> None:
        """Take back all writes; without effect on a closed transaction."""
        if self._number:
            for table in self._tables:
                table.undo()
            self._release()

    def _detach(self) -> None:
        """Let go of the snapshot that the transaction started from."""
        self._base = None
        self.snaps = _CLOSED

    def _release(self) -> None:
        self._detach()
        self._number = 0
        for table in self._tables:
            table.release()
        metrics = self._db.metrics
        if metrics is not None and self.began_s:
            held_s = time.perf_counter() - self.began_s - self.lock_wait_s
            names = tuple([table.name for table in self._tables])
            metrics.write_txn(self._db.name, names, self.lock_wait_s, held_s)

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
