# SPDX-License-Identifier: Apache-2.0
"""Waiting for tables: one is initialized when all its registered initializers are done, and filled
when each is done or stalled.
"""

from __future__ import annotations

from typing import Any

from statedb.db import DB
from statedb.table import Table


async def wait_initialized(db: DB, *tables: Table[Any]) -> None:
    """Wait until all the tables are initialized."""
    for table in tables:
        while True:
            ready, channel = db.look(table.initialized_watch)
            if ready:
                break
            await channel.wait()


async def wait_filled(db: DB, *tables: Table[Any]) -> None:
    """Wait until all the tables have what can be had now."""
    for table in tables:
        while True:
            ready, channel = db.look(table.filled_watch)
            if ready:
                break
            await channel.wait()
