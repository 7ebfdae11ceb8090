# SPDX-License-Identifier: Apache-2.0
"""Waiting for tables to be filled: a table is initialized when all its registered initializers are
done.
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
