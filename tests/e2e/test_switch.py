# SPDX-License-Identifier: Apache-2.0
"""Ports that come again after a hand-back: nothing of ours is left that would take them."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from bpf.maps.switch import NAME, Switch, SwitchState
from tests.bpf.datapath_world import drops
from tests.e2e.nodeport import node_datapath
from tests.e2e.nodes import (
    POD_GATEWAY,
    Nodes,
    Server,
    exactly,
    nft,
    node_address,
    pod_address,
    two_nodes,
)
from tests.kernel import Kernel

pytestmark = [pytest.mark.root, pytest.mark.timeout(60)]

PORT = 30080
# Above the ports that are not ours to give: source translation keeps it, and so does netfilter.
CLIENT_PORT = 40000
FAMILIES = pytest.mark.parametrize("family", [4, 6], ids=["v4", "v6"])
RESET = struct.pack("ii", 1, 0)  # of SO_LINGER: no TIME_WAIT that would keep the port


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    with two_nodes() as made:
        yield made


def other_proxy(nodes: Nodes, family: int, pod: str) -> None:
    """The same node port by nftables, in the manner of kube-proxy."""
    ip, backend = ("ip", "{}") if family == 4 else ("ip6", "[{}]")
    nft(
        nodes.node[1],
        f"add table {ip} other; delete table {ip} other; add table {ip} other; "
        f"add chain {ip} other pre {{ type nat hook prerouting priority -100; }}; "
        f"add chain {ip} other post {{ type nat hook postrouting priority 100; }}; "
        f"add rule {ip} other pre tcp dport {PORT} dnat to {backend.format(pod)}:8080; "
        f"add rule {ip} other post {ip} daddr {pod} tcp dport 8080 masquerade",
    )


def talk(kernel: Kernel, family: int) -> list[str]:
    """Server and whom it saw, of each of some messages on one connection from a client's port."""
    client = kernel.netns.socket(
        socket.AF_INET6 if family == 6 else socket.AF_INET, socket.SOCK_STREAM
    )
    with client:
        client.settimeout(5)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        client.bind(("::" if family == 6 else "0.0.0.0", CLIENT_PORT))
        client.connect((node_address(1, family), PORT))
        return [ask(client) for _ in range(3)]


def ask(client: socket.socket) -> str:
    client.sendall(b"\0\0\0\2hi")
    (size,) = struct.unpack("!I", exactly(client, 4))
    return exactly(client, size).decode().rpartition("|")[0]


@pytest.mark.parametrize("backend", [1, 2], ids=["of-the-client", "of-the-node"])
@FAMILIES
def test_ports_of_an_ended_connection_are_the_other_proxys(
    nodes: Nodes, family: int, backend: int
) -> None:
    """The client's port at the Service comes again; the node's at a backend, for another client."""
    ours, theirs = pod_address(2, family), pod_address(backend, family)
    node = node_address(1, family)
    client = nodes.second_client if backend == 2 else nodes.client
    seen = node if backend == 2 else POD_GATEWAY[family].format(1)
    with node_datapath(nodes, 1) as datapath, ExitStack() as stack:
        datapath.service(node, PORT, socket.IPPROTO_TCP, [(ours, 8080)], rev_nat=7)
        for number in (1, 2):
            address = pod_address(number, family)
            server = Server(nodes.pod[number], f"pod{number}", address, 8080, socket.SOCK_STREAM)
            stack.callback(server.close)
        assert talk(nodes.client, family) == [f"pod2|{node}"] * 3
        Switch(datapath.maps[NAME]).state = SwitchState.HAND_BACK
        other_proxy(nodes, family, theirs)
        assert talk(client, family) == [f"pod{backend}|{seen}"] * 3
        assert not drops(datapath)
