# SPDX-License-Identifier: Apache-2.0
"""The kernel's tables kept equal to a namespace of a test's own, and waits for what they show."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, Generic, TypeVar

import anyio

from cilia.node.device_selection import DeviceFilter
from cilia.node.devices import DevicesReflector
from cilia.node.kernel_batch import KernelTables
from reconcilers import Config, Drift, Operations, Reconciler, new_drift_table
from reconcilers.kernel_watch import Concerns, KernelWatch, NamedArrivals
from statedb import DB, ChangeIterator, Column, Index, RWTable, Table
from statedb.shown.columns import table_text
from statedb.status import get_status
from tables.node import devices, neighbors, routes, rules
from tests.kernel import Kernel

T = TypeVar("T")

SECONDS = 5.0
# Drift is to be repaired within this time.
REPAIR_S = 1.0


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


class Repairing(Generic[T]):
    """A reconciler that runs over a world, with the watch that finds drift."""

    def __init__(
        self,
        world: World,
        table: RWTable[T],
        reconciler: Reconciler[T],
        drift: RWTable[Drift],
    ) -> None:
        self.world = world
        self.table = table
        self.reconciler = reconciler
        self.drift = drift
        # The keys of all drift that `repaired` has seen.
        self.recorded: set[str] = set()

    def write(self, *rows: T) -> None:
        with self.world.db.write_txn(self.table) as wtxn:
            for row in rows:
                self.table.insert(wtxn, row)

    def delete(self, *rows: T) -> None:
        with self.world.db.write_txn(self.table) as wtxn:
            for row in rows:
                self.table.delete(wtxn, row)

    def statuses(self) -> list[str]:
        """`done`, or `error: TEXT`, in the order of the table."""
        found = []
        for row in self.table.all(self.world.db.read_txn()):
            status = get_status(row)
            found.append(f"{status.kind}: {status.error}" if status.error else str(status.kind))
        return found

    async def settled(self, timeout_s: float = SECONDS) -> list[str]:
        """Waits until every row was attempted; their statuses."""
        with anyio.fail_after(timeout_s):
            revision = self.table.revision(self.world.db.read_txn())
            await self.reconciler.wait_until_reconciled(revision)
        return self.statuses()

    async def until_statuses(self, *expected: str) -> None:
        await self.world.until(self.table, lambda: self.statuses() == list(expected))

    def drifted(self) -> ChangeIterator[Drift]:
        """From here on; a row may be gone before anyone looks at the table."""
        with self.world.db.write_txn(self.drift) as wtxn:
            changes = self.drift.changes(wtxn)
        list(changes.next(self.world.db.read_txn())[0])
        return changes

    async def repaired(self, broken: Callable[[], bool], seen: ChangeIterator[Drift]) -> Drift:
        """Waits until the kernel is whole again; the first drift that was recorded meanwhile."""
        started = anyio.current_time()
        while broken():
            assert anyio.current_time() - started < REPAIR_S
            await anyio.sleep(0.01)
        while True:
            rows, more = seen.next(self.world.db.read_txn())
            found = [change.obj for change in rows if not change.deleted]
            self.recorded.update(row.key for row in found)
            if found:
                return found[0]
            with anyio.fail_after(SECONDS):
                await more.wait()


@asynccontextmanager
async def repairing(
    world: World,
    table: RWTable[T],
    operations: Operations[T],
    observed: RWTable[Any] | None = None,
    concerns: Concerns[Any] | None = None,
    by_device: Index | None = None,
    config: Config | None = None,
    **settings: Any,
) -> AsyncIterator[Repairing[T]]:
    """Runs a reconciler, and its watch of `observed`."""
    db = world.db
    drift = new_drift_table(db)
    config = replace(config or Config(in_thread=True), **settings)
    reconciler = Reconciler(
        db,
        table,
        operations,
        config=config,
        drift=drift,
    )
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(reconciler.run)
        if observed is not None and concerns is not None:
            watch = KernelWatch(db, observed, concerns, reconciler.verify_now)
            tasks.start_soon(watch.run)
        if by_device is not None:
            arrivals = NamedArrivals(db, world.tables.devices, devices.names, table, by_device)
            tasks.start_soon(arrivals.run)
        yield Repairing(world, table, reconciler, drift)
        tasks.cancel_scope.cancel()
