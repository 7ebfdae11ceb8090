# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import asyncio

import msgspec

from cilia.loadbalancer.local_node import LocalNodeController
from cilia.loadbalancer.options import LoadBalancerOptions
from cilia.loadbalancer.this_node import ZONE_LABEL, LocalNode
from tables.addressing import IP
from tables.cluster.nodes import Node, new_nodes_table
from tables.loadbalancer.services import TrafficDistribution
from tests.cilia.loadbalancer.world import World, backend, change, service

FRONTEND, ONE, TWO = "10.96.0.1:80/TCP", "10.1.0.1:80/TCP", "10.1.0.2:80/TCP"


async def test_the_row_of_the_node_is_followed() -> None:
    world = World(LoadBalancerOptions())
    nodes = new_nodes_table(world.db)
    asked = msgspec.structs.replace(
        change("echo", FRONTEND),
        service=service("echo", traffic_distribution=TrafficDistribution.PREFER_SAME_ZONE),
        backends=[
            backend("echo", ONE, for_zones=("a",)),
            backend("echo", TWO, for_zones=("b",)),
        ],
    )
    world.apply(asked)
    calls: list[LocalNode] = []
    called = asyncio.Event()

    def changed() -> None:
        calls.append(world.writer.node)
        called.set()

    task = asyncio.create_task(LocalNodeController(world.writer, nodes, changed=changed).run())
    row = Node("here", {ZONE_LABEL: "b"}, internal_ips=(IP.parse("10.0.0.1"),))
    with world.db.write_txn(nodes) as wtxn:
        nodes.insert(wtxn, Node("there", {ZONE_LABEL: "a"}))
        nodes.insert(wtxn, row)
    async with asyncio.timeout(5):
        await called.wait()
    assert world.backends_of(FRONTEND) == [TWO]
    assert calls == [LocalNode("here", {ZONE_LABEL: "b"}, frozenset(row.internal_ips))]
    called.clear()
    with world.db.write_txn(nodes) as wtxn:
        nodes.delete(wtxn, row)
    async with asyncio.timeout(5):
        await called.wait()
    assert world.backends_of(FRONTEND) == [ONE, TWO]
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
