# SPDX-License-Identifier: Apache-2.0
"""Addresses of pods that are gone, told to who keeps something about their flows.

An address rests before another pod gets it, for longer than its flows take to end.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Final

import anyio.to_thread

from statedb import DB, Table, WatchSet
from tables.addressing import IP
from tables.ipam.ip_allocations import IPAllocation

__all__ = ["follow_ended_addresses"]

#: Deletions that come together are one look at the maps.
SETTLE_S: Final = 0.2


async def follow_ended_addresses(
    db: DB, allocations: Table[IPAllocation], end: Callable[[Collection[IP]], object]
) -> None:
    """Call `end` in a thread with the addresses that came to rest, for ever. Those that rest
    at the start are the first.
    """
    # Rows that were dealt with: a cache of what the maps say.
    done: set[tuple[IP, float]] = set()
    while True:
        rows, changed = db.look(allocations.all_watch)
        resting = {(row.ip, row.free_at) for row in rows if row.free_at}
        ended = {ip for ip, _ in resting - done}
        if ended:
            await anyio.to_thread.run_sync(end, ended)
        done = resting
        await WatchSet(changed).wait(SETTLE_S)
