# SPDX-License-Identifier: Apache-2.0
"""Transactions: a read transaction is the root it was taken from; a write transaction holds tables.

ReadTxn   snaps  [Snap of table 0, Snap of table 1, ...]      immutable, shared by all who took it
WriteTxn  the same list, with the live state in place of each table that it holds
"""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Any

from statedb._opened import Opened
from statedb._store import Snap
from statedb.errors import TransactionClosed, TransactionForgotten

if TYPE_CHECKING:
    from statedb.db import DB
    from statedb.table import Table


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


class WriteTxn(ReadTxn):
    """Holds the tables it was opened for until it is committed or aborted; sees its own writes.

    As a context manager it commits at the end of the block, and aborts when the block raises.
    """

    def __init__(self, db: DB, tables: list[Table[Any]], number: int) -> None:
        self._number = 0
        super().__init__(db, [], None)
        self._tables = tables
        self.opened = Opened(", ".join([table.name for table in tables]))
        for held, table in enumerate(tables):
            try:
                table.acquire(self.opened)
            except BaseException:
                for other in tables[:held]:
                    other.release()
                raise
        self._number = number
        root = db._root
        self._base: ReadTxn | None = root
        snaps = root.snaps.copy()
        for table in tables:
            table.begin(number, db._newest_below(table.position, table.rev))
            snaps[table.position] = table.live
        self.snaps = snaps

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
        self.snaps = []

    def _release(self) -> None:
        self._detach()
        self._number = 0
        for table in self._tables:
            table.release()

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
