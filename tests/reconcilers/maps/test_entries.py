# SPDX-License-Identifier: Apache-2.0
"""Rows of a table as entries of a map, with the map of the node's devices."""

from __future__ import annotations

from bpf.libbpf import ffi
from bpf.maps import netdev
from bpf.maps.fake import FakeMap
from reconcilers import Reconciler
from reconcilers.datapath.netdevs import netdev_operations
from statedb import DB
from tables.addressing import IP
from tables.datapath.netdevs import Netdev, new_netdevs_table
from tests.reconcilers.targets import FAST, running

V4, V6 = IP.parse("192.0.2.9"), IP.parse("2001:db8::9")


class World:
    def __init__(self) -> None:
        self.db = DB()
        self.table = new_netdevs_table(self.db)
        self.map = FakeMap(netdev.NAME, netdev.KEY_BYTES, netdev.VALUE_BYTES, 2)
        self.reconciler = Reconciler(
            self.db,
            self.table,
            netdev_operations(self.map),
            config=FAST,
        )

    def put(self, *rows: Netdev) -> None:
        with self.db.write_txn(self.table) as wtxn:
            self.table.delete_all(wtxn)
            self.table.insert_many(wtxn, rows)

    async def attempted(self) -> None:
        await self.reconciler.wait_until_reconciled(self.table.revision(self.db.read_txn()))

    def entries(self) -> dict[int, netdev.NetdevValue]:
        return {netdev.decode_key(k): netdev.decode_value(v) for k, v in self.map.items()}


async def test_rows_become_entries_and_go_with_them() -> None:
    world = World()
    world.map.update(netdev.encode_key(99), bytes(netdev.VALUE_BYTES))
    world.put(Netdev(2, "eth0", V4, V6))
    async with running(world.reconciler):
        await world.attempted()
        world.reconciler.prune_now()
        world.put(Netdev(3, "eth1", V4))
        await world.attempted()
        while 99 in world.entries():
            await world.attempted()
    assert world.entries() == {3: netdev.NetdevValue(V4.packed)}


async def test_a_full_map_is_an_error_of_the_row_that_does_not_fit() -> None:
    world = World()
    world.put(*(Netdev(number, f"eth{number}") for number in (1, 2, 3)))
    async with running(world.reconciler):
        await world.attempted()
    errors = [row.status.error for row in world.table.all(world.db.read_txn())]
    assert [bool(error) for error in errors] == [False, False, True]
    assert "cilia_netdev" in errors[2]


def test_the_codec_is_the_c_struct() -> None:
    assert ffi.sizeof("struct netdev_key") == netdev.KEY_BYTES
    assert ffi.sizeof("struct netdev") == netdev.VALUE_BYTES
    raw = netdev.encode_value(netdev.NetdevValue(V4.packed, V6.packed))
    view = ffi.from_buffer("struct netdev *", raw)
    assert bytes(ffi.buffer(ffi.addressof(view[0], "address4"))) == V4.packed
    assert bytes(ffi.buffer(ffi.addressof(view[0], "address6"))) == V6.packed
    assert netdev.decode_value(raw) == netdev.NetdevValue(V4.packed, V6.packed)
