# SPDX-License-Identifier: Apache-2.0
"""The address of a machine or a pod has no wildcard entry: its other ports are no Service's."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import anyio
import pytest

from bpf.maps.lb_numbers import FrontendType
from cilia.loadbalancer.node_address_follower import NodeAddressFollower
from cilia.loadbalancer.options import LoadBalancerOptions
from reconcilers.loadbalancer.machine_addresses import AddressSet
from statedb import RWTable
from tables.addressing import IP, Prefix
from tables.cluster.nodes import Node
from tables.cluster.pods import Pod
from tables.node.devices import Device, DeviceAddress
from tables.node.node_addresses import NodeAddress
from tests.reconcilers.loadbalancer.lb_world import LBWorld, frontend
from tests.reconcilers.targets import running

BACKENDS = {False: ["10.244.1.1:80/TCP"], True: ["[2001::1]:80/TCP"]}


def node(world: LBWorld, ip: IP) -> Callable[[], None]:
    row = Node("other", internal_ips=(ip,))
    with world.db.write_txn(world.nodes) as wtxn:
        world.nodes.insert(wtxn, row)
    return lambda: delete(world, world.nodes, row)


def external(world: LBWorld, ip: IP) -> Callable[[], None]:
    row = Node("other", external_ips=(ip,))
    with world.db.write_txn(world.nodes) as wtxn:
        world.nodes.insert(wtxn, row)
    return lambda: delete(world, world.nodes, row)


def pod(world: LBWorld, ip: IP) -> Callable[[], None]:
    row = Pod("default", "vm", ips=(ip,))
    with world.db.write_txn(world.pods) as wtxn:
        world.pods.insert(wtxn, row)
    return lambda: delete(world, world.pods, row)


def pods_of_another_node(world: LBWorld, ip: IP) -> Callable[[], None]:
    prefixes = "nonsense", "10.9.0.0/24", "192.0.2.7/24", "2001:db8::/64"
    row = Node("other", pod_cidrs=prefixes)
    with world.db.write_txn(world.nodes) as wtxn:
        world.nodes.insert(wtxn, row)
    return lambda: delete(world, world.nodes, row)


def unused_device(world: LBWorld, ip: IP) -> Callable[[], None]:
    row = Device(7, "eth7", addresses=(DeviceAddress(ip, 24),), selected=False)
    with world.db.write_txn(world.devices) as wtxn:
        world.devices.insert(wtxn, row)
    return lambda: delete(world, world.devices, row)


def node_address(world: LBWorld, ip: IP) -> Callable[[], None]:
    row = NodeAddress(ip, False, False, "eth0")
    with world.db.write_txn(world.node_addresses) as wtxn:
        world.node_addresses.insert(wtxn, row)
    return lambda: delete(world, world.node_addresses, row)


def delete(world: LBWorld, table: RWTable[Any], row: object) -> None:
    with world.db.write_txn(table) as wtxn:
        table.delete(wtxn, row)


OWNERS = pytest.mark.parametrize(
    "own", [node, external, unused_device, node_address, pod, pods_of_another_node]
)
ADDRESSES = pytest.mark.parametrize("address", ["192.0.2.7", "2001:db8::7"])
Own = Callable[[LBWorld, IP], Callable[[], None]]


def load_balancer(world: LBWorld, address: str) -> None:
    six = ":" in address
    at = f"[{address}]:80/TCP" if six else f"{address}:80/TCP"
    world.put(frontend(at, BACKENDS[six], FrontendType.LOAD_BALANCER))


@OWNERS
@ADDRESSES
async def test_no_wildcard_at_an_address_that_a_machine_has(own: Own, address: str) -> None:
    world = LBWorld(LoadBalancerOptions())
    own(world, IP.parse(address))
    load_balancer(world, address)
    async with running(world.reconciler):
        await world.settled()
    assert "LoadBalancer" in world.dump()
    assert ":0/ANY" not in world.dump()


@OWNERS
@ADDRESSES
async def test_wildcard_goes_and_comes_with_the_machine_s_address(own: Own, address: str) -> None:
    world = LBWorld(LoadBalancerOptions())
    load_balancer(world, address)
    follower = NodeAddressFollower(
        world.db, world.frontends, world.node_addresses, world.machines()
    )
    async with running(world.reconciler), anyio.create_task_group() as tasks:
        tasks.start_soon(follower.run)
        await world.settled()
        assert ":0/ANY" in world.dump()
        give_up = own(world, IP.parse(address))
        with anyio.fail_after(5):
            while ":0/ANY" in world.dump():
                await anyio.sleep(0.001)
            give_up()
            while ":0/ANY" not in world.dump():
                await anyio.sleep(0.001)
        tasks.cancel_scope.cancel()


def test_address_set_against_the_prefixes_one_by_one() -> None:
    rng = random.Random(7)
    for _ in range(300):
        prefixes = [some_prefix(rng) for _ in range(rng.randrange(6))]
        addresses = AddressSet(prefixes)
        near = [IP(prefix[:15] + bytes((rng.randrange(256),))) for prefix in prefixes]
        for ip in [*near, IP.parse("192.0.2.7"), IP.parse("2001:db8::7")]:
            assert addresses.has(ip) == any(prefix.contains(ip) for prefix in prefixes)


def some_prefix(rng: random.Random) -> Prefix:
    base, bits = rng.choice((("192.0.2.", 32), ("10.1.", 32), ("2001:db8::", 128)))
    host = {"192.0.2.": "7", "10.1.": "2.3", "2001:db8::": "7"}[base]
    return Prefix.parse(f"{base}{host}/{bits - rng.randrange(20)}")
