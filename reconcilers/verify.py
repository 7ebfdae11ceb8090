# SPDX-License-Identifier: Apache-2.0
"""Reads a target back, compares it with the table, keeps the differences as rows, repairs them.

A difference is an entry that is missing, one with another value, or a foreign one. Its row in the
table `drift` appears when it is first seen, keeps that time, and goes when a later read-back finds
it repaired. Objects that are not reconciled (pending, failed) are no drift: they and their entries
are left out.
"""

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Generic, TypeVar

import msgspec

from reconcilers.operations import VerifyOperations
from statedb import DB, Column, Index, ReadTxn, RWTable, Status, StatusKind, new_table
from statedb.status import refreshing

T = TypeVar("T")

MISSING, DIFFERENT, FOREIGN = "missing", "different", "foreign"


class Drift(msgspec.Struct, frozen=True):
    """One entry of a target that is not as its table wants it; times are Unix seconds."""

    reconciler: str
    key: str
    kind: str  # missing, different or foreign
    expected: str
    actual: str
    since: float
    seen: int = 1  # read-backs in a row that found it


def _age(drift: Drift) -> str:
    return f"{max(0.0, time.time() - drift.since):.0f}s"


DRIFT_KEY = Index("key", key=lambda d: (d.reconciler, d.key))
DRIFT_COLUMNS = (
    Column("Reconciler", lambda d: d.reconciler),
    Column("Key", lambda d: d.key),
    Column("Kind", lambda d: d.kind),
    Column("Expected", lambda d: d.expected),
    Column("Actual", lambda d: d.actual),
    Column("Age", _age),
    Column("Seen", lambda d: str(d.seen)),
)


def new_drift_table(db: DB) -> RWTable[Drift]:
    """The table `drift`, shared by all reconcilers of `db`."""
    return new_table(db, "drift", DRIFT_KEY, columns=DRIFT_COLUMNS, row_type=Drift)


class Verifier(Generic[T]):
    """Compares one reconciler's target with its table; called between rounds."""

    def __init__(
        self,
        db: DB,
        name: str,
        table: RWTable[T],
        drift: RWTable[Drift],
        operations: VerifyOperations[T],
        get_status: Callable[[T], Status],
        set_status: Callable[[T, Status], T],
    ) -> None:
        self._db = db
        self._name = name
        self._table = table
        self._drift = drift
        self._operations = operations
        self._get_status = get_status
        self._set_status = set_status

    def run(self, txn: ReadTxn) -> tuple[int, bool]:
        """Report and repair; the number of differences, and whether foreign entries need a prune.

        Objects with missing or different entries become `refreshing`, which applies them again.
        """
        actual = self._operations.actual()
        differences, stale, foreign = self._compare(txn, actual)
        self._record(differences)
        self._refresh(stale)
        return len(differences), foreign

    def _compare(
        self, txn: ReadTxn, actual: Mapping[Any, Any]
    ) -> tuple[dict[str, Drift], list[T], bool]:
        differences: dict[str, Drift] = {}
        stale: list[T] = []
        expected: set[Any] = set()
        for key, value, obj in self._operations.expected(txn, self._table.all(txn)):
            expected.add(key)
            found = actual.get(key)
            if found == value or self._get_status(obj).kind is not StatusKind.DONE:
                continue
            self._add(differences, MISSING if found is None else DIFFERENT, key, value, found)
            stale.append(obj)
        foreign = [key for key in actual if key not in expected]
        for key in foreign:
            self._add(differences, FOREIGN, key, None, actual[key])
        return differences, stale, bool(foreign)

    def _add(
        self, differences: dict[str, Drift], kind: str, key: Any, want: Any, found: Any
    ) -> None:
        describe = self._operations.describe
        text, wanted = describe(key, want)
        differences[text] = Drift(
            self._name, text, kind, wanted, describe(key, found)[1], time.time()
        )

    def _record(self, differences: Mapping[str, Drift]) -> None:
        with self._db.write_txn(self._drift) as wtxn:
            for row in list(self._drift.all(wtxn)):
                if row.reconciler == self._name and row.key not in differences:
                    self._drift.delete(wtxn, row)
            for row in differences.values():
                old = self._drift.get(wtxn, (row.reconciler, row.key))
                if old is not None and old.kind == row.kind:
                    row = msgspec.structs.replace(row, since=old.since, seen=old.seen + 1)
                self._drift.insert(wtxn, row)

    def _refresh(self, stale: Iterable[T]) -> None:
        key_of, status = self._table.primary_key, refreshing()
        keys = {key_of(obj) for obj in stale}
        if not keys:
            return
        with self._db.write_txn(self._table) as wtxn:
            for key in keys:
                obj = self._table.get(wtxn, key)
                if obj is not None and self._get_status(obj).kind is StatusKind.DONE:
                    self._table.insert(wtxn, self._set_status(obj, status))
