# SPDX-License-Identifier: Apache-2.0
"""A table and targets in memory for tests of the engine."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import anyio
import msgspec

from reconcilers import Config, Entry, Reconciler
from statedb import DB, Column, Index, ReadTxn, RWTable, Status, new_table
from statedb.status import pending

FAST = Config(
    round_interval_s=0.0,
    retry_backoff_min_s=0.001,
    retry_backoff_max_s=0.01,
    refresh_interval_s=0.0,
    prune_interval_s=0.0,
)


class Row(msgspec.Struct, frozen=True):
    id: int
    value: str
    status: Status = msgspec.field(default_factory=pending)
    learned: int = 0


ID = Index("id", key=lambda row: row.id, parse=int)


def new_rows(db: DB, name: str = "rows") -> RWTable[Row]:
    columns = (Column("ID", lambda row: str(row.id)),)
    return new_table(db, name, ID, columns=columns, row_type=Row)


def put(db: DB, table: RWTable[Row], *pairs: tuple[int, str]) -> int:
    """Insert pending rows; the table's revision after it."""
    with db.write_txn(table) as wtxn:
        for number, value in pairs:
            table.insert(wtxn, Row(number, value, pending()))
    return table.revision(db.read_txn())


def remove(db: DB, table: RWTable[Row], *numbers: int) -> int:
    with db.write_txn(table) as wtxn:
        for number in numbers:
            row = table.get(wtxn, number)
            if row is not None:
                table.delete(wtxn, row)
    return table.revision(db.read_txn())


class TargetError(Exception):
    """An injected fault."""


class Target:
    """A dict that remembers the calls; `poison` ids always fail, others with `fault_rate`."""

    def __init__(self, fault_rate: float = 0.0, seed: int = 1) -> None:
        self.held: dict[int, str] = {}
        self.calls: list[tuple[str, int]] = []
        self.poison: set[int] = set()
        self.poison_delete: set[int] = set()
        self.fault_rate = fault_rate
        self.prunes = 0
        self.fail_prunes = 0
        self._rng = random.Random(seed)

    def maybe_fail(self, what: str, number: int, poison: set[int]) -> None:
        self.calls.append((what, number))
        if number in poison or self._rng.random() < self.fault_rate:
            raise TargetError(f"{what} {number} refused")

    def update(self, txn: ReadTxn, revision: int, obj: Row) -> Row | None:
        self.maybe_fail("update", obj.id, self.poison)
        self.held[obj.id] = obj.value
        return None

    def delete(self, txn: ReadTxn, revision: int, obj: Row) -> None:
        self.maybe_fail("delete", obj.id, self.poison_delete)
        self.held.pop(obj.id, None)

    def prune(self, txn: ReadTxn, objects: Iterable[Row]) -> None:
        self.prunes += 1
        if self.fail_prunes:
            self.fail_prunes -= 1
            raise TargetError("prune refused")
        wanted = {row.id for row in objects}
        for number in list(self.held):
            if number not in wanted:
                del self.held[number]

    def ids(self, what: str) -> list[int]:
        return [number for call, number in self.calls if call == what]


class BatchTarget(Target):
    """The same in batches; `raise_on` ids fail the whole batch instead of their entry."""

    def __init__(self, fault_rate: float = 0.0, seed: int = 1) -> None:
        super().__init__(fault_rate, seed)
        self.batches: list[tuple[str, list[int]]] = []
        self.raise_on: set[int] = set()

    def update_batch(self, txn: ReadTxn, entries: Sequence[Entry[Row]]) -> None:
        self._batch("update", txn, entries)

    def delete_batch(self, txn: ReadTxn, entries: Sequence[Entry[Row]]) -> None:
        self._batch("delete", txn, entries)

    def _batch(self, what: str, txn: ReadTxn, entries: Sequence[Entry[Row]]) -> None:
        ids = [entry.obj.id for entry in entries]
        self.batches.append((what, ids))
        if self.raise_on.intersection(ids):
            raise TargetError(f"batch of {len(ids)} refused")
        for entry in entries:
            try:
                if what == "update":
                    entry.result = self.update(txn, entry.revision, entry.obj)
                else:
                    self.delete(txn, entry.revision, entry.obj)
            except TargetError as error:
                entry.error = error


class VerifiableTarget(Target):
    """A target that can be read back."""

    def actual(self) -> Mapping[Any, Any]:
        return dict(self.held)

    def expected(self, txn: ReadTxn, objects: Iterable[Row]) -> Iterator[tuple[Any, Any, Row]]:
        for row in objects:
            yield row.id, row.value, row

    def describe(self, key: Any, value: Any | None) -> tuple[str, str]:
        return f"row {key}", "" if value is None else str(value)


@asynccontextmanager
async def running(*reconcilers: Reconciler[Any]) -> AsyncIterator[None]:
    """The reconcilers run inside the block."""
    async with anyio.create_task_group() as tasks:
        for reconciler in reconcilers:
            tasks.start_soon(reconciler.run)
        yield
        tasks.cancel_scope.cancel()
