# SPDX-License-Identifier: Apache-2.0
"""Reports of the parts become rows of the `health` table."""

from __future__ import annotations

import time
from dataclasses import dataclass

from statedb import DB, RWTable
from statedb.shown.text import shortened
from tables.health import Health, Level, health_key


@dataclass(frozen=True, slots=True)
class HealthReporter:
    """Tells one component's health; cheap enough to be told each round."""

    db: DB
    table: RWTable[Health]
    module: str
    component: str

    def ok(self, message: str) -> None:
        self._report(Level.OK, message, "")

    def degraded(self, message: str, error: BaseException | str) -> None:
        """`error` may be empty if the message says it all; an exception without words is named."""
        text = error if isinstance(error, str) else str(error) or type(error).__name__
        self._report(Level.DEGRADED, message, shortened(text))

    def stopped(self, message: str) -> None:
        self._report(Level.STOPPED, message, "")

    def _report(self, level: Level, message: str, error: str) -> None:
        """An unchanged report is not written again: the row says since when it holds, no watcher
        of the table wakes for nothing."""
        key = f"{self.module}.{self.component}"
        old = self.table.get(self.db.read_txn(), key)
        if old is not None and (old.level, old.message, old.error) == (level, message, error):
            return
        now = time.time()
        last_ok = now if level is Level.OK else (old.last_ok if old else 0.0)
        count = old.count + 1 if old is not None and old.level is level else 1
        row = Health(self.module, self.component, level, message, error, last_ok, now, count)
        assert health_key(row) == key
        with self.db.write_txn(self.table) as wtxn:
            self.table.insert(wtxn, row)


@dataclass(frozen=True, slots=True)
class ModuleHealth:
    """The health of one module's parts, in the form in which reconcilers tell it."""

    db: DB
    table: RWTable[Health]
    module: str

    def __call__(self, part: str, ok: bool, message: str) -> None:
        reporter = HealthReporter(self.db, self.table, self.module, part)
        if ok:
            reporter.ok(message)
        else:
            reporter.degraded(message, "")
