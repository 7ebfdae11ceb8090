# SPDX-License-Identifier: Apache-2.0
"""A Service that cannot have an address, being another's node port here, is told while it is so."""

from __future__ import annotations

import pytest

from bpf.maps.lb_numbers import FrontendType
from cilia.loadbalancer.node_port_conflicts import NodePortConflicts
from cilia.loadbalancer.options import LoadBalancerOptions
from cilia.loadbalancer.services.writer import ServiceChange
from tables.addressing import IP
from tables.node.node_addresses import NodeAddress, new_node_addresses_table
from tests.cilia.loadbalancer.world import World, name_of, params, service

EXTERNAL = pytest.mark.parametrize("kind", [FrontendType.LOAD_BALANCER, FrontendType.EXTERNAL_IPS])
FAMILIES = pytest.mark.parametrize(
    ("surrogate", "address", "at"),
    [
        ("0.0.0.0:30080/TCP", "192.0.2.1", "192.0.2.1:30080/TCP"),
        ("[::]:30080/TCP", "2001:db8::1", "[2001:db8::1]:30080/TCP"),
    ],
)


class Conflicts:
    def __init__(self) -> None:
        self.world = World()
        self.addresses = new_node_addresses_table(self.world.db)
        self.controller = NodePortConflicts(
            self.world.db,
            self.world.tables.frontends,
            self.addresses,
            self.world.tables.problems,
            LoadBalancerOptions(),
            now=lambda: 7.0,
        )
        with self.world.db.write_txn(self.world.tables.frontends) as wtxn:
            self.changes = self.world.tables.frontends.changes(wtxn)

    def put(self, name: str, address: str, kind: FrontendType) -> None:
        self.world.apply(ServiceChange(name_of(name), service(name), [params(address, kind)]))

    def node(self, address: str, *, node_port: bool = True) -> None:
        with self.world.db.write_txn(self.addresses) as wtxn:
            self.addresses.delete_all(wtxn)
            self.addresses.insert(wtxn, NodeAddress(IP.parse(address), node_port, True, "eth0"))

    def told(self) -> list[str]:
        self.controller.step(self.changes)
        return self.world.problems


@EXTERNAL
@FAMILIES
def test_told_for_as_long_as_the_node_port_is_there(
    kind: FrontendType, surrogate: str, address: str, at: str
) -> None:
    it = Conflicts()
    it.node(address)
    it.put("lb", at, kind)
    assert it.told() == []
    it.put("np", surrogate, FrontendType.NODE_PORT)
    [problem] = it.told()
    assert f"{at} is an address of this node and node port 30080 of Service test/np" in problem
    assert problem.startswith("Service test/lb: ")
    it.world.delete("np")
    assert it.told() == []


@FAMILIES
def test_told_for_as_long_as_the_address_is_the_node_s(
    surrogate: str, address: str, at: str
) -> None:
    it = Conflicts()
    it.put("np", surrogate, FrontendType.NODE_PORT)
    it.put("lb", at, FrontendType.LOAD_BALANCER)
    assert it.told() == []
    it.node(address)
    assert len(it.told()) == 1
    it.node(address, node_port=False)
    assert it.told() == []


def test_gone_with_the_service_that_was_told() -> None:
    it = Conflicts()
    it.node("192.0.2.1")
    it.put("np", "0.0.0.0:30080/TCP", FrontendType.NODE_PORT)
    it.put("lb", "192.0.2.1:30080/TCP", FrontendType.LOAD_BALANCER)
    assert len(it.told()) == 1
    it.world.delete("lb")
    assert it.told() == []


@pytest.mark.parametrize(
    ("name", "surrogate", "address"),
    [
        ("np", "0.0.0.0:30080/TCP", "192.0.2.1:30080/TCP"),  # its own
        ("lb", "0.0.0.0:30080/UDP", "192.0.2.1:30080/TCP"),
        ("lb", "0.0.0.0:30081/TCP", "192.0.2.1:30080/TCP"),
        ("lb", "0.0.0.0:8080/TCP", "192.0.2.1:8080/TCP"),  # the node port leaves it out
    ],
)
def test_nothing_is_told_where_nothing_is_in_the_way(
    name: str, surrogate: str, address: str
) -> None:
    it = Conflicts()
    it.node("192.0.2.1")
    both = [params(surrogate, FrontendType.NODE_PORT)]
    if name == "np":
        both.append(params(address, FrontendType.LOAD_BALANCER))
    else:
        it.put(name, address, FrontendType.LOAD_BALANCER)
    it.world.apply(ServiceChange(name_of("np"), service("np"), both))
    assert it.told() == []
