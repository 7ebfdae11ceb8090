# SPDX-License-Identifier: Apache-2.0
"""Flows from outside beyond the first answer: ports, collisions, errors, swaps of programs, other
ways to pods and clients. With source translation, by tc and where it matters by XDP.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from bpf.link import AttachType
from bpf.maps import ct, nat
from bpf.maps.nat import NatDirection
from tests.bpf.datapath_world import Datapath, drops, loaded, packed
from tests.bpf.device_hooks import HeldFilter
from tests.bpf.world import wait_until
from tests.e2e.nodeport import (
    attach,
    constants,
    hook_device,
    node_datapath,
    pass_programs,
)
from tests.e2e.nodes import (
    SECOND_NET,
    Connection,
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
STREAM, DGRAM = socket.SOCK_STREAM, socket.SOCK_DGRAM
PORT = 30080

NAT_NO_MAPPING = -5
NO_ROUTE = -6
FRAG_NEEDED = -7
NO_BACKEND = -2

FAMILIES = pytest.mark.parametrize("family", [4, 6], ids=["v4", "v6"])


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    with two_nodes() as made:
        yield made


def remote(nodes: Nodes, datapath: Datapath, family: int, kind: int, flags: int = 0) -> Server:
    """A NodePort of node1 with its only backend on node2."""
    backend = pod_address(2, family)
    proto = TCP if kind == STREAM else UDP
    datapath.clear()
    datapath.service(
        node_address(1, family), PORT, proto, [(backend, 8080)], rev_nat=7, flags=flags
    )
    return Server(nodes.pod[2], "pod2", backend, 8080, kind)


def narrow(first: int, count: int) -> dict[str, bytes]:
    values = {"nat_min_port": first, "nat_max_port": first + count - 1}
    return constants() | {name: value.to_bytes(4, "little") for name, value in values.items()}


def ways_there(datapath: Datapath, family: int) -> set[tuple[nat.NatKey, bytes, int]]:
    """For each client's flow to pod2 the key of its way back, and whom that must name."""
    found = set()
    for key, entry in ct.connections(datapath.maps[f"cilia_ct{family}_tcp"]):
        source = entry.translated_source(key)
        assert source is not None
        backend = packed(pod_address(2, family))
        back = nat.NatKey(source[0], backend, source[1], 8080, key.proto, NatDirection.IN)
        found.add((back, key.source, key.source_port))
    return found


def translations(datapath: Datapath, family: int) -> dict[nat.NatKey, nat.NatValue]:
    return dict(nat.translations(datapath.maps[f"cilia_snat{family}"]))


@FAMILIES
def test_client_is_refused_only_when_every_port_is_taken(nodes: Nodes, family: int) -> None:
    with node_datapath(nodes, 1, narrow(50000, 4)) as datapath, ExitStack() as stack:
        server = remote(nodes, datapath, family, DGRAM)
        stack.callback(server.close)
        for _ in range(4):
            connection = Connection(nodes.client, node_address(1, family), PORT, DGRAM)
            assert stack.enter_context(connection).ask()[0] == "pod2"
        refused = Connection(nodes.client, node_address(1, family), PORT, DGRAM, timeout_s=0.3)
        with refused, pytest.raises(TimeoutError):
            refused.ask()
        assert drops(datapath) == {NAT_NO_MAPPING: 1}
        assert len(translations(datapath, family)) == 4


@pytest.mark.parametrize("kind", [STREAM, DGRAM], ids=["tcp", "udp"])
@FAMILIES
def test_own_connection_from_a_taken_port_works(nodes: Nodes, family: int, kind: int) -> None:
    """A client has the only port to the backend; then the node connects to it from that port."""
    with node_datapath(nodes, 1, narrow(50000, 1)) as first, ExitStack() as stack:
        server = remote(nodes, first, family, kind)
        stack.callback(server.close)
        client = stack.enter_context(Connection(nodes.client, node_address(1, family), PORT, kind))
        assert client.ask()[1] == node_address(1, family)
        wider = stack.enter_context(loaded(["host"], narrow(50000, 2), shared=first))
        hook_device(stack, nodes.node[1], "eth0", wider, xdp=False)
        for link in first.links:
            link.detach()
        own = nodes.node[1].netns.socket(socket.AF_INET6 if family == 6 else socket.AF_INET, kind)
        stack.callback(own.close)
        own.settimeout(3)
        own.bind((node_address(1, family), 50000))
        own.connect((pod_address(2, family), 8080))
        if kind == DGRAM:
            own.send(b"mine")
            assert own.recv(100).endswith(b"mine")
        else:
            own.sendall(b"\0\0\0\4mine")
            assert own.recv(100).endswith(b"mine")
        for text in (b"again", b"and again"):
            assert client.ask(text)[2] == text.decode()


@FAMILIES
def test_socket_of_the_node_keeps_its_port(nodes: Nodes, family: int) -> None:
    """The node has a connection to the backend from one of two ports: clients get the other."""
    with node_datapath(nodes, 1, narrow(51000, 2)) as datapath, ExitStack() as stack:
        server = remote(nodes, datapath, family, STREAM)
        stack.callback(server.close)
        own = nodes.node[1].netns.socket(socket.AF_INET6 if family == 6 else socket.AF_INET, STREAM)
        stack.callback(own.close)
        own.settimeout(3)
        own.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        own.bind((node_address(1, family), 51000))
        own.connect((pod_address(2, family), 8080))
        answer = ask(nodes.client, node_address(1, family), PORT, STREAM)
        assert answer[:2] == ["pod2", node_address(1, family)]
        own.sendall(b"\0\0\0\4mine")
        assert own.recv(100).endswith(b"mine")
        assert {key.destination_port for key in translations(datapath, family)} == {51001}


@FAMILIES
def test_closed_port_of_a_backend_is_refused_at_once(nodes: Nodes, family: int) -> None:
    """The backend's ICMP error comes back as one about what the client sent."""
    with node_datapath(nodes, 1) as datapath:
        for node in (1, 2):
            datapath.clear()
            datapath.service(
                node_address(1, family), PORT, UDP, [(pod_address(node, family), 9)], rev_nat=7
            )
            with pytest.raises(ConnectionRefusedError):
                ask(nodes.client, node_address(1, family), PORT, DGRAM)
        assert not drops(datapath)


@FAMILIES
def test_service_without_backends_is_refused(nodes: Nodes, family: int) -> None:
    with node_datapath(nodes, 1) as datapath:
        for kind, proto in ((STREAM, TCP), (DGRAM, UDP)):
            datapath.clear()
            datapath.service(node_address(1, family), PORT, proto, [], rev_nat=7)
            with pytest.raises(ConnectionRefusedError):
                ask(nodes.client, node_address(1, family), PORT, kind)
        assert drops(datapath)[NO_BACKEND] >= 2


@FAMILIES
def test_datagram_in_fragments_arrives(nodes: Nodes, family: int) -> None:
    content = os.urandom(2000).hex().encode()
    with node_datapath(nodes, 1) as datapath:
        for node in (1, 2):
            datapath.clear()
            backend = pod_address(node, family)
            datapath.service(node_address(1, family), PORT, UDP, [(backend, 8080)], rev_nat=7)
            server = Server(nodes.pod[node], f"pod{node}", backend, 8080, DGRAM)
            answer = ask(nodes.client, node_address(1, family), PORT, DGRAM, content)
            assert answer[::2] == [f"pod{node}", content.decode()]
            server.close()
        assert not drops(datapath)


@pytest.mark.parametrize("xdp", [False, True], ids=["tc", "xdp"])
@FAMILIES
def test_client_learns_the_mtu_behind_the_node(family: int, xdp: bool) -> None:
    """A route of node1 to the backend has a small MTU: a large segment is answered, then fits."""
    with ExitStack() as stack:
        nodes = stack.enter_context(two_nodes())
        if xdp:
            stack.enter_context(pass_programs(nodes))
        datapath = stack.enter_context(node_datapath(nodes, 1, xdp=xdp))
        way = f"{pod_address(2, family)} via {node_address(2, family)} mtu lock 1300"
        nodes.node[1].ip(f"-{family} route add {way}")
        server = remote(nodes, datapath, family, STREAM)
        stack.callback(server.close)
        content = b"x" * 100000
        answer = ask(nodes.client, node_address(1, family), PORT, STREAM, content)
        assert answer[2] == content.decode()
        assert set(drops(datapath)) == {FRAG_NEEDED}


@FAMILIES
def test_no_way_to_the_backend_is_a_counted_drop(nodes: Nodes, family: int) -> None:
    with node_datapath(nodes, 1) as datapath:
        lost = {4: "203.0.113.77", 6: "fd00:203::77"}[family]
        datapath.service(node_address(1, family), PORT, UDP, [(lost, 8080)], rev_nat=7)
        connection = Connection(nodes.client, node_address(1, family), PORT, DGRAM, timeout_s=0.2)
        with connection, pytest.raises(TimeoutError):
            connection.ask()
        assert drops(datapath) == {NO_ROUTE: 1}


@FAMILIES
def test_connection_outlives_its_programs(nodes: Nodes, family: int) -> None:
    """Other programs on the same maps take over in the middle of a connection."""
    with node_datapath(nodes, 1) as datapath, ExitStack() as stack:
        server = remote(nodes, datapath, family, STREAM)
        stack.callback(server.close)
        connection = stack.enter_context(
            Connection(nodes.client, node_address(1, family), PORT, STREAM)
        )
        assert connection.ask()[0] == "pod2"
        successor = stack.enter_context(loaded(["host"], constants(), shared=datapath))
        for name, hook in (
            ("from_netdev", AttachType.TCX_INGRESS),
            ("to_netdev", AttachType.TCX_EGRESS),
        ):
            program = successor.program(name)
            stack.enter_context(attach(nodes.node[1], "eth0", program, hook))
        for link in datapath.links:
            link.detach()
        assert connection.ask(b"after")[2] == "after"
        assert ask(nodes.client, node_address(1, family), PORT, STREAM)[0] == "pod2"


@FAMILIES
def test_established_connection_stays_with_its_backend(nodes: Nodes, family: int) -> None:
    with node_datapath(nodes, 1) as datapath, ExitStack() as stack:
        stack.callback(remote(nodes, datapath, family, STREAM).close)
        old = stack.enter_context(Connection(nodes.client, node_address(1, family), PORT, STREAM))
        assert old.ask()[0] == "pod2"
        local = pod_address(1, family)
        stack.callback(Server(nodes.pod[1], "pod1", local, 8080, STREAM).close)
        # The new backend has another id; the old one keeps its row and has no slot.
        datapath.service(
            node_address(1, family), PORT, TCP, [(local, 8080)], rev_nat=7, first_id=900
        )
        assert ask(nodes.client, node_address(1, family), PORT, STREAM)[0] == "pod1"
        assert old.ask()[0] == "pod2"


@FAMILIES
def test_closed_connections_leave_nothing_after_their_time(nodes: Nodes, family: int) -> None:
    with node_datapath(nodes, 1) as datapath:
        server = remote(nodes, datapath, family, STREAM)
        for _ in range(200):
            ask(nodes.client, node_address(1, family), PORT, STREAM)
        server.close()
        entries = translations(datapath, family)
        assert len(entries) == 200
        found = {(key, value.address, value.port) for key, value in entries.items()}
        assert found == ways_there(datapath, family)
        wait_until(
            lambda: all(
                value.flags & nat.NatFlag.CLOSING
                for value in translations(datapath, family).values()
            ),
            "every translation is closing",
        )
        latest = max(value.expires_s - value.created_s for value in entries.values())
        assert latest <= 15


@FAMILIES
def test_second_device_of_the_node_leads_to_clients_too(family: int) -> None:
    """A client behind another device: its request leaves by eth0, the reply by eth1."""
    with ExitStack() as stack:
        nodes = stack.enter_context(two_nodes())
        datapath = stack.enter_context(node_datapath(nodes, 1, devices=("eth0", "eth1")))
        backend = pod_address(2, family)
        frontend = SECOND_NET[family].format(1)
        for proto, kind in ((TCP, STREAM), (UDP, DGRAM)):
            datapath.clear()
            datapath.service(frontend, PORT, proto, [(backend, 8080)], rev_nat=7)
            server = Server(nodes.pod[2], "pod2", backend, 8080, kind)
            answer = ask(nodes.second_client, frontend, PORT, kind)
            assert answer[:2] == ["pod2", node_address(1, family)]
            server.close()


@pytest.mark.parametrize("kind", [STREAM, DGRAM], ids=["tcp", "udp"])
@FAMILIES
def test_pods_behind_a_masqueraded_bridge_are_served(family: int, kind: int) -> None:
    """Another CNI: netfilter sees the translated destination, and so masquerades no reply."""
    with ExitStack() as stack:
        nodes = stack.enter_context(two_nodes(bridged=True))
        datapath = stack.enter_context(node_datapath(nodes, 1))
        proto = TCP if kind == STREAM else UDP
        for node, seen in ((1, client_address(family)), (2, node_address(1, family))):
            datapath.clear()
            backend = pod_address(node, family)
            datapath.service(node_address(1, family), PORT, proto, [(backend, 8080)], rev_nat=7)
            server = Server(nodes.pod[node], f"pod{node}", backend, 8080, kind)
            answer = ask(nodes.client, node_address(1, family), PORT, kind)
            assert answer[:2] == [f"pod{node}", seen]
            server.close()
        assert not drops(datapath)


@pytest.mark.parametrize("kind", [STREAM, DGRAM], ids=["tcp", "udp"])
@FAMILIES
def test_xdp_alone_serves_remote_backends(family: int, kind: int) -> None:
    """Without the programs of tc: XDP itself forwards, once the neighbours are known."""
    with ExitStack() as stack:
        nodes = stack.enter_context(two_nodes())
        stack.enter_context(pass_programs(nodes))
        datapath = stack.enter_context(node_datapath(nodes, 1, xdp=True))
        stack.callback(remote(nodes, datapath, family, kind).close)
        assert ask(nodes.client, node_address(1, family), PORT, kind)[0] == "pod2"
        for held in datapath.links:
            if isinstance(held, HeldFilter) or held.info().attach_type:
                held.detach()
        assert ask(nodes.client, node_address(1, family), PORT, kind)[0] == "pod2"
