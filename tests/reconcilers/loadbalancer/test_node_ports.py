# SPDX-License-Identifier: Apache-2.0
"""A node port stands for every address of the node that answers for node ports."""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import ip_network

import anyio
import pytest

from bpf.maps import lb
from bpf.maps.lb_numbers import FrontendType, ServiceFlag
from cilia.loadbalancer.node_address_follower import NodeAddressFollower, refresh_frontends
from cilia.loadbalancer.options import LoadBalancerOptions
from reconcilers.loadbalancer.machine_addresses import AddressSet
from tables.addressing import IP, Prefix
from tables.node.node_addresses import NodeAddress
from tests.reconcilers.loadbalancer.lb_world import LBWorld, frontend, service
from tests.reconcilers.targets import running

NODE_PORT, HOST_PORT = FrontendType.NODE_PORT, FrontendType.HOST_PORT
SURROGATE = "0.0.0.0:30080/TCP"
BACKENDS = ["10.244.1.1:80/TCP"]


def addresses(world: LBWorld) -> list[str]:
    """Id and address of each master entry, by id."""
    found = []
    for line in world.dump().splitlines():
        if line.startswith("SVC") and "SLOT=0" in line:
            _, number, address, *_ = line.split()
            found.append((int(number[3:]), address[5:]))
    return [f"{number} {address}" for number, address in sorted(found)]


def follower(world: LBWorld) -> NodeAddressFollower:
    return NodeAddressFollower(world.db, world.frontends, world.node_addresses)


async def test_surrogate_takes_its_id_first_then_addresses_in_order() -> None:
    world = LBWorld()
    world.set_nodes("192.0.2.2", "192.0.2.1", "2001:db8::1")
    world.put(
        frontend("[::]:30080/TCP", ["[2001::1]:80/TCP"], NODE_PORT),
        frontend(SURROGATE, BACKENDS, NODE_PORT),
    )
    async with running(world.reconciler):
        await world.settled()
    assert addresses(world) == [
        "1 [::]:30080/TCP",
        "2 [2001:db8::1]:30080/TCP",
        "3 0.0.0.0:30080/TCP",
        "4 192.0.2.1:30080/TCP",
        "5 192.0.2.2:30080/TCP",
    ]
    dump = world.dump().splitlines()
    assert "REV: ID=3 ADDR=0.0.0.0:30080" in dump
    assert "REV: ID=4 ADDR=192.0.2.1:30080" in dump
    assert sum(line.startswith("BE:") for line in dump) == 2
    flags = {line.split("ADDR=")[1].split(":")[0]: line.split("FLAGS=")[1] for line in dump[9:]}
    assert flags["0.0.0.0"] == "NodePort+non-routable"
    assert flags["192.0.2.1"] == "NodePort"


async def test_only_addresses_for_node_ports_count() -> None:
    world = LBWorld()
    with world.db.write_txn(world.node_addresses) as wtxn:
        world.node_addresses.insert(wtxn, NodeAddress(IP.parse("192.0.2.1"), False, True, "eth0"))
        world.node_addresses.insert(wtxn, NodeAddress(IP.parse("192.0.2.2"), True, True, "eth1"))
        world.node_addresses.insert(wtxn, NodeAddress(IP.parse("192.0.2.2"), True, False, "eth2"))
    world.put(frontend(SURROGATE, BACKENDS, NODE_PORT))
    async with running(world.reconciler):
        await world.settled()
    assert addresses(world) == ["1 0.0.0.0:30080/TCP", "2 192.0.2.2:30080/TCP"]


async def test_host_port_is_expanded_too_and_a_cluster_address_is_not() -> None:
    world = LBWorld()
    world.set_nodes("192.0.2.1")
    world.put(
        frontend("0.0.0.0:8080/TCP", BACKENDS, HOST_PORT, service(loopback_host_port=True)),
        frontend("10.96.0.1:80/TCP", BACKENDS),
    )
    async with running(world.reconciler):
        await world.settled()
    assert addresses(world) == [
        "1 0.0.0.0:8080/TCP",
        "2 192.0.2.1:8080/TCP",
        "3 10.96.0.1:80/TCP",
    ]
    assert world.dump().count("HostPort+loopback") == 2
    assert world.dump().count("HostPort+non-routable+loopback") == 2


async def test_entries_follow_the_node_addresses() -> None:
    world = LBWorld(LoadBalancerOptions())
    world.set_nodes("192.0.2.1")
    world.put(frontend(SURROGATE, BACKENDS, NODE_PORT), frontend("192.0.2.3:80/TCP", BACKENDS))
    async with running(world.reconciler), anyio.create_task_group() as tasks:
        tasks.start_soon(follower(world).run)
        await world.settled()
        assert "192.0.2.3:0/ANY" in world.dump()
        world.set_nodes("192.0.2.1", "192.0.2.3")
        await until(lambda: "192.0.2.3:30080/TCP" in world.dump())
        await until(lambda: "192.0.2.3:0/ANY" not in world.dump())
        world.set_nodes("192.0.2.3")
        await until(lambda: "192.0.2.1" not in world.dump())
        tasks.cancel_scope.cancel()
    assert addresses(world) == [
        "1 0.0.0.0:30080/TCP",
        "3 192.0.2.3:80/TCP",
        "4 192.0.2.3:30080/TCP",
    ]


async def test_source_ranges_follow_the_node_addresses() -> None:
    world = LBWorld()
    world.set_nodes("192.0.2.1")
    svc = service(source_ranges=(ip_network("192.0.2.0/24"),))
    world.put(frontend("172.16.0.1:80/TCP", BACKENDS, FrontendType.LOAD_BALANCER, svc))

    def keeps_node_out() -> bool:
        key = lb.encode_service_key(bytes([172, 16, 0, 1]), 80, 0, 6)
        value = world.kernel.maps.v4.service.lookup(key)
        assert value is not None
        return bool(lb.decode_service(value).flags & ServiceFlag.SOURCE_NOT_NODE)

    async with running(world.reconciler), anyio.create_task_group() as tasks:
        tasks.start_soon(follower(world).run)
        await world.settled()
        assert not keeps_node_out()
        world.set_nodes("198.51.100.1")
        await until(keeps_node_out)
        tasks.cancel_scope.cancel()


async def test_node_addresses_wake_nothing_when_only_other_columns_changed() -> None:
    world = LBWorld()
    world.set_nodes("192.0.2.1")
    world.put(frontend(SURROGATE, BACKENDS, NODE_PORT))
    async with running(world.reconciler), anyio.create_task_group() as tasks:
        tasks.start_soon(follower(world).run)
        await world.settled()
        row = world.frontend(SURROGATE)
        world.set_nodes("192.0.2.1")
        await anyio.sleep(0.02)
        tasks.cancel_scope.cancel()
    assert world.frontend(SURROGATE) == row


async def test_address_of_its_own_is_left_to_it_outside_the_range_of_node_ports() -> None:
    world = LBWorld()
    world.set_nodes("192.0.2.1")
    owner = frontend("192.0.2.1:8080/TCP", ["10.244.1.2:80/TCP"], FrontendType.EXTERNAL_IPS)
    world.put(owner, frontend("0.0.0.0:8080/TCP", BACKENDS, NODE_PORT))
    async with running(world.reconciler):
        await world.settled()
        assert addresses(world) == ["1 192.0.2.1:8080/TCP", "2 0.0.0.0:8080/TCP"]
        assert "ExternalIPs" in world.dump()
        world.remove("192.0.2.1:8080/TCP")
        await world.settled()
        assert addresses(world) == ["2 0.0.0.0:8080/TCP", "3 192.0.2.1:8080/TCP"]
        assert "ExternalIPs" not in world.dump()
        world.put(owner)
        await world.settled()
        assert "ExternalIPs" in world.dump()
        world.remove("0.0.0.0:8080/TCP")
        await world.settled()
    assert addresses(world) == ["3 192.0.2.1:8080/TCP"]


async def test_node_port_wins_within_the_range_of_node_ports() -> None:
    world = LBWorld(
        LoadBalancerOptions(bpf_lb_enable_wildcard_entries=False, node_port_range="8080,8080")
    )
    world.set_nodes("192.0.2.1")
    world.put(
        frontend("192.0.2.1:8080/TCP", BACKENDS, FrontendType.LOAD_BALANCER),
        frontend("0.0.0.0:8080/TCP", BACKENDS, NODE_PORT),
    )
    async with running(world.reconciler):
        await world.settled()
        assert "LoadBalancer" not in world.dump()
        world.remove("0.0.0.0:8080/TCP")
        await world.settled()
    assert addresses(world) == ["3 192.0.2.1:8080/TCP"]
    assert "LoadBalancer" in world.dump()


@pytest.mark.parametrize("kind", [FrontendType.LOAD_BALANCER, FrontendType.EXTERNAL_IPS])
@pytest.mark.parametrize(
    ("surrogate", "node", "own", "backends"),
    [
        (SURROGATE, "192.0.2.1", "192.0.2.1:30080/TCP", BACKENDS),
        ("[::]:30080/TCP", "2001:db8::1", "[2001:db8::1]:30080/TCP", ["[2001::1]:80/TCP"]),
    ],
)
async def test_node_port_stays_when_its_address_is_asked_for_later(
    kind: FrontendType, surrogate: str, node: str, own: str, backends: list[str]
) -> None:
    world = LBWorld()
    world.set_nodes(node)
    world.put(frontend(surrogate, backends, NODE_PORT))
    async with running(world.reconciler):
        await world.settled()
        before = world.dump()
        for rows in (backends, [], backends):
            world.put(frontend(own, rows, kind))
            await world.settled()
            assert world.dump() == before
        assert world.frontend(own).id == 0
        world.remove(surrogate)
        await world.settled()
        assert f"{own} SLOT=0" in world.dump()
        assert kind.value in world.dump()


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await anyio.sleep(0.001)


def test_row_that_is_pending_anyway_stays_pending_when_addresses_change() -> None:
    world = LBWorld()
    world.put(frontend(SURROGATE, BACKENDS, NODE_PORT))
    before = world.frontend(SURROGATE)
    refresh_frontends(
        world.db, world.frontends, AddressSet([Prefix.parse("192.0.2.1")]), node_ports=True
    )
    assert world.frontend(SURROGATE) is before


async def test_what_changes_before_it_runs_is_followed_too() -> None:
    world = LBWorld()
    world.set_nodes("192.0.2.1")
    follows = follower(world)
    world.put(frontend(SURROGATE, BACKENDS, NODE_PORT))
    async with running(world.reconciler), anyio.create_task_group() as tasks:
        await world.settled()
        world.set_nodes("192.0.2.3")
        tasks.start_soon(follows.run)
        await until(lambda: "192.0.2.3:30080/TCP" in world.dump())
        tasks.cancel_scope.cancel()
