# SPDX-License-Identifier: Apache-2.0
"""The part of an agent from endpoints to the map of identities, on a map without a kernel."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio

from bpf.maps import ipcache as codec
from bpf.maps.fake import FakeMap
from cilia.identity.ipcache import wiring
from statedb import WatchSet
from tables.cluster.nodes import new_nodes_table
from tables.endpoints.endpoints import Endpoint, new_endpoints_table
from tables.loadbalancer.backends import new_backends_table
from tables.node.devices import new_devices_table
from tests.cilia.identity.ipcache.world import BOTH, endpoint
from tests.context import new_context
from tests.patience import PATIENCE

EP = endpoint(7, "10.1.0.7", "fd00::7", identity=300)
#: Entries of a map that has room for the world of two families alone.
FULL = 2


def new_map(max_entries: int = 100) -> FakeMap:
    return FakeMap(codec.NAME, codec.KEY_BYTES, codec.VALUE_BYTES, max_entries)


class Agent:
    """Endpoints and what the datapath is told of them, on a map."""

    def __init__(self, raw: FakeMap, families: frozenset[bool] = BOTH) -> None:
        self.ctx = new_context()
        self.db, self.raw = self.ctx.db, raw
        self.endpoints = new_endpoints_table(self.db)
        self.devices, self.nodes = new_devices_table(self.db), new_nodes_table(self.db)
        tables: tuple[Any, ...] = (self.devices, self.nodes, new_backends_table(self.db))
        with self.db.write_txn(*tables) as wtxn:
            self._read = {table: table.register_initializer(wtxn, "test") for table in tables}
        inputs = wiring.Inputs(self.endpoints, *tables)
        self.part = wiring.build(self.ctx, inputs, raw, "one", families)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with anyio.create_task_group() as group:
            self.ctx.start(group, self.part.jobs)
            yield
            group.cancel_scope.cancel()

    def inputs_are_read(self) -> None:
        for table, done in self._read.items():
            with self.db.write_txn(table) as wtxn:
                done(wtxn)

    def put(self, *eps: Endpoint) -> None:
        with self.db.write_txn(self.endpoints) as wtxn:
            self.endpoints.insert_many(wtxn, eps)

    def remove(self, ep: Endpoint) -> None:
        with self.db.write_txn(self.endpoints) as wtxn:
            self.endpoints.delete(wtxn, ep)

    def lacks(self, ep: Endpoint = EP, watches: WatchSet | None = None) -> str:
        known = self.part.known
        return self.db.look(lambda txn: known.lacks(txn, ep.addresses, ep.identity, watches))

    def differences(self, ep: Endpoint = EP) -> list[str]:
        return list(self.part.known.differences(ep.addresses, ep.identity))

    async def until(self, text: str, ep: Endpoint = EP) -> None:
        """Wait by what `lacks` gives to wait for."""
        with anyio.fail_after(5 * PATIENCE):
            while True:
                watches = WatchSet()
                lacking = self.lacks(ep, watches)
                if (text in lacking) if text else not lacking:
                    return
                await watches.wait()
