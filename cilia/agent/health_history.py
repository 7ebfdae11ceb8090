# SPDX-License-Identifier: Apache-2.0
"""What the parts reported of late: the rows that ``health`` had before those that it has."""

from __future__ import annotations

from collections import deque
from functools import partial
from typing import Final

from statedb import DB, ChangeIterator, Channel, ReadTxn, RWTable
from tables.health import Health

__all__ = ["HealthHistory"]

KEPT: Final = 512


class HealthHistory:
    """Follows ``health``; reports that are replaced at once may be missed."""

    def __init__(self, db: DB, health: RWTable[Health]) -> None:
        self._db = db
        self._health = health
        self._reports: deque[Health] = deque(maxlen=KEPT)

    async def run(self) -> None:
        """Ends only when it is cancelled."""
        with self._db.write_txn(self._health) as wtxn:
            changes = self._health.changes(wtxn)
        try:
            while True:
                await self._db.look(partial(self._look, changes)).wait()
        finally:
            changes.close()

    def _look(self, changes: ChangeIterator[Health], txn: ReadTxn) -> Channel:
        found, changed = changes.next(txn)
        self._reports.extend(change.obj for change in found if not change.deleted)
        return changed

    def reports(self) -> list[Health]:
        """The oldest first."""
        return sorted(self._reports, key=lambda row: row.updated_at)
