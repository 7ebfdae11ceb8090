# SPDX-License-Identifier: Apache-2.0
"""Connections of a pod that is gone, and those of everybody else."""

from __future__ import annotations

import time
from collections.abc import Mapping

import anyio
import msgspec
import pytest

from bpf.maps import ct
from bpf.maps.ct import CtEntry, CtKey, Direction
from bpf.maps.fake import FakeMap
from cilia.endpoints.ended_connections import EndedConnections
from cilia.ipam.allocator import Allocator
from statedb import DB
from tables.addressing import IP
from tables.ipam.ip_allocations import new_ip_allocations_table

POD = {4: "10.207.0.10", 6: "fd00:207::a"}
OTHER = {4: "10.207.0.11", 6: "fd00:207::b"}
WORLD = {4: "198.51.100.7", 6: "2001:db8::7"}
CLOSED_S = 10
FAMILIES = pytest.mark.parametrize("family", [4, 6])
PROTOCOLS = pytest.mark.parametrize("proto", [6, 17])


def empty() -> dict[str, FakeMap]:
    return {name: FakeMap(name, 16 if "4" in name else 40, ct.ENTRY_SIZE) for name in ct.CT_MAPS}


def name_of(key: CtKey) -> str:
    family = 6 if len(key.source) == 16 else 4
    return f"cilia_ct{family}_{'tcp' if key.proto == 6 else 'any'}"


def add(
    maps: Mapping[str, FakeMap], source: str, destination: str, proto: int, direction: Direction
) -> CtKey:
    ends = IP.parse(destination).packed, IP.parse(source).packed
    key = CtKey(
        destination=ends[0],
        source=ends[1],
        destination_port=80,
        source_port=4000,
        proto=proto,
        direction=direction,
    )
    entry = CtEntry(expires_s=1 << 30, created_s=1, remote_identity=2, tcp_flags=2, ifindex=7)
    maps[name_of(key)].update(ct.encode_key(key), ct.encode_entry(entry))
    return key


def entry(maps: Mapping[str, FakeMap], key: CtKey) -> CtEntry:
    found = maps[name_of(key)].lookup(ct.encode_key(key))
    assert found is not None
    return ct.decode_entry(found)


@PROTOCOLS
@FAMILIES
def test_all_flows_of_the_address_are_closed_and_none_is_deleted(family: int, proto: int) -> None:
    maps = empty()
    theirs = [
        add(maps, POD[family], WORLD[family], proto, Direction.EGRESS),
        add(maps, POD[family], WORLD[family], proto, Direction.SERVICE),
        add(maps, WORLD[family], POD[family], proto, Direction.INGRESS),
        add(maps, OTHER[family], POD[family], proto, Direction.EGRESS),
    ]
    other = add(maps, OTHER[family], WORLD[family], proto, Direction.EGRESS)
    kept = entry(maps, other)
    ending = EndedConnections(DB(), None, maps, CLOSED_S)  # type: ignore[arg-type]
    assert ending.end([IP.parse(POD[family])]) == len(theirs)
    for key in theirs:
        closed = entry(maps, key)
        assert ct.is_over(closed, 0)
        assert closed.expires_s == pytest.approx(time.monotonic() + CLOSED_S, abs=2)
        assert (closed.remote_identity, closed.ifindex, closed.created_s) == (2, 7, 1)
    assert entry(maps, other) == kept
    assert ending.end([IP.parse(POD[family])]) == 0, "once"


def test_what_expires_earlier_does_so() -> None:
    maps = empty()
    key = add(maps, POD[4], WORLD[4], 17, Direction.EGRESS)
    old = msgspec.structs.replace(entry(maps, key), expires_s=3)
    maps[name_of(key)].update(ct.encode_key(key), ct.encode_entry(old))
    EndedConnections(DB(), None, maps, CLOSED_S).end([IP.parse(POD[4])])  # type: ignore[arg-type]
    assert entry(maps, key).expires_s == 3


async def test_connections_end_when_the_address_of_a_pod_is_freed() -> None:
    db, maps = DB(), empty()
    table = new_ip_allocations_table(db)
    allocator = Allocator(table)
    with db.write_txn(table) as wtxn:
        allocator.claim(wtxn, IP.parse(POD[4]), "test/pod", 7)
    key = add(maps, POD[4], WORLD[4], 6, Direction.EGRESS)
    async with anyio.create_task_group() as group:
        group.start_soon(EndedConnections(db, table, maps, CLOSED_S).run)
        await anyio.wait_all_tasks_blocked()
        assert not ct.is_over(entry(maps, key), 0)
        with db.write_txn(table) as wtxn:
            allocator.release(wtxn, IP.parse(POD[4]), 7)
        with anyio.fail_after(5):
            while not ct.is_over(entry(maps, key), 0):
                await anyio.sleep(0.001)
        group.cancel_scope.cancel()
