# SPDX-License-Identifier: Apache-2.0
"""Clients from outside reach a Service: each kind of frontend, family and protocol, with a backend
on the node that was asked and on another, in each forwarding mode, by tc and by XDP.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from typing import NamedTuple

import pytest

from bpf.maps.lb_numbers import FrontendType, ServiceFlag
from tests.bpf.datapath_world import Datapath, drops
from tests.e2e.nodeport import IPIP, OPT, constants, node_datapath, pass_programs
from tests.e2e.nodes import (
    Nodes,
    Server,
    ask,
    client_address,
    node_address,
    pod_address,
    two_nodes,
)

#: Worlds of several namespaces and freshly verified programs take their time on a busy machine.
pytestmark = [pytest.mark.root, pytest.mark.timeout(60)]

TCP, UDP = socket.IPPROTO_TCP, socket.IPPROTO_UDP
KINDS = {TCP: socket.SOCK_STREAM, UDP: socket.SOCK_DGRAM}


class Mode(NamedTuple):
    """A forwarding mode: which protocols go without source translation, and how."""

    name: str
    direct: frozenset[int]
    dispatch: int = OPT


MODES = [
    Mode("snat", frozenset()),
    Mode("dsr-opt", frozenset({TCP, UDP})),
    Mode("dsr-ipip", frozenset({TCP, UDP}), IPIP),
    Mode("hybrid", frozenset({TCP})),
]


class Frontend(NamedTuple):
    """Where clients ask; ``{}`` is the node's address."""

    kind: FrontendType
    address: dict[int, str]
    port: int

    def of(self, family: int) -> str:
        return self.address[family] or node_address(1, family)


NODE_ITSELF = {4: "", 6: ""}
FRONTENDS = [
    Frontend(FrontendType.NODE_PORT, NODE_ITSELF, 30080),
    Frontend(FrontendType.LOAD_BALANCER, {4: "203.0.113.10", 6: "fd00:203::10"}, 80),
    Frontend(FrontendType.EXTERNAL_IPS, {4: "203.0.113.20", 6: "fd00:203::20"}, 8000),
    Frontend(FrontendType.HOST_PORT, NODE_ITSELF, 8088),
]


class World(NamedTuple):
    """Two nodes with their programs in one mode."""

    nodes: Nodes
    datapath: Mapping[int, Datapath]
    mode: Mode

    def serve(self, frontend: Frontend, family: int, proto: int, backend: tuple[str, int]) -> None:
        """The service on both nodes, as the control plane writes it."""
        flags = ServiceFlag.DSR if proto in self.mode.direct else ServiceFlag.NONE
        for datapath in self.datapath.values():
            datapath.clear()
            datapath.service(
                frontend.of(family),
                frontend.port,
                proto,
                [backend],
                rev_nat=7,
                flags=flags,
                kind=frontend.kind.number,
            )

    def seen_source(self, family: int, proto: int, backend_node: int) -> str:
        """The address that a backend sees."""
        if backend_node == 1 or proto in self.mode.direct:
            return client_address(family)
        return node_address(1, family)


@pytest.fixture(scope="module", params=MODES, ids=lambda mode: mode.name)
def mode(request: pytest.FixtureRequest) -> Mode:
    found: Mode = request.param
    return found


@pytest.fixture(scope="module", params=["tc", "xdp"])
def world(request: pytest.FixtureRequest, mode: Mode) -> Iterator[World]:
    xdp = request.param == "xdp"
    values = constants(dispatch=mode.dispatch, dsr=bool(mode.direct))
    with ExitStack() as stack:
        nodes = stack.enter_context(two_nodes())
        if xdp:
            stack.enter_context(pass_programs(nodes))
        datapath = {
            number: stack.enter_context(node_datapath(nodes, number, values, xdp=xdp))
            for number in nodes.node
        }
        yield World(nodes, datapath, mode)


@pytest.mark.parametrize("backend_node", [1, 2], ids=["local", "remote"])
@pytest.mark.parametrize("proto", [TCP, UDP], ids=["tcp", "udp"])
@pytest.mark.parametrize("family", [4, 6], ids=["v4", "v6"])
@pytest.mark.parametrize("frontend", FRONTENDS, ids=lambda frontend: frontend.kind.name.lower())
def test_client_is_served(
    world: World, frontend: Frontend, family: int, proto: int, backend_node: int
) -> None:
    backend = pod_address(backend_node, family)
    server = Server(world.nodes.pod[backend_node], "pod", backend, 8080, KINDS[proto])
    world.serve(frontend, family, proto, (backend, 8080))
    seen = world.seen_source(family, proto, backend_node)
    for content in (b"x", b"y" * 1200):
        answer = ask(world.nodes.client, frontend.of(family), frontend.port, KINDS[proto], content)
        assert answer == ["pod", seen, content.decode()]
    server.close()
    assert not any(drops(datapath) for datapath in world.datapath.values())


@pytest.mark.parametrize("family", [4, 6], ids=["v4", "v6"])
@pytest.mark.parametrize("backend_node", [1, 2], ids=["local", "remote"])
def test_megabyte_comes_whole(world: World, family: int, backend_node: int) -> None:
    backend = pod_address(backend_node, family)
    server = Server(world.nodes.pod[backend_node], "pod", backend, 8080, socket.SOCK_STREAM)
    world.serve(FRONTENDS[0], family, TCP, (backend, 8080))
    content = bytes(range(65, 91)) * 40000
    answer = ask(world.nodes.client, node_address(1, family), 30080, socket.SOCK_STREAM, content)
    assert answer[2] == content.decode()
    server.close()
