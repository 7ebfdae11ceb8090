# SPDX-License-Identifier: Apache-2.0
"""Reads back once a second what nothing announces: links that were detached, pins that are gone.

What is found is a row of the table `drift` until a later look finds it repaired.
"""

from __future__ import annotations

import time

import anyio
import anyio.to_thread
import structlog

from cilia.datapath.datapath import Datapath
from reconcilers.verify import MISSING, Drift
from statedb import DB, RWTable

NAME = "datapath"
INTERVAL_S = 1.0

log = structlog.get_logger("agent")


class DatapathWatch:
    """One task calls `run`, after the first attachment."""

    def __init__(self, db: DB, drift: RWTable[Drift], datapath: Datapath) -> None:
        self._db, self._drift, self._datapath = db, drift, datapath

    async def run(self) -> None:
        while True:
            await anyio.sleep(INTERVAL_S)  # the kernel has no event for this
            await self.step()

    async def step(self) -> None:
        """Look once, tell, repair."""
        drifted = await anyio.to_thread.run_sync(self._datapath.drift)
        self._tell(drifted)
        if drifted:
            log.warning("programs were not in force, attaching them again", programs=drifted)
            await anyio.to_thread.run_sync(self._datapath.repair)

    def _tell(self, drifted: list[str]) -> None:
        txn = self._db.read_txn()
        known = {row.key: row for row in self._drift.all(txn) if row.reconciler == NAME}
        if known.keys() == set(drifted) == set():
            return
        with self._db.write_txn(self._drift) as wtxn:
            for key in drifted:
                old = known.pop(key, None)
                since, seen = (old.since, old.seen + 1) if old else (time.time(), 1)
                row = Drift(NAME, key, MISSING, "attached", "not in force", since, seen)
                self._drift.insert(wtxn, row)
            for gone in known.values():
                self._drift.delete(wtxn, gone)
