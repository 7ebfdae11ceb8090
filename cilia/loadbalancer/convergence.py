# SPDX-License-Identifier: Apache-2.0
"""Follows each change of an object until it is in the maps, and writes down how long that took.

Reads `frontends` and how far their reconciler is; writes `convergence`.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, Protocol

import anyio
import msgspec

from statedb import DB, Channel, ReadTxn, RWTable, Table
from statedb.status import StatusKind
from tables.addressing import ServiceName
from tables.loadbalancer.convergence import Convergence, convergence_key
from tables.loadbalancer.frontends import SERVICE, Frontend


class Time(Protocol):
    """When a change was made: seconds since the epoch, and how that is known."""

    @property
    def at(self) -> float: ...
    @property
    def source(self) -> str: ...
    @property
    def received_at(self) -> float: ...


class Timed(Protocol):
    """An object's change, as a reflector knows it."""

    @property
    def key(self) -> tuple[str, str, str]: ...
    @property
    def service(self) -> ServiceName: ...
    @property
    def changed(self) -> Time: ...
    @property
    def deleted(self) -> bool: ...


# A change that fails is looked at again when frontends change, and at least this often.
LOOK_AGAIN_S: Final = 1.0


class Change(msgspec.Struct, frozen=True, gc=False):
    """An object's change as it stands in the tables."""

    row: Convergence
    service: ServiceName
    # Of the table of frontends, with the change in it.
    revision: int
    deleted: bool = False
    # It changes what is in force.
    shows: bool = True


class ConvergenceRecorder:
    """`committed` is told changes in the order of their transactions; `run` follows them.

    `reconciled` waits until every frontend up to a revision was attempted. `observe` is told each
    change that reached the maps.
    """

    def __init__(
        self,
        db: DB,
        table: RWTable[Convergence],
        frontends: Table[Frontend],
        reconciled: Callable[[int], Awaitable[object]],
        observe: Callable[[Convergence], None] = lambda row: None,
    ) -> None:
        self._db = db
        self._table = table
        self._frontends = frontends
        self._reconciled = reconciled
        self._observe = observe
        self._fresh: list[Change] = []
        self._arrived = Channel()
        # Of each object, the change that is not in the maps yet.
        self._failing: dict[str, Change] = {}

    def committed(self, changes: Sequence[Timed], before: int) -> None:
        """Takes changes that are in the tables now; `before`: the revision that the frontends had.

        A change that no frontend shows has nothing to reach; if it is a deletion, the row goes: the
        slices of a Service are deleted after it.
        """
        now = time.time()
        txn = self._db.read_txn()
        revision = self._frontends.revision(txn)
        touched: set[ServiceName] = set()
        if revision != before:
            touched = {fe.service_name for fe, _ in self._frontends.by_revision(txn, before + 1)}
        fresh = [
            Change(
                _row(change, now),
                change.service,
                revision,
                change.deleted,
                change.service in touched or (change.deleted and change.key[0] == "Service"),
            )
            for change in changes
            if change.service in touched or change.deleted
        ]
        if not fresh:
            return
        self._fresh += fresh
        arrived, self._arrived = self._arrived, Channel()
        arrived.close()

    async def run(self) -> None:
        while True:
            await self._wait()
            changes, self._fresh = self._fresh, []
            if changes:
                await self._reconciled(changes[-1].revision)
            for change in changes:
                self._failing.pop(convergence_key(change.row), None)
            self._look([*self._failing.values(), *changes])

    async def _wait(self) -> None:
        arrived = self._arrived
        if self._fresh:
            return
        with anyio.move_on_after(LOOK_AGAIN_S if self._failing else None):
            await arrived.wait()

    def _look(self, changes: Sequence[Change]) -> None:
        """Writes the rows of changes that were attempted, in one transaction."""
        now = time.time()
        txn = self._db.read_txn()
        with self._db.write_txn(self._table) as wtxn:
            for change in changes:
                key = convergence_key(change.row)
                map_at = self._map_at(txn, change, now)
                row = msgspec.structs.replace(change.row, map_at=map_at)
                if map_at:
                    self._failing.pop(key, None)
                    if change.shows:
                        self._observe(row)
                else:
                    self._failing[key] = change
                if change.deleted and map_at:
                    if self._table.get(wtxn, key) is not None:
                        self._table.delete(wtxn, row)
                else:
                    self._table.insert(wtxn, row)

    def _map_at(self, txn: ReadTxn, change: Change, now: float) -> float:
        """When the last frontend of the service was done, or refused; 0 while one is neither."""
        latest = 0.0
        for fe in self._frontends.list(txn, change.service, SERVICE):
            if fe.status.kind in (StatusKind.PENDING, StatusKind.ERROR):
                return 0.0
            latest = max(latest, fe.status.updated_at)
        return latest if latest >= change.row.table_at else now


def _row(change: Timed, now: float) -> Convergence:
    kind, namespace, name = change.key
    return Convergence(
        kind,
        f"{namespace}/{name}",
        change.service,
        changed_at=change.changed.at,
        time_source=str(change.changed.source),
        received_at=change.changed.received_at,
        table_at=now,
    )
