# SPDX-License-Identifier: Apache-2.0
"""Kernel to tables: devices with their addresses, routes, neighbours and rules, from netlink.

One subscription for all of it, because only within one socket do events keep their order. It is
opened before the first dump, so that nothing falls between the two; events that are older than the
dump are applied all the same and lead to the same end. When the kernel had to drop events, all is
dumped afresh and compared: rows that did not change are not written.

       subscribe ──> dump everything ──> wait ──> read a batch ──> one transaction ──┐
                          ^                ^                                         │
                          └── overrun ─────┴────────── dump of what it left open <───┘
"""

from __future__ import annotations

from collections.abc import Callable

import anyio
import anyio.lowlevel
import anyio.to_thread
import structlog

from cilia.linux.errors import Overrun
from cilia.linux.netlink import (
    SUBSCRIPTION_BUFFER_BYTES,
    Group,
    Netlink,
    Subscription,
)
from cilia.linux.netns import NetNS
from cilia.linux.rtnl import Message, RouteMessage
from cilia.node.device_selection import DeviceFilter
from cilia.node.kernel_batch import KernelBatch, KernelTables
from statedb import DB, WriteTxn

__all__ = ["DevicesReflector"]

log = structlog.get_logger("devices")

GROUPS = (
    Group.LINK,
    Group.NEIGHBOR,
    Group.IPV4_ADDRESS,
    Group.IPV4_ROUTE,
    Group.IPV4_RULE,
    Group.IPV6_ADDRESS,
    Group.IPV6_ROUTE,
    Group.IPV6_RULE,
    Group.NEXTHOP,
)
# One `ip link add` makes a dozen events within a millisecond; they become one transaction.
SETTLE_S = 0.003
# Routes of so many links are read link by link; for more, one dump of everything is cheaper.
SINGLE_DUMPS = 8


class DevicesReflector:
    """Keeps `tables` equal to one network namespace (the caller's, without `netns`)."""

    def __init__(
        self,
        db: DB,
        tables: KernelTables,
        *,
        netns: NetNS | None = None,
        patterns: DeviceFilter | None = None,
        buffer_bytes: int = SUBSCRIPTION_BUFFER_BYTES,
    ) -> None:
        self._db = db
        self._tables = tables
        self._netns = netns
        self._patterns = patterns or DeviceFilter()
        self._buffer_bytes = buffer_bytes
        self._synced: list[Callable[[WriteTxn], None]] = []
        with db.write_txn(*tables.all()) as wtxn:
            for table in tables.all():
                self._synced.append(table.register_initializer(wtxn, "kernel"))
        # Told in metrics and in tests: how often everything was read, and events were lost.
        self.resyncs = 0
        self.overruns = 0

    async def run(self) -> None:
        """Runs until cancelled.

        Raises:
            OSError: netlink itself failed; the job that runs this starts it again.
        """
        with (
            Netlink(self._netns) as netlink,
            Subscription(GROUPS, self._netns, buffer_bytes=self._buffer_bytes) as events,
        ):
            while True:
                await self._resync(netlink)
                try:
                    await self._follow(netlink, events)
                except Overrun:
                    self.overruns += 1
                    log.warning("netlink events were lost, reading everything again")
                    events.discard()

    async def _follow(self, netlink: Netlink, events: Subscription) -> None:
        """Applies events until some are lost.

        Raises:
            Overrun: the kernel dropped events.
        """
        while True:
            await events.wait()
            await anyio.sleep(SETTLE_S)
            while messages := events.read():
                await self._apply(netlink, messages)

    async def _apply(self, netlink: Netlink, messages: list[Message]) -> None:
        with self._db.write_txn(*self._tables.all()) as wtxn:
            batch = KernelBatch(wtxn, self._tables, self._patterns)
            batch.apply(messages)
            batch.finish()
        if batch.routes_uncertain or len(batch.stale_links) > SINGLE_DUMPS:
            await self._read_routes(netlink)
        else:
            for index in batch.stale_links:
                await self._read_routes_of(netlink, index)
        await anyio.lowlevel.checkpoint()

    async def _read_routes(self, netlink: Netlink) -> None:
        await anyio.to_thread.run_sync(self._replace_routes, netlink)

    def _replace_routes(self, netlink: Netlink) -> None:
        routes = netlink.routes()
        with self._db.write_txn(*self._tables.all()) as wtxn:
            batch = KernelBatch(wtxn, self._tables, self._patterns)
            batch.replace_routes(routes)
            batch.finish()

    async def _read_routes_of(self, netlink: Netlink, index: int) -> None:
        def dump() -> list[RouteMessage]:
            return netlink.routes(index=index)

        routes = await anyio.to_thread.run_sync(dump)
        with self._db.write_txn(*self._tables.all()) as wtxn:
            batch = KernelBatch(wtxn, self._tables, self._patterns)
            batch.replace_routes_of(index, routes)
            batch.finish()

    async def _resync(self, netlink: Netlink) -> None:
        """Reads everything and makes the tables equal to it; from then on they are initialised."""
        await anyio.to_thread.run_sync(self._replace_all, netlink)
        self._synced.clear()
        self.resyncs += 1

    def _replace_all(self, netlink: Netlink) -> None:
        """In a thread, for 10,000 routes take longer than the event loop may wait."""
        links, addresses = netlink.links(), netlink.addresses()
        routes, neighbors, rules = netlink.routes(), netlink.neighbors(), netlink.rules()
        with self._db.write_txn(*self._tables.all()) as wtxn:
            batch = KernelBatch(wtxn, self._tables, self._patterns)
            batch.replace_devices(links, addresses)
            batch.finish()
            batch.replace_routes(routes)
            batch.replace_neighbors(neighbors)
            batch.replace_rules(rules)
            batch.finish()
            for mark_done in self._synced:
                mark_done(wtxn)
