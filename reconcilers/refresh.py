# SPDX-License-Identifier: Apache-2.0
"""Marks objects that were reconciled long ago as `refreshing`, at a limited rate.

The reconciler then applies them again like any change. The table is scanned at most sixteen times
an interval, so an object is refreshed at the latest 1/16 of an interval after its time.
"""

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Generic, TypeVar

import anyio

from statedb import DB, RWTable, Status, StatusKind
from statedb.status import refreshing

T = TypeVar("T")

_SCANS_AN_INTERVAL = 16
_CHUNK_S = 0.1  # objects are marked in one transaction for each tenth of a second


class Refresher(Generic[T]):
    """`clock` must be that of `Status.updated_at`; `report` gets the seconds to the next scan."""

    def __init__(
        self,
        db: DB,
        table: RWTable[T],
        get_status: Callable[[T], Status],
        set_status: Callable[[T, Status], T],
        interval_s: float,
        rate: float,
        clock: Callable[[], float],
        report: Callable[[float], None],
    ) -> None:
        self._db = db
        self._table = table
        self._get_status = get_status
        self._set_status = set_status
        self._interval_s = interval_s
        self._rate = rate
        self._clock = clock
        self._report = report

    async def run(self) -> None:
        while True:
            old, wait_s = self._scan()
            rows = iter(old)
            while chunk := list(islice(rows, max(1, int(self._rate * _CHUNK_S)))):
                self._mark(chunk)
                await anyio.sleep(len(chunk) / self._rate)
            self._report(wait_s)
            await anyio.sleep(wait_s)

    def _scan(self) -> tuple[list[tuple[T, int]], float]:
        """The objects due now with their revisions, and the seconds until the next scan."""
        now = self._clock()
        next_due = now + self._interval_s
        old: list[tuple[T, int]] = []
        for obj, revision in self._reconciled():
            due = self._get_status(obj).updated_at + self._interval_s
            if due <= now:
                old.append((obj, revision))
            elif due < next_due:
                next_due = due
        return old, max(next_due - now, self._interval_s / _SCANS_AN_INTERVAL)

    def _reconciled(self) -> Iterator[tuple[T, int]]:
        for obj, revision in self._table.by_revision(self._db.read_txn(), 0):
            if self._get_status(obj).kind is StatusKind.DONE:
                yield obj, revision

    def _mark(self, rows: list[tuple[T, int]]) -> None:
        status = refreshing()
        with self._db.write_txn(self._table) as wtxn:
            for obj, revision in rows:
                # Not swapped: the row changed meanwhile and is reconciled for that reason.
                self._table.compare_and_swap(wtxn, revision, self._set_status(obj, status))
