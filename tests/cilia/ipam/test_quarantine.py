# SPDX-License-Identifier: Apache-2.0
"""A freed address waits for the datapath to forget whose it was."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import anyio

from bpf.errors import NoMemory
from bpf.maps import ipcache as codec
from bpf.maps.fake import FakeMap
from cilia.identity.ipcache.writer import IPCacheWriter
from cilia.ipam.allocator import Allocator
from cilia.ipam.quarantine import Quarantine
from reconcilers import Reconciler
from reconcilers.identity.ipcache import ipcache_operations
from statedb import DB
from tables.addressing import IP, Prefix
from tables.identity.ipcache import Claim, new_ipcache_table
from tables.ipam.ip_allocations import new_ip_allocations_table
from tables.sources import Source
from tests.reconcilers.targets import FAST

ADDRESS, OTHER = IP.parse("10.1.0.7"), IP.parse("10.1.0.8")
PREFIX = Prefix.of(ADDRESS, 32)


class StubbornMap(FakeMap):
    """Refuses to delete for a while."""

    stubborn = False
    refused = 0

    def delete(self, key: bytes) -> None:
        if self.stubborn:
            self.refused += 1
            raise NoMemory("delete from cilia_ipcache", 12)
        super().delete(key)


class World:
    def __init__(self) -> None:
        self.db = DB()
        self.ipcache = new_ipcache_table(self.db)
        self.writer = IPCacheWriter(self.ipcache)
        with self.db.write_txn(self.ipcache) as wtxn:
            self.known = self.ipcache.register_initializer(wtxn, "test")
        self.map = StubbornMap(codec.NAME, codec.KEY_BYTES, codec.VALUE_BYTES)
        self.reconciler = Reconciler(
            self.db, self.ipcache, ipcache_operations(self.map), config=FAST
        )
        self.allocations = new_ip_allocations_table(self.db)
        self.allocator = Allocator(self.allocations)
        self.quarantine = Quarantine(
            self.db, self.allocations, self.allocator, self.ipcache, self.reconciler
        )

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with anyio.create_task_group() as group:
            group.start_soon(self.quarantine.run)
            group.start_soon(self.reconciler.run)
            yield
            group.cancel_scope.cancel()

    def all_known(self) -> None:
        with self.db.write_txn(self.ipcache) as wtxn:
            self.known(wtxn)

    def claim(self, source: Source = Source.LOCAL) -> None:
        claim = Claim(source=source, owner="x", identity=300)
        with self.db.write_txn(self.ipcache) as wtxn:
            self.writer.upsert(wtxn, PREFIX, claim)

    def unclaim(self) -> None:
        with self.db.write_txn(self.ipcache) as wtxn:
            self.writer.delete(wtxn, PREFIX, Source.LOCAL, "x")

    def free(self, ip: IP = ADDRESS) -> None:
        with self.db.write_txn(self.allocations) as wtxn:
            self.allocator.claim(wtxn, ip, "a", 7)
            self.allocator.release(wtxn, ip, 7)

    def waits(self, ip: IP = ADDRESS) -> bool:
        row = self.db.look(lambda txn: self.allocations.get(txn, ip))
        assert row is not None
        return row.in_ipcache

    async def until(self, condition: Callable[[], bool]) -> None:
        with anyio.fail_after(5):
            while not condition():
                await anyio.sleep(0.001)


async def test_an_address_is_forgotten_when_its_entry_is_out_of_the_map() -> None:
    world = World()
    world.all_known()
    world.claim()
    async with world.running():
        await world.until(lambda: world.map.count() == 1)
        world.free()
        world.free(OTHER)
        await world.until(lambda: not world.waits(OTHER))
        assert world.waits()
        world.map.stubborn = True
        world.unclaim()
        await world.until(lambda: world.map.refused > 5)
        assert world.waits()
        world.map.stubborn = False
        await world.until(lambda: not world.waits())
        assert world.map.count() == 0


async def test_what_others_say_of_it_keeps_no_address() -> None:
    world = World()
    world.all_known()
    world.claim(Source.K8S)
    async with world.running():
        world.free()
        await world.until(lambda: not world.waits())


async def test_an_input_that_cannot_be_read_keeps_no_address() -> None:
    world = World()
    with world.db.write_txn(world.ipcache) as wtxn:
        world.known.stall(wtxn)
    world.claim()
    async with world.running():
        await world.until(lambda: world.map.count() == 1)
        world.free()
        world.unclaim()
        await world.until(lambda: not world.waits())
        assert world.map.count() == 0


async def test_what_a_former_run_left_is_waited_for() -> None:
    world = World()
    key = codec.encode_key(codec.IPCacheKey(ADDRESS.packed, 32))
    world.map.update(key, codec.encode_value(codec.IPCacheValue(300)))
    async with world.running():
        world.free()
        for _ in range(50):  # nothing is to happen: there is no event to wait for
            await anyio.sleep(0.001)
            assert world.waits()
        world.all_known()
        await world.until(lambda: not world.waits())
        assert world.map.count() == 0
