# SPDX-License-Identifier: Apache-2.0
"""Flows that translation breaks: of the node itself, and after closing.

Programs of both nodes, with the Services that a control plane writes.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack, suppress

import pytest

from bpf.maps import nat
from tests.bpf.datapath_world import Datapath
from tests.bpf.world import wait_until
from tests.e2e.nodeport import constants, node_datapath
from tests.e2e.nodes import (
    Connection,
    Nodes,
    Server,
    ask,
    client_address,
    nft,
    node_address,
    pod_address,
    two_nodes,
)
from tests.expected_failure import must_work
from tests.kernel import Kernel

pytestmark = [pytest.mark.root, pytest.mark.timeout(60)]

TCP, UDP = socket.IPPROTO_TCP, socket.IPPROTO_UDP
STREAM, DGRAM = socket.SOCK_STREAM, socket.SOCK_DGRAM
PROTO: dict[int, int] = {STREAM: TCP, DGRAM: UDP}
PORT, CLIENT_PORT = 30080, 44000
#: Of a fresh namespace, whose IPv6 addresses of links are checked for a second.
FIRST_ANSWER_S, ANSWER_S = 3.0, 0.5

FAMILIES = pytest.mark.parametrize("family", [4, 6], ids=["v4", "v6"])
KINDS = pytest.mark.parametrize("kind", [STREAM, DGRAM], ids=["tcp", "udp"])


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    with two_nodes() as made:
        yield made


@pytest.fixture(scope="module")
def bridged() -> Iterator[Nodes]:
    """Nodes whose pods are masqueraded by netfilter."""
    with two_nodes(bridged=True) as made:
        yield made


def narrow(first: int, count: int) -> dict[str, bytes]:
    """Translation has this many ports."""
    values = {"nat_min_port": first, "nat_max_port": first + count - 1}
    return constants() | {name: value.to_bytes(4, "little") for name, value in values.items()}


def serve(nodes: Nodes, stack: ExitStack, family: int, kind: int) -> str:
    """The pod of node2 answers; its address."""
    address = pod_address(2, family)
    stack.callback(Server(nodes.pod[2], "pod2", address, 8080, kind).close)
    return address


def bound(kernel: Kernel, stack: ExitStack, kind: int, port: int, address: str) -> socket.socket:
    """A socket of a namespace at a port of the test's choice."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    made = stack.enter_context(kernel.netns.socket(family, kind))
    made.settimeout(FIRST_ANSWER_S)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.bind((address, port))
    return made


# -- flows that netfilter translates


def connected(
    kernel: Kernel, stack: ExitStack, address: str, target: tuple[str, int]
) -> socket.socket:
    """A connection from a port of the kernel's choice; a second try has another port."""
    with suppress(TimeoutError):
        made = bound(kernel, stack, STREAM, 0, address)
        made.settimeout(ANSWER_S)
        made.connect(target)
        return made
    made = bound(kernel, stack, STREAM, 0, address)
    made.connect(target)
    return made


def own_connection(nodes: Nodes, stack: ExitStack, family: int, owner: str) -> socket.socket:
    """A connection to the pod of node2 that leaves node1 by rules of netfilter."""
    backend, node = pod_address(2, family), nodes.node[1]
    if owner == "pod":  # masqueraded
        return connected(nodes.pod[1], stack, pod_address(1, family), (backend, 8080))
    service = {4: "203.0.113.9", 6: "fd00:203::9"}[family]
    name, target = {4: ("ip", f"{backend}:8080"), 6: ("ip6", f"[{backend}]:8080")}[family]
    rules = (
        f"add table {name} proxy",
        f"add chain {name} proxy out {{ type nat hook output priority -100; }}",
        f"add rule {name} proxy out {name} daddr {service} meta l4proto tcp dnat to {target}",
    )
    nft(node, "; ".join(rules))
    stack.callback(nft, node, f"delete table {name} proxy")
    node.ip(f"-{family} route replace {service} via {node_address(2, family)}")
    return connected(node, stack, node_address(1, family), (service, 80))


@pytest.mark.parametrize("owner", ["pod", "node"])
@FAMILIES
def test_connection_by_netfilter_lives_when_a_client_comes(
    bridged: Nodes, family: int, owner: str
) -> None:
    """The connection is older than our programs, as where another proxy was before."""
    with ExitStack() as stack:
        backend = serve(bridged, stack, family, STREAM)
        with must_work():
            own = own_connection(bridged, stack, family, owner)
        port = own.getsockname()[1]
        datapath = stack.enter_context(node_datapath(bridged, 1, narrow(port, 1)))
        frontend = node_address(1, family)
        datapath.service(frontend, PORT, TCP, [(backend, 8080)], rev_nat=7)
        own.settimeout(ANSWER_S)
        with suppress(OSError):  # there is no port left for it
            client = Connection(bridged.client, frontend, PORT, STREAM, timeout_s=ANSWER_S)
            stack.enter_context(client).ask()
        own.sendall(b"\0\0\0\4mine")
        assert own.recv(100).endswith(b"mine")


@pytest.mark.parametrize("owner", ["pod", "node"])
@KINDS
@FAMILIES
def test_flow_of_the_node_is_answered_when_its_port_is_a_frontend(
    bridged: Nodes, family: int, kind: int, owner: str
) -> None:
    """The pod's flow is masqueraded and keeps its port; the node's is of a socket."""
    frontend, backend = node_address(1, family), pod_address(2, family)
    # A port each: netfilter would give the second flow of a tuple another source port.
    kernel, address, port = {
        "pod": (bridged.pod[1], pod_address(1, family), 9000),
        "node": (bridged.node[1], frontend, 9001),
    }[owner]
    with ExitStack() as stack:
        outside = client_address(family)
        stack.callback(Server(bridged.client, "outside", outside, port, kind).close)
        datapath = stack.enter_context(node_datapath(bridged, 1))
        datapath.service(frontend, PORT, PROTO[kind], [(backend, 8080)], rev_nat=7)
        own = bound(kernel, stack, kind, PORT, address)
        own.settimeout(ANSWER_S)
        own.connect((outside, port))
        own.send(b"\0\0\0\5hello" if kind == STREAM else b"hello")
        assert own.recv(100).endswith(f"outside|{frontend}|hello".encode())


@FAMILIES
def test_client_is_served_when_all_ports_are_of_closed_connections(
    nodes: Nodes, family: int
) -> None:
    with node_datapath(nodes, 1, narrow(50000, 2)) as datapath, ExitStack() as stack:
        backend = serve(nodes, stack, family, STREAM)
        frontend = node_address(1, family)
        datapath.service(frontend, PORT, TCP, [(backend, 8080)], rev_nat=7)
        with must_work():
            for _ in range(2):
                assert ask(nodes.client, frontend, PORT, STREAM)[0] == "pod2"
        wait_until(lambda: all_closing(datapath, family), "every translation is closing")
        client = Connection(nodes.client, frontend, PORT, STREAM, timeout_s=ANSWER_S)
        assert stack.enter_context(client).ask()[0] == "pod2"


def all_closing(datapath: Datapath, family: int) -> bool:
    entries = dict(nat.translations(datapath.maps[f"cilia_snat{family}"])).values()
    return all(entry.flags & nat.NatFlag.CLOSING for entry in entries)


# -- one port of a client, two frontends


@KINDS
@FAMILIES
def test_client_port_talks_with_two_frontends_of_a_local_backend(
    nodes: Nodes, family: int, kind: int
) -> None:
    with node_datapath(nodes, 1) as datapath, ExitStack() as stack:
        backend, address = pod_address(1, family), client_address(family)
        stack.callback(Server(nodes.pod[1], "pod1", backend, 8080, kind).close)
        clients = []
        for number, port in enumerate((PORT, PORT + 1)):
            frontend = node_address(1, family)
            datapath.service(frontend, port, PROTO[kind], [(backend, 8080)], rev_nat=7 + number)
            clients.append(bound(nodes.client, stack, kind, CLIENT_PORT, address))
            clients[-1].settimeout(ANSWER_S)
            clients[-1].connect((frontend, port))
        for client in clients * 2:
            client.sendall(b"\0\0\0\5hello" if kind == STREAM else b"hello")
            assert client.recv(100).endswith(f"pod1|{address}|hello".encode())


@FAMILIES
@pytest.mark.parametrize("first", ["direct", "frontend"])
def test_client_port_talks_with_a_frontend_and_its_backend(
    nodes: Nodes, family: int, first: str
) -> None:
    backend, address = pod_address(1, family), client_address(family)
    frontend = node_address(1, family)
    with node_datapath(nodes, 1) as datapath, ExitStack() as stack:
        stack.callback(Server(nodes.pod[1], "pod1", backend, 8080, STREAM).close)
        datapath.service(frontend, PORT, TCP, [(backend, 8080)], rev_nat=7)
        route = f"{backend} via {frontend}"
        nodes.client.ip(f"-{family} route add {route}")
        stack.callback(nodes.client.ip, f"-{family} route del {route}")
        places = [(backend, 8080), (frontend, PORT)]
        clients = []
        for place in places if first == "direct" else places[::-1]:
            clients.append(bound(nodes.client, stack, STREAM, CLIENT_PORT, address))
            clients[-1].settimeout(FIRST_ANSWER_S)
            clients[-1].connect(place)
        for client in clients * 2:
            client.sendall(b"\0\0\0\5hello")
            assert client.recv(100).endswith(f"pod1|{address}|hello".encode())
