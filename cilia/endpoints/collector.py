# SPDX-License-Identifier: Apache-2.0
"""Endpoints whose devices are gone: a namespace ended, and no request to delete ever came.

A device that is missing at two looks in a row is gone for good: between them a request that is
under way would have ended. A pod that is gone from the API server alone is no reason: its container
may still run, and the server may be another one.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

import anyio
import anyio.to_thread
import structlog

from cilia.endpoints import links
from cilia.endpoints.cni.errors import CNIError
from cilia.linux.netlink import Netlink
from statedb import DB, Table, wait_initialized
from tables.endpoints.endpoints import Endpoint

__all__ = ["Collector"]

log = structlog.get_logger("endpoints")

INTERVAL_S: Final = 60.0


class Collector:
    """One task calls `run`."""

    def __init__(
        self,
        db: DB,
        endpoints: Table[Endpoint],
        netlink: Netlink,
        remove: Callable[[str], Awaitable[None]],
        interval_s: float = INTERVAL_S,
    ) -> None:
        """`remove`: as for a request to delete the endpoint of this device."""
        self._db = db
        self._endpoints = endpoints
        self._netlink = netlink
        self._remove = remove
        self._interval_s = interval_s
        self._missing: set[tuple[str, int]] = set()

    async def run(self) -> None:
        """Look at all endpoints for ever."""
        await wait_initialized(self._db, self._endpoints)
        while True:
            await self.look()
            await anyio.sleep(self._interval_s)

    async def look(self) -> None:
        """Remove what was missing at the last look and is missing now. Raises: OSError."""
        rows = self._db.look(lambda txn: [(ep.device, ep.index) for ep in self._endpoints.all(txn)])
        pairs = await anyio.to_thread.run_sync(links.endpoint_devices, self._netlink)
        there = {(name, link.index) for name, link in pairs.items()}
        missing = set(rows) - there
        for device, _ in missing & self._missing:
            log.warning("an endpoint's device is gone, and nobody deleted it", device=device)
            try:
                await self._remove(device)
            except CNIError as error:
                log.error("the endpoint is not removed", device=device, reason=error.msg)
        self._missing = missing
