# SPDX-License-Identifier: Apache-2.0
"""Node objects in the maps that programs know nodes by."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from ipaddress import ip_address

import anyio

from bpf.libbpf import ffi
from bpf.maps.cluster_nodes import (
    VALUE_BYTES,
    ClusterNodeFlag,
    ClusterNodeMaps,
    decode_value,
    encode_value,
)
from bpf.maps.fake import FakeMap
from cilia.datapath.cluster_nodes import ClusterNodesController
from reconcilers import Reconciler
from reconcilers.datapath.cluster_nodes import cluster_node_operations
from statedb import DB
from tables.addressing import IP
from tables.cluster.nodes import Node, new_nodes_table
from tables.datapath import cluster_nodes
from tests.reconcilers.targets import FAST

SELF, OTHER = ClusterNodeFlag.SELF, ClusterNodeFlag.NONE


def node(name: str, *internal: str, external: str = "") -> Node:
    outside = (IP.parse(external),) if external else ()
    return Node(name, internal_ips=tuple(map(IP.parse, internal)), external_ips=outside)


class World:
    """The agent of node1."""

    def __init__(self, room: int = 16) -> None:
        self.db = DB()
        self.nodes = new_nodes_table(self.db)
        with self.db.write_txn(self.nodes) as wtxn:
            self.listed = self.nodes.register_initializer(wtxn, "list")
        self.table = cluster_nodes.new_cluster_nodes_table(self.db)
        self.maps = ClusterNodeMaps.fake(room)
        self.reconciler = Reconciler(
            self.db,
            self.table,
            cluster_node_operations(self.maps),
            config=FAST,
        )
        self.controller = ClusterNodesController(self.db, self.nodes, self.table, "node1")

    def put(self, *nodes: Node, complete: bool = True) -> None:
        with self.db.write_txn(self.nodes) as wtxn:
            self.nodes.delete_all(wtxn)
            self.nodes.insert_many(wtxn, nodes)
            if complete:
                self.listed(wtxn)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with anyio.create_task_group() as group:
            group.start_soon(self.controller.run)
            group.start_soon(self.reconciler.run)
            yield
            group.cancel_scope.cancel()

    def entries(self) -> dict[str, ClusterNodeFlag]:
        entries = (entry for raw in self.maps for entry in raw.items())
        return {str(ip_address(key)): decode_value(value) for key, value in entries}

    async def until(self, condition: Callable[[], bool]) -> None:
        with anyio.fail_after(5):
            while not condition():
                await anyio.sleep(0.001)


async def test_the_maps_follow_the_addresses_of_node_objects() -> None:
    world = World()
    async with world.running():
        world.put(
            node("node1", "192.0.2.1", "fd00:2::1", external="198.51.100.1"),
            node("node2", "192.0.2.2", "127.0.0.1", "::"),
        )
        first = {"192.0.2.1": SELF, "fd00:2::1": SELF, "198.51.100.1": SELF, "192.0.2.2": OTHER}
        await world.until(lambda: world.entries() == first)
        world.put(node("node1", "192.0.2.1"), node("node3", "192.0.2.2", "192.0.2.3"))
        then = {"192.0.2.1": SELF, "192.0.2.2": OTHER, "192.0.2.3": OTHER}
        await world.until(lambda: world.entries() == then)
    names = {str(row.address): row.node for row in world.table.all(world.db.read_txn())}
    assert names["192.0.2.2"] == "node3"


async def test_an_address_of_two_objects_is_this_nodes() -> None:
    world = World()
    async with world.running():
        world.put(node("node0", "192.0.2.1"), node("node1", "192.0.2.1"))
        await world.until(lambda: world.entries() == {"192.0.2.1": SELF})


async def test_what_is_in_force_stays_until_all_nodes_are_listed() -> None:
    world = World()
    old = ip_address("192.0.2.9").packed
    world.maps.v4.update(old, encode_value(OTHER))
    async with world.running():
        world.put(node("node2", "192.0.2.2"), complete=False)
        await world.until(lambda: "192.0.2.2" in world.entries())
        world.reconciler.prune_now()
        await world.reconciler.wait_until_reconciled(world.table.revision(world.db.read_txn()))
        assert "192.0.2.9" in world.entries()
        world.put(node("node2", "192.0.2.2"))
        await world.until(lambda: world.entries() == {"192.0.2.2": OTHER})


async def test_a_full_map_is_an_error_of_the_address_that_does_not_fit() -> None:
    world = World(room=1)
    async with world.running():
        world.put(node("node1", "192.0.2.1"), node("node2", "192.0.2.2"))
        await world.until(lambda: len(errors(world)) == 1)
        assert "cilia_nodes4" in errors(world)[0]
        world.put(node("node2", "192.0.2.2"))
        await world.until(lambda: world.entries() == {"192.0.2.2": OTHER} and not errors(world))


def errors(world: World) -> list[str]:
    rows = world.table.all(world.db.read_txn())
    return [row.status.error for row in rows if row.status.error]


def test_the_codec_is_the_c_struct() -> None:
    assert ffi.sizeof("struct cluster_node") == VALUE_BYTES
    for number, raw in zip((4, 6), ClusterNodeMaps.fake(), strict=True):
        assert isinstance(raw, FakeMap)
        assert ffi.sizeof(f"struct cluster_node{number}_key") == raw.key_size
