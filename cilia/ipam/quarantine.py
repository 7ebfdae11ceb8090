# SPDX-License-Identifier: Apache-2.0
"""Freed addresses to those that the datapath has forgotten: no local claim, and none in the map."""

from __future__ import annotations

from typing import Final

from cilia.ipam.allocator import Allocator
from reconcilers.reconciler import Reconciler
from statedb import DB, ReadTxn, RWTable, Table, WatchSet
from tables.addressing import Prefix
from tables.identity.ipcache import IPCacheEntry, IPCacheKey
from tables.ipam.ip_allocations import IPAllocation
from tables.sources import Source

__all__ = ["Quarantine"]

SETTLE_S: Final = 0.01


class Quarantine:
    """One task calls `run`."""

    def __init__(
        self,
        db: DB,
        allocations: RWTable[IPAllocation],
        allocator: Allocator,
        ipcache: Table[IPCacheEntry],
        reconciler: Reconciler[IPCacheEntry],
    ) -> None:
        """`reconciler`: that of ``ipcache``."""
        self._db = db
        self._allocations = allocations
        self._allocator = allocator
        self._ipcache = ipcache
        self._reconciler = reconciler

    async def run(self) -> None:
        """Follow the tables for ever."""
        while True:
            gone, revision, watches = self._db.look(self._look)
            if gone:
                await self._reconciler.wait_until_reconciled(revision)
                if any(self._reconciler.retries(_key(row)) for row in gone):
                    await self._reconciler.wait_until_reconciled(revision, settled=True)
                self._forget(gone)
            else:
                await watches.wait(SETTLE_S)

    def _look(self, txn: ReadTxn) -> tuple[list[IPAllocation], int, WatchSet]:
        """Return the freed addresses without a local claim, the revision that tells it, and what
        closes when there may be more.

        The map is not touched before all claims that can be had are known. Where some cannot, an
        entry of a former run may stay: it is its next owner's as soon as that one claims it.
        """
        rows, freed = self._allocations.all_watch(txn)
        known, became_known = self._ipcache.filled_watch(txn)
        watches = WatchSet(freed, became_known)
        gone = []
        for row in rows:
            if known and row.in_ipcache:
                entry, changed = self._ipcache.get_watch(txn, _key(row))
                watches.add(changed)
                if entry is None or all(c.source is not Source.LOCAL for c in entry.claims):
                    gone.append(row)
        return gone, self._ipcache.revision(txn), watches

    def _forget(self, gone: list[IPAllocation]) -> None:
        with self._db.write_txn(self._allocations) as wtxn:
            for row in gone:
                self._allocator.forgotten(wtxn, row)


def _key(row: IPAllocation) -> IPCacheKey:
    return 0, Prefix.of(row.ip, row.ip.bits)
