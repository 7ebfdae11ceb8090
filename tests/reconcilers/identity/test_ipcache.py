# SPDX-License-Identifier: Apache-2.0
"""The map follows what is in force, also where the kernel says no."""

from __future__ import annotations

import random

import anyio
import pytest

from bpf.maps import ipcache as codec
from bpf.maps.fake import FakeMap, FaultyMap
from bpf.maps.raw import RawMap
from cilia.identity.ipcache.writer import IPCacheWriter
from reconcilers import Reconciler
from reconcilers.identity.ipcache import ipcache_operations
from reconcilers.verify import new_drift_table
from statedb import DB
from tables.addressing import IP, Prefix
from tables.identity.ipcache import Claim, IPCacheEntry, new_ipcache_table, parse_key
from tables.sources import Source
from tests.reconcilers.targets import FAST, running

Entries = dict[str, str]


class World:
    def __init__(self, room: int = 64, faults: float = 0.0) -> None:
        self.db = DB()
        self.table = new_ipcache_table(self.db)
        self.writer = IPCacheWriter(self.table)
        with self.db.write_txn(self.table) as wtxn:
            self.known = self.table.register_initializer(wtxn, "test")
        self.fake = FakeMap(codec.NAME, codec.KEY_BYTES, codec.VALUE_BYTES, room)
        raw: RawMap = FaultyMap(self.fake, faults, random.Random(7)) if faults else self.fake
        self.reconciler = Reconciler(
            self.db,
            self.table,
            ipcache_operations(raw),
            config=FAST,
            drift=new_drift_table(self.db),
        )

    def put(self, text: str, identity: int, source: Source = Source.LOCAL, host: str = "") -> None:
        cluster_id, prefix = parse_key(text)
        where = IP.parse(host) if host else None
        claim = Claim(source=source, owner=source.value, identity=identity, host=where)
        with self.db.write_txn(self.table) as wtxn:
            self.writer.upsert(wtxn, prefix, claim, cluster_id)

    def remove(self, text: str, source: Source = Source.LOCAL) -> None:
        with self.db.write_txn(self.table) as wtxn:
            self.writer.delete(wtxn, Prefix.parse(text), source, source.value)

    def all_known(self) -> None:
        with self.db.write_txn(self.table) as wtxn:
            self.known(wtxn)

    async def settled(self) -> None:
        revision = self.db.look(self.table.revision)
        with anyio.fail_after(5):
            await self.reconciler.wait_until_reconciled(revision, settled=True)

    async def attempted(self) -> None:
        with anyio.fail_after(5):
            await self.reconciler.wait_until_reconciled(self.db.look(self.table.revision))

    def entries(self) -> Entries:
        return {
            str(codec.decode_key(key)): str(codec.decode_value(value))
            for key, value in self.fake.items()
        }

    def row(self, text: str) -> IPCacheEntry:
        row = self.db.look(lambda txn: self.table.get(txn, parse_key(text)))
        assert row is not None
        return row


def shown(identity: int, tunnel: str = "0.0.0.0", flags: str = "<none>") -> str:
    return f"identity={identity} encryptkey=0 tunnelendpoint={tunnel} flags={flags}"


async def test_what_is_in_force_is_in_the_map() -> None:
    world = World()
    async with running(world.reconciler):
        world.put("10.1.0.7/32", 300)
        world.put("10.1.0.7/32", 6, Source.K8S)
        world.put("10.2.0.0/24", 7, Source.K8S, host="192.0.2.2")
        world.put("10.2.0.0/24@3", 8, Source.CLUSTERMESH, host="fd00::2")
        world.put("fd00:1::7/128", 300)
        await world.settled()
        first = {
            "10.1.0.7/32": shown(300),
            "10.2.0.0/24": shown(7, "192.0.2.2", "hastunnel"),
            "10.2.0.0/24@3": shown(8, "fd00::2", "hastunnel,ipv6tunnel,remotecluster"),
            "fd00:1::7/128": shown(300),
        }
        assert world.entries() == first
        world.remove("10.1.0.7/32")
        world.remove("fd00:1::7/128")
        await world.settled()
        del first["fd00:1::7/128"]
        assert world.entries() == first | {"10.1.0.7/32": shown(6)}


async def test_nothing_is_removed_before_all_claims_are_known() -> None:
    world = World()
    old = codec.encode_key(codec.IPCacheKey(bytes([10, 1, 0, 9]), 32))
    world.fake.update(old, codec.encode_value(codec.IPCacheValue(299)))
    async with running(world.reconciler):
        world.put("10.1.0.7/32", 300)
        world.reconciler.prune_now()
        await world.settled()
        assert world.entries() == {"10.1.0.7/32": shown(300), "10.1.0.9/32": shown(299)}
        world.all_known()
        with anyio.fail_after(5):
            while "10.1.0.9/32" in world.entries():
                await anyio.sleep(0.001)
        assert world.entries() == {"10.1.0.7/32": shown(300)}


async def test_in_a_full_map_what_is_in_force_stays_and_the_row_says_what_is_missing() -> None:
    world = World(room=2)
    world.all_known()
    async with running(world.reconciler):
        world.put("10.1.0.1/32", 300)
        world.put("10.1.0.2/32", 300)
        await world.settled()
        world.put("10.1.0.3/32", 300)
        world.put("10.1.0.1/32", 301)
        await world.attempted()
        assert world.entries() == {"10.1.0.1/32": shown(301), "10.1.0.2/32": shown(300)}
        assert world.row("10.1.0.3/32").status.error == (
            "map cilia_ipcache is full: it has room for 2 entries"
        )
        assert not world.row("10.1.0.1/32").status.error
        world.reconciler.prune_now()
        await world.attempted()
        assert len(world.entries()) == 2
        world.remove("10.1.0.2/32")
        await world.settled()
        assert world.entries() == {"10.1.0.1/32": shown(301), "10.1.0.3/32": shown(300)}


@pytest.mark.parametrize("faults", [0.1, 0.5])
async def test_every_prefix_arrives_when_the_map_is_faulty(faults: float) -> None:
    rng = random.Random(11)
    world = World(room=512, faults=faults)
    world.all_known()
    wanted: dict[str, int] = {}
    async with running(world.reconciler):
        for _ in range(400):
            text = f"10.{rng.randrange(4)}.0.{rng.randrange(40)}/32"
            if rng.random() < 0.7:
                wanted[text] = rng.randrange(256, 260)
                world.put(text, wanted[text])
            else:
                wanted.pop(text, None)
                world.remove(text)
            if rng.random() < 0.2:
                await anyio.sleep(0)
        await world.settled()
        assert world.entries() == {text: shown(identity) for text, identity in wanted.items()}


async def test_what_somebody_changes_in_the_map_is_repaired() -> None:
    world = World()
    world.all_known()
    async with running(world.reconciler):
        for number in range(1, 4):
            world.put(f"10.1.0.{number}/32", 300 + number)
        await world.settled()
        before = world.entries()
        keys = [key for key, _ in world.fake.items()]
        world.fake.delete(keys[0])
        world.fake.update(keys[1], codec.encode_value(codec.IPCacheValue(1)))
        foreign = codec.encode_key(codec.IPCacheKey(bytes([10, 9, 9, 0]), 24))
        world.fake.update(foreign, codec.encode_value(codec.IPCacheValue(1)))
        world.reconciler.verify_now()
        with anyio.fail_after(5):
            while world.entries() != before:
                await anyio.sleep(0.001)
