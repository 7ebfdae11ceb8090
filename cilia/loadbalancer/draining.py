# SPDX-License-Identifier: Apache-2.0
"""Graceful termination as people see it: which backends are on their way out, and what is left.

Who counts connections is given by the datapath. Without it terminating backends are shown all the
same, and go with their rows.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from typing import Final

import anyio
import anyio.to_thread
import msgspec

from statedb import DB, ChangeIterator, ReadTxn, RWTable, WatchSet
from tables.addressing import L3n4Addr, ServiceName
from tables.loadbalancer.backends import ADDRESS, Backend, BackendState
from tables.loadbalancer.draining_backends import DrainingBackend

# Live connections by backend, for those asked for; called in a thread, may block. None: unknown.
ConnectionCounter = Callable[[Collection[L3n4Addr]], Mapping[L3n4Addr, int] | None]

COUNT_INTERVAL_S: Final = 5.0
REMOVED: Final = "removed"
_ACTIVE: Final = BackendState.ACTIVE
_ENDING: Final = (BackendState.TERMINATING, BackendState.TERMINATING_NOT_SERVING)


class DrainController:
    """Keeps ``draining-backends`` equal to backends and their connections."""

    def __init__(
        self,
        db: DB,
        backends: RWTable[Backend],
        draining: RWTable[DrainingBackend],
        count: ConnectionCounter | None = None,
        *,
        interval_s: float = COUNT_INTERVAL_S,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._db = db
        self._backends = backends
        self._draining = draining
        self._count = count
        self._interval_s = interval_s
        self._now = now

    async def run(self) -> None:
        """Ends only when it is cancelled; may be called again after a failure."""
        with self._db.write_txn(self._backends) as wtxn:
            changes = self._backends.changes(wtxn)
        try:
            while True:
                watch = self.step(changes)
                with anyio.move_on_after(await self._counted()):
                    await watch.wait()
        finally:
            changes.close()

    def step(self, iterator: ChangeIterator[Backend]) -> WatchSet:
        """Takes the changes of backends; returns what to wait for."""
        txn = self._db.read_txn()
        changes, changed = iterator.next(txn)
        touched = {c.obj.address for c in changes if c.deleted or c.obj.state is not _ACTIVE}
        touched |= {row.address for row in self._draining.all(txn)}
        rows = {address: self._row(address) for address in sorted(touched)}
        if rows:
            self._write(rows)
        return WatchSet(changed)

    def _row(self, address: L3n4Addr) -> DrainingBackend | None:
        """None for an address that is in use, or of which nothing is left."""
        txn = self._db.read_txn()
        before = self._draining.get(txn, address)
        rows = self._backends.list(txn, address, ADDRESS)
        since = before.since if before is not None else self._now()
        connections = before.connections if before is not None else None
        if not rows:
            if self._count is None or (before is not None and before.connections == 0):
                return None
            services: tuple[ServiceName, ...] = before.services if before is not None else ()
            return DrainingBackend(address, services, REMOVED, since, connections)
        if any(be.state not in _ENDING for be in rows):
            return None
        services = tuple(sorted({be.service_name for be in rows}))
        state = min(be.state for be in rows).label
        return DrainingBackend(address, services, state, since, connections)

    async def _counted(self) -> float | None:
        """Counts connections; returns the seconds until the next time, None: after a change."""
        held = [row.address for row in self._db.look(self._rows)]
        if self._count is None or not held:
            return None
        counts = await anyio.to_thread.run_sync(self._count, held)
        rows: dict[L3n4Addr, DrainingBackend | None] = {}
        for row in self._db.look(self._rows):
            left = None if counts is None else counts.get(row.address, 0)
            ended = row.state == REMOVED and not left
            rows[row.address] = None if ended else msgspec.structs.replace(row, connections=left)
        self._write(rows)
        return self._interval_s

    def _rows(self, txn: ReadTxn) -> list[DrainingBackend]:
        return list(self._draining.all(txn))

    def _write(self, rows: Mapping[L3n4Addr, DrainingBackend | None]) -> None:
        with self._db.write_txn(self._draining) as wtxn:
            for address, row in rows.items():
                before = self._draining.get(wtxn, address)
                if row is None and before is not None:
                    self._draining.delete(wtxn, before)
                elif row is not None and row != before:
                    self._draining.insert(wtxn, row)
