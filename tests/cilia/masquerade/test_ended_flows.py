# SPDX-License-Identifier: Apache-2.0
"""Flows of a pod that is gone, and those of everybody else."""

from __future__ import annotations

import time
from collections.abc import Iterator
from ipaddress import ip_address

import anyio
import pytest

from bpf.maps import nat
from bpf.maps.fake import FakeMap
from bpf.maps.nat import NatDirection, NatFlag, NatKey, NatValue
from cilia.ipam.allocator import Allocator
from cilia.masquerade.ended_flows import EndedFlows
from statedb import DB
from tables.addressing import IP
from tables.ipam.ip_allocations import new_ip_allocations_table

POD = {4: "10.207.0.10", 6: "fd00:207::a"}
OTHER = {4: "10.207.0.11", 6: "fd00:207::b"}
WORLD = {4: "198.51.100.7", 6: "2001:db8::7"}
NODE = {4: "192.0.2.1", 6: "fd00:2::1"}
CLOSED_S = 10
KEY_BYTES = {4: 16, 6: 40}


def packed(text: str) -> bytes:
    return ip_address(text).packed


class Flows:
    """The maps of translations, in memory."""

    def __init__(self) -> None:
        sizes = dict(zip((4, 6), nat.VALUE_SIZE.values(), strict=True))
        self.maps = {
            name: FakeMap(name, KEY_BYTES[family], sizes[family])
            for family, name in zip((4, 6), nat.NAT_MAPS, strict=True)
        }

    def add(self, family: int, source: str, port: int, *, rev_nat: int = 0) -> NatKey:
        """A flow with both its entries; return the key of the way back."""
        raw = self.maps[nat.NAT_MAPS[family == 6]]
        out = NatKey(packed(WORLD[family]), packed(source), 80, port, 17, NatDirection.OUT)
        there = NatValue(packed(NODE[family]), port + 1, expires_s=1 << 20, created_s=1)
        back = nat.partner(out, there)
        value = NatValue(packed(source), port, expires_s=1 << 20, created_s=1, rev_nat=rev_nat)
        if not rev_nat:
            raw.update(nat.encode_key(out), nat.encode_value(there))
        raw.update(nat.encode_key(back), nat.encode_value(value))
        return back

    def all(self) -> Iterator[tuple[NatKey, NatValue]]:
        for raw in self.maps.values():
            yield from nat.translations(raw)

    def ended(self) -> set[NatKey]:
        return {key for key, value in self.all() if value.flags & NatFlag.ENDED}


class World:
    def __init__(self) -> None:
        self.db = DB()
        self.table = new_ip_allocations_table(self.db)
        self.allocator = Allocator(self.table)
        self.flows = Flows()
        self.ending = EndedFlows(self.db, self.table, self.flows.maps, CLOSED_S)

    def claim(self, *addresses: str) -> None:
        with self.db.write_txn(self.table) as wtxn:
            for address in addresses:
                self.allocator.claim(wtxn, IP.parse(address), "test/pod", 7)

    def release(self, *addresses: str) -> None:
        with self.db.write_txn(self.table) as wtxn:
            for address in addresses:
                self.allocator.release(wtxn, IP.parse(address), 7)


@pytest.mark.parametrize("family", [4, 6])
def test_the_way_there_goes_and_the_way_back_is_closed(family: int) -> None:
    flows = Flows()
    back = flows.add(family, POD[family], 1000)
    others = [flows.add(family, OTHER[family], 1002), flows.add(family, NODE[family], 1004)]
    client = flows.add(family, POD[family], 1006, rev_nat=7)
    before = dict(flows.all())
    ending = EndedFlows(DB(), None, flows.maps, CLOSED_S)  # type: ignore[arg-type]
    assert ending.end([IP.parse(POD[family])]) == 1
    after = dict(flows.all())
    assert before.keys() - after.keys() == {nat.partner(back, before[back])}
    assert after[back].flags == NatFlag.ENDED | NatFlag.CLOSING
    assert after[back].expires_s == pytest.approx(time.monotonic() + CLOSED_S, abs=2)
    for key in (*others, client):
        assert after[key] == before[key]
    assert ending.end([IP.parse(POD[family])]) == 0, "once"


async def test_flows_end_when_the_address_of_a_pod_is_freed() -> None:
    world = World()
    world.claim(POD[4], POD[6], OTHER[4])
    one, two = world.flows.add(4, POD[4], 1000), world.flows.add(6, POD[6], 1000)
    kept = world.flows.add(4, OTHER[4], 1100)
    async with anyio.create_task_group() as group:
        group.start_soon(world.ending.run)
        await anyio.wait_all_tasks_blocked()
        assert world.flows.ended() == set()
        world.release(POD[4], POD[6])
        with anyio.fail_after(5):
            while world.flows.ended() != {one, two}:
                await anyio.sleep(0.001)
        # Its next owner has flows of its own, which end with it.
        world.claim(POD[4])
        again = world.flows.add(4, POD[4], 2000)
        await anyio.wait_all_tasks_blocked()
        assert again not in world.flows.ended()
        world.release(POD[4])
        with anyio.fail_after(5):
            while again not in world.flows.ended():
                await anyio.sleep(0.001)
        assert kept not in world.flows.ended()
        group.cancel_scope.cancel()


async def test_an_address_that_rests_at_the_start_has_no_flows_left() -> None:
    world = World()
    world.claim(POD[4])
    back = world.flows.add(4, POD[4], 1000)
    world.release(POD[4])
    async with anyio.create_task_group() as group:
        group.start_soon(world.ending.run)
        with anyio.fail_after(5):
            while world.flows.ended() != {back}:
                await anyio.sleep(0.001)
        group.cancel_scope.cancel()
