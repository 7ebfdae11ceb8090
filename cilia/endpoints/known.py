# SPDX-License-Identifier: Apache-2.0
"""Rows of the kernel's state that a feature is still to write after a start."""

from __future__ import annotations

from typing import Any

from statedb import DB, RWTable

__all__ = ["Known"]


class Known:
    """Keeps what a former run left in the kernel until the rows of an owner are written."""

    def __init__(self, db: DB, owner: str, *tables: RWTable[Any]) -> None:
        self._db = db
        self._tables = tables
        self.said = False
        with db.write_txn(*tables) as wtxn:
            self._done = [table.register_initializer(wtxn, owner) for table in tables]

    def say(self) -> None:
        """All rows of the owner are there."""
        with self._db.write_txn(*self._tables) as wtxn:
            for done in self._done:
                done(wtxn)
        self.said = True
