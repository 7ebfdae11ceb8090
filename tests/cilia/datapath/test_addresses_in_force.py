# SPDX-License-Identifier: Apache-2.0
"""What an agent learns from the maps of the one before."""

from __future__ import annotations

from bpf.maps.lb_numbers import FrontendType
from cilia.datapath.addresses_in_force import addresses_in_force
from cilia.datapath.opening import MemoryDatapath
from tests.reconcilers.loadbalancer.lb_world import LBWorld, frontend
from tests.reconcilers.targets import running


async def test_node_and_host_ports_tell_the_addresses_that_serve_them() -> None:
    world = LBWorld()
    world.set_nodes("192.0.2.7", "2001:db8::7")
    world.put(
        frontend("0.0.0.0:30080/TCP", ["10.244.1.1:80/TCP"], FrontendType.NODE_PORT),
        frontend("[::]:8080/TCP", ["[2001::1]:80/TCP"], FrontendType.HOST_PORT),
        frontend("10.96.0.1:80/TCP", ["10.244.1.1:80/TCP"]),
        frontend("198.51.100.1:80/TCP", ["10.244.1.1:80/TCP"], FrontendType.LOAD_BALANCER),
    )
    async with running(world.reconciler):
        await world.settled()
    found = addresses_in_force(MemoryDatapath(world.kernel.maps))
    assert list(map(str, found.node_port)) == ["192.0.2.7", "2001:db8::7"]
    assert list(found.primary) == []
