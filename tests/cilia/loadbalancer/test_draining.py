# SPDX-License-Identifier: Apache-2.0
"""Backends on their way out, with and without someone who counts their connections."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import anyio

from cilia.loadbalancer.draining import DrainController
from tables.addressing import L3n4Addr
from tables.loadbalancer.backends import BackendState
from tables.loadbalancer.draining_backends import new_draining_backends_table
from tests.cilia.loadbalancer.world import World

ONE, TWO = "10.1.0.1:80/TCP", "10.1.0.2:80/TCP"
ENDING = BackendState.TERMINATING


class Drain:
    def __init__(self, *, counts: bool) -> None:
        self.world = World()
        self.table = new_draining_backends_table(self.world.db)
        #: None: the kernel does not list sockets.
        self.live: dict[str, int] | None = {}
        self.controller = DrainController(
            self.world.db,
            self.world.tables.backends,
            self.table,
            self._count if counts else None,
            interval_s=0.001,
            now=lambda: 7.0,
        )

    def _count(self, addresses: Collection[L3n4Addr]) -> Mapping[L3n4Addr, int] | None:
        if self.live is None:
            return None
        return {addr: self.live[str(addr)] for addr in addresses if str(addr) in self.live}

    @property
    def shown(self) -> list[tuple[str, str, int | None]]:
        rows = self.table.all(self.world.db.read_txn())
        return [(str(row.address), row.state, row.connections) for row in rows]

    async def until(self, *rows: tuple[str, str, int | None]) -> None:
        """Ends by the test's own time limit if that never comes."""
        while self.shown != list(rows):
            await anyio.sleep(0.001)


async def test_connections_are_counted_until_none_is_left() -> None:
    drain = Drain(counts=True)
    drain.live = {ONE: 3}
    async with anyio.create_task_group() as group:
        group.start_soon(drain.controller.run)
        drain.world.upsert("echo", "10.96.0.1:80/TCP", backends=[ONE, TWO])
        drain.world.set_backends("echo", ONE, state=ENDING)
        await drain.until((ONE, "terminating", 3))
        drain.live = {ONE: 1}
        await drain.until((ONE, "terminating", 1))
        drain.world.set_backends("echo")
        await drain.until((ONE, "removed", 1))
        drain.live = {ONE: 0}
        await drain.until()
        group.cancel_scope.cancel()


async def test_unknown_counts_are_no_zeroes_and_a_removed_backend_is_not_kept() -> None:
    drain = Drain(counts=True)
    drain.live = {ONE: 3}
    async with anyio.create_task_group() as group:
        group.start_soon(drain.controller.run)
        drain.world.set_backends("echo", ONE, state=ENDING)
        await drain.until((ONE, "terminating", 3))
        drain.live = None
        await drain.until((ONE, "terminating", None))
        drain.world.set_backends("echo")
        await drain.until()
        group.cancel_scope.cancel()


async def test_without_a_counter_a_backend_is_shown_while_it_terminates() -> None:
    drain = Drain(counts=False)
    async with anyio.create_task_group() as group:
        group.start_soon(drain.controller.run)
        drain.world.set_backends("echo", ONE, TWO, state=ENDING)
        await drain.until((ONE, "terminating", None), (TWO, "terminating", None))
        drain.world.set_backends("echo", ONE)
        await drain.until()
        group.cancel_scope.cancel()


async def test_an_address_that_serves_another_service_does_not_drain() -> None:
    drain = Drain(counts=False)
    drain.world.set_backends("other", ONE)
    drain.world.set_backends("echo", ONE, TWO, state=ENDING)
    with drain.world.db.write_txn(drain.world.tables.backends) as wtxn:
        changes = drain.world.tables.backends.changes(wtxn)
    drain.controller.step(changes)
    assert drain.shown == [(TWO, "terminating", None)]
    changes.close()
