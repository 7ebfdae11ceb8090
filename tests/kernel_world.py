# SPDX-License-Identifier: Apache-2.0
"""The kernel's tables kept equal to a namespace of a test's own, and waits for what they show."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import anyio

from cilia.reflectors.device_selection import DeviceFilter
from cilia.reflectors.devices import DevicesReflector
from cilia.reflectors.kernel_batch import KernelTables
from statedb import DB, Column, Table
from statedb.columns import table_text
from tables import devices, neighbors, routes, rules
from tests.kernel import Kernel

SECONDS = 5.0


class World:
    """A reflector over a namespace of its own."""

    def __init__(self, kernel: Kernel, db: DB, tables: KernelTables) -> None:
        self.kernel = kernel
        self.db = db
        self.tables = tables

    async def until(self, table: Table[Any], condition: Callable[[], bool]) -> None:
        """Waits for a change of the table until the condition holds."""
        with anyio.move_on_after(SECONDS):
            while True:
                _, changed = table.all_watch(self.db.read_txn())
                if condition():
                    return
                await changed.wait()
        assert condition()

    async def shows(
        self, table: Table[Any], columns: Sequence[Column], names: str, expected: str
    ) -> None:
        """Waits until these columns of the table print exactly this; blanks are folded."""

        def printed() -> list[list[str]]:
            rows = table.all(self.db.read_txn())
            return [line.split() for line in table_text(columns, rows, names.split()).splitlines()]

        wanted = [line.split() for line in expected.strip().splitlines()]
        with anyio.move_on_after(SECONDS):
            while True:
                _, changed = table.all_watch(self.db.read_txn())
                if printed() == wanted:
                    return
                await changed.wait()
        assert printed() == wanted

    async def devices_show(self, names: str, expected: str) -> None:
        await self.shows(self.tables.devices, devices.COLUMNS, names, expected)

    async def main_routes(self, expected: str) -> None:
        """The routes outside the local table that IPv4 has."""

        def printed() -> list[str]:
            return [
                f"{r.destination} gw {r.gateway or '-'} dev {self.name(r.link_index)}"
                f" table {routes.table_text(r.table)} metric {r.priority}"
                for r in self.tables.routes.all(self.db.read_txn())
                if r.table != routes.TABLE_LOCAL and not r.destination.is_ipv6
            ]

        wanted = [line.strip() for line in expected.strip().splitlines()]
        with anyio.move_on_after(SECONDS):
            while True:
                _, changed = self.tables.routes.all_watch(self.db.read_txn())
                if sorted(printed()) == sorted(wanted):
                    return
                await changed.wait()
        assert sorted(printed()) == sorted(wanted)

    def device(self, name: str) -> devices.Device | None:
        return devices.device_by_name(self.tables.devices, self.db.read_txn(), name)

    def addresses(self, name: str) -> list[str]:
        dev = self.device(name)
        return [str(a.address) for a in dev.addresses] if dev else []

    def name(self, index: int) -> str:
        dev = self.tables.devices.get(self.db.read_txn(), index)
        return dev.name if dev else str(index)

    def index(self, name: str) -> int:
        dev = self.device(name)
        assert dev is not None
        return dev.index


def new_tables(db: DB) -> KernelTables:
    return KernelTables(
        devices.new_devices_table(db),
        routes.new_routes_table(db),
        neighbors.new_neighbors_table(db),
        rules.new_rules_table(db),
    )


@asynccontextmanager
async def reflecting(
    kernel: Kernel, *patterns: str, buffer_bytes: int = 8 << 20
) -> AsyncIterator[tuple[World, DevicesReflector]]:
    db = DB()
    tables = new_tables(db)
    reflector = DevicesReflector(
        db,
        tables,
        netns=kernel.netns,
        patterns=DeviceFilter(patterns),
        buffer_bytes=buffer_bytes,
    )
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(reflector.run)
        initialized, done = tables.devices.initialized_watch(db.read_txn())
        if not initialized:
            with anyio.fail_after(SECONDS):
                await done.wait()
        yield World(kernel, db, tables), reflector
        tasks.cancel_scope.cancel()
