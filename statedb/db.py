# SPDX-License-Identifier: Apache-2.0
"""The database: a registry of tables over what is committed.

The design follows cilium/statedb (Go): tables of immutable objects, snapshots without locks, a
write lock a table, watch channels. What is inside differs: where the original has persistent radix
trees, here are versioned rows in dictionaries and a log, because that is what is quick in Python
(see `statedb._store`).
"""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from statedb._commits import Commits, Metrics, ReadTxn
from statedb._store import Store
from statedb.errors import (
    InstanceMismatch,
    RegistrationError,
    TableExists,
    TransactionError,
    UnknownTable,
)
from statedb.index import Index
from statedb.table import Column, RWTable, Table
from statedb.txn import WriteTxn

T = TypeVar("T")


class DB(Commits):
    """Tables, and the root with a snapshot of each.

        DB.root -> ReadTxn -> snaps[table.position] -> Snap -> rows, log, views

    Looking up: 1. take the root; 2. take the table's snap; 3. take the newest row of the key and go
    back to the first whose revision is not above the snap's.

    Writing: 1. lock the tables in table order; 2. add rows above the committed revision, which
    nobody sees; 3. make a snap of each written table; 4. swap the root; 5. close the watch channels
    whose answers changed; 6. forget what no live snapshot and no change iterator needs; 7. unlock.

    Observing deletes: a change iterator is registered with the table; rows of deleted objects stay
    as tombstones until all iterators passed them.

    `history`: how many committed states are kept for `read_txn_at`.
    """

    def __init__(
        self, name: str = "db", *, history: int = 0, metrics: Metrics | None = None
    ) -> None:
        super().__init__(name, history, metrics)
        self.instance_id: str = uuid.uuid4().hex
        self._tables: list[RWTable[Any]] = []
        self._by_name: dict[str, RWTable[Any]] = {}
        self._numbers: Any = itertools.count(1)

    # Tables.

    def register(self, table: RWTable[Any]) -> None:
        """Add a table; `new_table` does it.

        Raises:
            TableExists: the name is taken.
        """
        store = table._store
        with self._lock:
            if table.name in self._by_name:
                raise TableExists(f"database {self.name!r} has a table {table.name!r} already")
            store.position = len(self._tables)
            self._tables.append(table)
            self._by_name[table.name] = table
            self._swap([store.snap])

    def tables(self) -> list[Table[Any]]:
        """Return all tables in table order."""
        return list(self._tables)

    def table(self, name: str) -> Table[Any]:
        """Return the table of this name.

        Raises:
            UnknownTable: there is none.
        """
        table = self._by_name.get(name)
        if table is None:
            raise UnknownTable(f"database {self.name!r} has no table {name!r}")
        return table

    # Transactions.

    def read_txn(self) -> ReadTxn:
        """Return an immutable snapshot of all tables; O(1)."""
        return self.root

    def look(self, see: Callable[[ReadTxn], T]) -> T:
        """Return what `see` makes of a new snapshot, which lives for this call alone.

        A task that waits must hold no snapshot: every row that is deleted meanwhile would stay, in
        all tables. So asynchronous code looks through this, and keeps what it needs of the rows.
        """
        return see(self.read_txn())

    def write_txn(self, *tables: RWTable[Any]) -> WriteTxn:
        """Lock the tables, in table order, and return the transaction that may write them.

        Raises:
            TransactionOpen: this thread holds one of them already.
            UnknownTable: a table of another database.
        """
        number: int = next(self._numbers)
        if len(tables) == 1 and tables[0]._commits is self:
            return WriteTxn(self, [tables[0]._store], number)
        return WriteTxn(self, self._in_order(tables), number)

    def _in_order(self, tables: tuple[RWTable[Any], ...]) -> list[Store]:
        if not tables:
            raise TransactionError("a write transaction needs at least one table")
        ordered: dict[int, Store] = {}
        for table in tables:
            if table._commits is not self:
                raise UnknownTable(f"table {table.name!r} is not of database {self.name!r}")
            ordered[table._store.position] = table._store
        return [ordered[position] for position in sorted(ordered)]

    def read_txn_at(self, table: Table[Any], revision: int, instance_id: str = "") -> ReadTxn:
        """Return the newest kept snapshot in which the table's revision is not above `revision`.

        Raises:
            RevisionGone: the oldest kept snapshot is newer (see `history`), or the table has not
            come that far.
            InstanceMismatch: `instance_id` is given and another database's.
        """
        if instance_id and instance_id != self.instance_id:
            raise InstanceMismatch(
                f"revision {revision} is of instance {instance_id}, this is {self.instance_id}"
            )
        return self._at(table._store, revision)

    def __repr__(self) -> str:
        return f"<DB {self.name} {len(self._tables)} tables>"


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
