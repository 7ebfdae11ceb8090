# SPDX-License-Identifier: Apache-2.0
"""A client inside the cluster that asks another node's node port is served where it is."""

from __future__ import annotations

import socket

import pytest
from scapy.layers.inet import TCP, UDP
from scapy.layers.l2 import Ether

from bpf.maps import lb
from bpf.maps.cluster_nodes import ClusterNodeFlag, encode_value
from bpf.maps.lb import BackendValue, ServiceValue
from bpf.maps.lb_numbers import FrontendType, ServiceFlag
from tests.bpf.datapath_world import Datapath, packed
from tests.bpf.lxc_world import (
    CLIENT_PORT,
    FAMILIES,
    GO_ON,
    PROTOCOLS,
    REDIRECT,
    V4,
    V6,
    Family,
    expect,
    packet,
)
from tests.bpf.packets import MAC_NODE_ONE, MAC_POD_ONE
from tests.bpf.test_sock import peer_of, tcp_server, udp_server
from tests.bpf.test_sock_node import errno_of, node
from tests.bpf.world import World

pytestmark = pytest.mark.root

PORT = 30080
NODES = {V4: ("192.0.2.2", "192.0.2.3"), V6: ("fd00:2::2", "fd00:2::3")}
SELF = {V4: "192.0.2.1", V6: "fd00:2::1"}
ANY = {V4: "0.0.0.0", V6: "::"}
#: Surrogates are no address that a packet from outside may have.
NODE_PORT = ServiceFlag.NON_ROUTABLE
TRANSPORT = pytest.mark.parametrize("proto", ["tcp", "udp"])


def serve(
    pod: Datapath,
    family: Family,
    proto: str,
    backend: str = "",
    flags: int = NODE_PORT,
    kind: FrontendType = FrontendType.NODE_PORT,
) -> None:
    """The node port that every node has, and three nodes of which one is this."""
    backends = [(backend or family.backend, 8080)]
    pod.service(
        ANY[family], PORT, PROTOCOLS[proto], backends, rev_nat=1, flags=flags, kind=kind.number
    )
    for address in NODES[family]:
        pod.cluster_node(address)
    pod.cluster_node(SELF[family], ClusterNodeFlag.SELF)


def from_pod(pod: Datapath, sent: object) -> Ether:
    result = pod.program("from_pod").run(bytes(sent))  # type: ignore[call-overload]
    assert result.retval == GO_ON
    return Ether(result.data)


@TRANSPORT
@FAMILIES
def test_answer_has_the_address_of_the_node_that_was_asked(
    pod: Datapath, family: Family, proto: str
) -> None:
    serve(pod, family, proto)
    sent = packet(proto, family.pod, CLIENT_PORT, NODES[family][0], PORT)
    there = packet(proto, family.pod, CLIENT_PORT, family.backend, 8080)
    answer = packet(proto, family.backend, 8080, family.pod, CLIENT_PORT, flags="SA", turned=True)
    back = packet(proto, NODES[family][0], PORT, family.pod, CLIENT_PORT, flags="SA", turned=True)
    for _ in range(2):
        expect(pod, "from_pod", sent, GO_ON, there)
        expect(pod, "to_pod", answer, GO_ON, back)


@TRANSPORT
@FAMILIES
def test_one_port_asks_two_nodes_at_once(pod: Datapath, family: Family, proto: str) -> None:
    serve(pod, family, proto)
    header = TCP if proto == "tcp" else UDP
    ports = {}
    for asked in NODES[family]:
        out = from_pod(pod, packet(proto, family.pod, CLIENT_PORT, asked, PORT))
        assert out[1].dst == family.backend
        ports[asked] = out[header].sport
    assert len(set(ports.values())) == 2
    for asked, port in ports.items():
        answer = packet(proto, family.backend, 8080, family.pod, port, flags="SA", turned=True)
        back = packet(proto, asked, PORT, family.pod, CLIENT_PORT, flags="SA", turned=True)
        expect(pod, "to_pod", answer, GO_ON, back)


@TRANSPORT
@FAMILIES
def test_pod_that_is_the_backend_reaches_itself(pod: Datapath, family: Family, proto: str) -> None:
    serve(pod, family, proto, family.pod)
    asked = NODES[family][0]
    sent = packet(proto, family.pod, CLIENT_PORT, asked, PORT)
    there = packet(proto, family.loopback, CLIENT_PORT, family.pod, 8080, turned=True)
    answer = packet(proto, family.pod, 8080, family.loopback, CLIENT_PORT, flags="SA")
    back = packet(proto, asked, PORT, family.pod, CLIENT_PORT, flags="SA", turned=True)
    there[Ether].src, there[Ether].dst = MAC_NODE_ONE, MAC_POD_ONE
    expect(pod, "from_pod", sent, REDIRECT, there)
    expect(pod, "from_pod", answer, REDIRECT, back)


@pytest.mark.parametrize("case", ["local policy", "host port", "this node", "no node"])
@FAMILIES
def test_what_the_other_node_has_for_itself_goes_there_untouched(
    pod: Datapath, family: Family, case: str
) -> None:
    flags = NODE_PORT | (ServiceFlag.EXT_LOCAL if case == "local policy" else 0)
    kind = FrontendType.HOST_PORT if case == "host port" else FrontendType.NODE_PORT
    serve(pod, family, "tcp", flags=flags, kind=kind)
    asked = {"this node": SELF[family], "no node": family.router}.get(case, NODES[family][0])
    expect(pod, "from_pod", packet("tcp", family.pod, CLIENT_PORT, asked, PORT), GO_ON, None)


# -- at sockets, in a namespace that leads nowhere: what is not translated cannot go anywhere

LOOPBACK = {V4: "127.0.0.1", V6: "::1"}


@pytest.mark.parametrize(
    ("asked", "kind", "flags", "served"),
    [
        (0, FrontendType.NODE_PORT, NODE_PORT, True),
        (0, FrontendType.NODE_PORT, NODE_PORT | ServiceFlag.EXT_LOCAL, False),
        (0, FrontendType.HOST_PORT, NODE_PORT, False),
        (2, FrontendType.NODE_PORT, NODE_PORT, False),
    ],
    ids=["node port", "local policy", "host port", "no node"],
)
@FAMILIES
def test_socket_gets_a_backend_and_sees_the_node_that_it_asked(
    world: World,
    family: Family,
    asked: int,
    kind: FrontendType,
    flags: int,
    served: bool,
) -> None:
    address = (*NODES[family], family.router)[asked]
    loopback = LOOPBACK[family]

    def run() -> list[object]:
        listener, tcp_port = tcp_server(loopback)
        receiver, udp_port = udp_server(loopback)
        with node(world) as datapath, listener, receiver:
            nodes = datapath.sock.cluster_node_maps()
            for other in NODES[family]:
                nodes.of(packed(other)).update(packed(other), encode_value(ClusterNodeFlag.NONE))
            for proto, port in ((6, tcp_port), (17, udp_port)):
                backend(datapath.maps, family, proto, port, kind, flags)
            nodes.close()
            return [*by_connection(address), *by_datagram(address, receiver)]

    def by_connection(address: str) -> list[object]:
        with socket.socket(family_of(address), socket.SOCK_STREAM) as client:
            client.settimeout(1)
            result = errno_of(lambda: client.connect((address, PORT)))
            return [result, peer_of(client) if result == "ok" else None]

    def by_datagram(address: str, receiver: socket.socket) -> list[object]:
        with socket.socket(family_of(address), socket.SOCK_DGRAM) as client:
            client.settimeout(1)
            result = errno_of(lambda: client.sendto(b"?", (address, PORT)))
            if result != "ok":
                return [result, None]
            content, sender = receiver.recvfrom(16)
            receiver.sendto(content, sender)
            return [result, client.recvfrom(16)[1][:2]]

    expected: list[object] = ["ok", (address, PORT)] if served else ["ENETUNREACH", None]
    assert world.in_child(run) == expected * 2


def backend(
    maps: lb.LBMaps, family: Family, proto: int, port: int, kind: FrontendType, flags: int
) -> None:
    """One backend behind the surrogate."""
    key = packed(ANY[family])
    of_family = maps.of(key)
    value = BackendValue(packed(LOOPBACK[family]), port, proto)
    of_family.backend.update(lb.encode_id(proto), lb.encode_backend(value))
    for slot, entry in (
        (1, ServiceValue(backend_id=proto)),
        (0, ServiceValue(rev_nat=proto, count=1, flags=flags, type=kind.number)),
    ):
        of_family.service.update(
            lb.encode_service_key(key, PORT, slot, proto), lb.encode_service(entry)
        )


def family_of(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET
