# SPDX-License-Identifier: Apache-2.0
"""Rows of a table to objects that nodes share: in the API server, or in files.

    desired rows --work--> ObjectWriter --> object --watch--> table of objects
         ^ status

The work for a row follows from the row and from the table of objects. So an object that is as it
should be costs no request, also after a restart, and one that somebody changes or deletes is put
right. A write counts once the table shows it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Generic, TypeVar

import anyio
from anyio.abc import TaskGroup

from cilia.k8s.errors import ApiError
from cilia.program.health import HealthReporter
from reconcilers.operations import Refusal
from reconcilers.retries import Retries
from statedb import (
    DB,
    Channel,
    ReadTxn,
    RWTable,
    Status,
    StatusKind,
    Table,
    WatchSet,
    wait_filled,
    wait_initialized,
)
from statedb.status import done, error, get_status, refused, set_status

__all__ = ["ObjectReconciler", "Plan", "Work"]

T = TypeVar("T")

#: Between tries of one row: others change objects within milliseconds, a server is away for longer.
RETRY_MIN_S: Final = 0.05
RETRY_MAX_S: Final = 5.0
#: How long an object that was written may take to be seen.
SEEN_WAIT_S: Final = 5.0
#: Writes of one table under way: requests have a rate, and others wait behind these.
MOST_AT_ONCE: Final = 4

Work = Callable[[], Awaitable[object]]


@dataclass(frozen=True)
class Plan(Generic[T]):
    """What is done for the rows of a table, which have a `status`."""

    rows: RWTable[T]
    # Nothing is done before all objects that can be read are in this table.
    objects: Table[Any]
    # What is to be done for a row, None for nothing. Raises: Refusal, if nothing can be done until
    # the row or its object changes.
    work: Callable[[ReadTxn, T], Work | None]
    # What closes when there may be other work for a row that stays as it is.
    watch: Callable[[ReadTxn, T], Channel]
    # For people: what holds when all is well, and what does not if it fails, with `{}` for a count.
    well: str
    failed: str
    # What work may raise besides ApiError; it is tried again.
    failures: tuple[type[Exception], ...] = ()


class ObjectReconciler(Generic[T]):
    """One task calls `run`, which may be called again after a failure."""

    def __init__(
        self, db: DB, plan: Plan[T], health: HealthReporter, *, seen_wait_s: float = SEEN_WAIT_S
    ) -> None:
        self._db = db
        self._plan = plan
        self._rows = plan.rows
        self._health = health
        self._failures: tuple[type[Exception], ...] = (ApiError, *plan.failures)
        self._seen_wait_s = seen_wait_s
        self._retries = Retries[T](RETRY_MIN_S, RETRY_MAX_S, 0.5, time.monotonic)
        self._busy: set[Any] = set()
        self._ended = Channel()

    async def run(self) -> None:
        """Carry rows out for ever."""
        await wait_filled(self._db, self._plan.objects)
        await wait_initialized(self._db, self._rows)
        self._busy.clear()  # of a run that failed
        self._forget_others({})
        places = anyio.CapacityLimiter(MOST_AT_ONCE)
        async with anyio.create_task_group() as group:
            while True:
                watches = self._look(group, places)
                next_due = self._retries.next_due()
                wait_s = math.inf if next_due is None else next_due - time.monotonic()
                with anyio.move_on_after(max(wait_s, 0)):
                    await watches.wait()

    def _look(self, group: TaskGroup, places: anyio.CapacityLimiter) -> WatchSet:
        """Begin what is to be done; return what to wait for."""
        txn = self._db.read_txn()
        found, changed = self._rows.all_watch(txn)
        rows = {self._rows.primary_key(row): row for row in found}
        self._ended = Channel()
        watches = WatchSet(changed, self._ended)
        self._forget_others(rows)
        due = {item.key for item in self._retries.take_due(len(self._retries))}
        for key, row in rows.items():
            watches.add(self._plan.watch(txn, row))
            if key in self._busy or not self._is_to_do(txn, key, row):
                continue
            if key in due or key not in self._retries:
                self._busy.add(key)
                group.start_soon(self._do, key, places)
        self._tell_health(rows.values())
        return watches

    def _forget_others(self, rows: dict[Any, T]) -> None:
        for item in list(self._retries):
            if item.key not in rows:
                self._retries.clear(item.key)

    def _is_to_do(self, txn: ReadTxn, key: Any, row: T) -> bool:
        """Return True if there is work for a row; else tell that it is done, or refused."""
        try:
            work = self._plan.work(txn, row)
        except Refusal as refusal:
            status = refused(str(refusal))
        else:
            if work is not None:
                return True
            status = done()
        self._retries.clear(key)
        self._tell(key, status)
        return False

    async def _do(self, key: Any, places: anyio.CapacityLimiter) -> None:
        row: T | None = None
        try:
            async with places:
                row, work = self._db.look(partial(self._now, key))
                if work is not None:
                    await work()
            await self._seen(key, row)
        except self._failures as failure:
            if row is not None:
                self._retries.add(key, row, 0, False, str(failure))
            self._tell(key, error(str(failure)))
            self._tell_health(self._db.look(lambda txn: list(self._rows.all(txn))))
        else:
            self._retries.clear(key)
        finally:
            self._busy.discard(key)
            self._ended.close()

    def _now(self, key: Any, txn: ReadTxn) -> tuple[T | None, Work | None]:
        """Return a row as it is now, and what is to be done for it."""
        row = self._rows.get(txn, key)
        try:
            return row, None if row is None else self._plan.work(txn, row)
        except Refusal:
            return row, None  # told by whoever looks at all rows

    async def _seen(self, key: Any, row: T | None) -> None:
        """Wait until the work for a row is seen, or its object changed in another way, or the row.

        Raises: ApiError.
        """
        if row is None:
            return
        with anyio.move_on_after(self._seen_wait_s):
            watches = self._db.look(partial(self._watch_unmet, key, row))
            if watches is not None:
                await watches.wait()
            return
        raise ApiError(
            f"an object was written {self._seen_wait_s:g} s ago and its watch does not show it"
        )

    def _watch_unmet(self, key: Any, row: T, txn: ReadTxn) -> WatchSet | None:
        """Return what to wait for while the work for this row is not seen; else None."""
        now, work = self._now(key, txn)
        changed = self._rows.get_watch(txn, key)[1]
        if now is None or work is None or _differ(now, row):
            return None
        return WatchSet(changed, self._plan.watch(txn, row))

    # -- what people see --

    def _tell(self, key: Any, status: Status) -> None:
        if self._db.look(partial(self._says, key, status)):
            return
        with self._db.write_txn(self._rows) as wtxn:
            row = self._rows.get(wtxn, key)
            if row is not None:
                self._rows.insert(wtxn, set_status(row, status))

    def _says(self, key: Any, status: Status, txn: ReadTxn) -> bool:
        row = self._rows.get(txn, key)
        if row is None:
            return True
        held = get_status(row)
        return (held.kind, held.error) == (status.kind, status.error)

    def _tell_health(self, rows: Iterable[T]) -> None:
        statuses = map(get_status, rows)
        failed = [status.error for status in statuses if status.kind is StatusKind.ERROR]
        if failed:
            self._health.degraded(self._plan.failed.format(len(failed)), failed[0])
        else:
            self._health.ok(self._plan.well)


def _differ(one: T, other: T) -> bool:
    """Return True if two rows differ in more than their status."""
    return set_status(one, get_status(other)) != other
