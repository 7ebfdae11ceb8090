# SPDX-License-Identifier: Apache-2.0
"""Packets from outside through the programs of a node's devices, by tc and by XDP."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6DestUnreach, IPv6, IPv6ExtHdrDestOpt
from scapy.layers.l2 import Ether
from scapy.layers.sctp import SCTP, SCTPChunkData
from scapy.packet import Packet, Raw

from bpf.maps import ct
from bpf.maps.lb_numbers import ServiceFlag
from tests.bpf.datapath_world import drops, loaded
from tests.bpf.host_world import (
    BACKEND,
    CLIENT,
    DROPPED,
    FAMILIES,
    MAC_CLIENT,
    MAC_NODE,
    MAC_OTHER,
    NODE,
    OTHER_NODE,
    PASS,
    POD,
    PORT,
    PROTOCOLS,
    SENT,
    Node,
    frame,
    hops,
    made,
    proto_of,
    request,
)

#: The first test of a world waits for its programs to be verified.
pytestmark = [pytest.mark.root, pytest.mark.timeout(60)]


@pytest.fixture(scope="module", params=["tc", "xdp"])
def ipip_node(request: pytest.FixtureRequest) -> Iterator[Node]:
    with ExitStack() as stack:
        yield made(request.param, 1, stack)


@PROTOCOLS
@FAMILIES
def test_request_and_reply_are_translated(node: Node, family: int, transport: type[Packet]) -> None:
    node.serve(family, proto_of(transport))
    verdict, out = node.run(request(family, transport))
    assert verdict == SENT[node.hook]
    assert (out[1].src, out[1].dst) == (NODE[family], BACKEND[family])
    assert (out[transport].sport, out[transport].dport) == (40000, 8080)
    assert (out.dst, hops(out), bytes(out[Raw])) == (MAC_OTHER, 63, b"hello")

    reply = frame(BACKEND[family], NODE[family], transport(sport=8080, dport=40000), b"answer")
    verdict, out = node.run(reply)
    assert verdict == SENT[node.hook]
    assert (out[1].src, out[1].dst) == (NODE[family], CLIENT[family])
    assert (out[transport].sport, out[transport].dport) == (PORT, 40000)
    assert (out.dst, hops(out), bytes(out[Raw])) == (MAC_CLIENT, 63, b"answer")


@FAMILIES
def test_stranger_passes_untouched(node: Node, family: int) -> None:
    node.serve(family, socket.IPPROTO_TCP)
    packet = frame(CLIENT[family], NODE[family], TCP(sport=40000, dport=22))
    verdict, out = node.run(packet)
    assert verdict == PASS[node.hook]
    assert bytes(out) == bytes(packet)


def answer_of(family: int, transport: type[Packet], flags: str = "SA") -> Packet:
    """What the pod says to the client's port."""
    fields = {"flags": flags} if transport is TCP else {}
    return frame(POD[family], CLIENT[family], transport(sport=8080, dport=40000, **fields))


@pytest.mark.parametrize("node", ["tc"], indirect=True, scope="module")
@PROTOCOLS
@FAMILIES
def test_backend_that_is_asked_directly_answers_for_itself(
    node: Node, family: int, transport: type[Packet]
) -> None:
    """From a port that its client, or another node for one, had for a frontend before."""
    node.serve(family, proto_of(transport), POD[family])
    verdict, out = node.run(request(family, transport))
    assert (verdict, out[1].dst) == (PASS["tc"], POD[family])
    verdict, out = node.run(answer_of(family, transport, "RA"), "to_netdev")
    assert (verdict, out[1].src) == (PASS["tc"], NODE[family])

    for packet, program in (
        (frame(CLIENT[family], POD[family], transport(sport=40000, dport=8080)), "from_netdev"),
        (answer_of(family, transport), "to_netdev"),
    ):
        verdict, out = node.run(packet, program)
        assert (verdict, bytes(out)) == (PASS["tc"], bytes(packet))


@pytest.mark.parametrize("node", ["tc"], indirect=True, scope="module")
@FAMILIES
def test_connection_to_a_backend_gets_a_port_beside_that_of_a_frontend(
    node: Node, family: int
) -> None:
    node.serve(family, socket.IPPROTO_TCP, POD[family])
    node.run(request(family, TCP))
    direct = frame(CLIENT[family], POD[family], TCP(sport=40000, dport=8080))
    verdict, out = node.run(direct)
    assert verdict == PASS["tc"]
    port = out[TCP].sport
    assert port != 40000
    for at, source in ((40000, NODE[family]), (port, POD[family])):
        answer = frame(POD[family], CLIENT[family], TCP(sport=8080, dport=at, flags="SA"))
        verdict, out = node.run(answer, "to_netdev")
        assert (verdict, out[1].src, out[TCP].dport) == (PASS["tc"], source, 40000)


@pytest.mark.parametrize("node", ["tc"], indirect=True, scope="module")
@FAMILIES
def test_other_protocols_are_left_to_the_stack(node: Node, family: int) -> None:
    """Also from a port that has a flow by a frontend."""
    node.serve(family, socket.IPPROTO_SCTP, POD[family])
    chunk = SCTPChunkData(data=b"hello")
    asked = frame(CLIENT[family], NODE[family], SCTP(sport=40000, dport=PORT) / chunk)
    assert node.run_part(asked)[0] == PASS["tc"]
    assert len(dict(ct.connections(node.datapath.maps[f"cilia_ct{family}_any"]))) == 2
    direct = frame(CLIENT[family], POD[family], SCTP(sport=40000, dport=8080) / chunk)
    assert node.run_part(direct) == (PASS["tc"], bytes(direct))


@pytest.mark.parametrize("node", ["tc"], indirect=True, scope="module")
@FAMILIES
def test_only_connections_to_workloads_are_tracked(node: Node, family: int) -> None:
    """Whoever floods the node itself forgets no connection."""
    node.serve(family, socket.IPPROTO_TCP, POD[family])
    for place in (NODE, OTHER_NODE, POD):
        opening = frame(CLIENT[family], place[family], TCP(sport=40000, dport=22))
        assert node.run_part(opening) == (PASS["tc"], bytes(opening))
        tracked = ct.connections(node.datapath.maps[f"cilia_ct{family}_tcp"])
        assert len(dict(tracked)) == (place is POD)


@FAMILIES
def test_packet_at_its_last_hop_is_dropped(node: Node, family: int) -> None:
    node.serve(family, socket.IPPROTO_TCP)
    packet = request(family, TCP)
    if family == 4:
        packet[IP].ttl = 1
    else:
        packet[IPv6].hlim = 1
    before = drops(node.datapath).get(-8, 0)
    verdict, _ = node.run(packet)
    assert verdict == DROPPED[node.hook]
    assert drops(node.datapath)[-8] == before + 1


def test_option_carries_the_frontend_on_a_syn(node: Node) -> None:
    node.serve(4, socket.IPPROTO_TCP, flags=ServiceFlag.DSR)
    verdict, out = node.run(request(4, TCP))
    assert verdict == SENT[node.hook]
    assert (out[IP].src, out[IP].dst, out[TCP].dport) == (CLIENT[4], BACKEND[4], 8080)
    # Type, length, port and address in the reversed order that the field has.
    address, port = socket.inet_aton(NODE[4])[::-1], PORT.to_bytes(2, "little")
    assert bytes(out)[34:42] == bytes([0x9A, 8]) + port + address
    _, later = node.run(request(4, TCP, flags="A"))
    assert (later[IP].ihl, later[IP].dst) == (5, BACKEND[4])


def test_extension_header_carries_the_frontend_on_datagrams(node: Node) -> None:
    node.serve(6, socket.IPPROTO_UDP, flags=ServiceFlag.DSR)
    for _ in range(2):
        verdict, out = node.run(request(6, UDP))
        assert verdict == SENT[node.hook]
        assert (out[IPv6].src, out[IPv6].dst) == (CLIENT[6], BACKEND[6])
        address = socket.inet_pton(socket.AF_INET6, NODE[6])
        expected = bytes([17, 2, 0x1B, 20]) + address + PORT.to_bytes(2, "big") + bytes(2)
        assert bytes(out[IPv6ExtHdrDestOpt])[:24] == expected


@FAMILIES
def test_client_packet_travels_whole_inside_another(ipip_node: Node, family: int) -> None:
    ipip_node.serve(family, socket.IPPROTO_UDP, flags=ServiceFlag.DSR)
    sent = request(family, UDP)
    verdict, out = ipip_node.run(sent)
    assert verdict == SENT[ipip_node.hook]
    assert (out[1].src, out[1].dst) == (NODE[family], BACKEND[family])
    inner = out[2]
    assert (inner.src, inner.dst, inner[UDP].dport) == (CLIENT[family], NODE[family], PORT)
    assert len(out) == len(sent) + (20 if family == 4 else 40)


@FAMILIES
def test_error_of_a_router_reaches_the_client(node: Node, family: int) -> None:
    """What the client gets quotes its own packet, from its own port to the frontend."""
    node.serve(family, socket.IPPROTO_UDP)
    _, forwarded = node.run(request(family, UDP))
    error = ICMP(type=3, code=1) if family == 4 else ICMPv6DestUnreach(code=0)
    network = (IPv6 if family == 6 else IP)(src=OTHER_NODE[family], dst=NODE[family])
    packet = Ether(src=MAC_OTHER, dst=MAC_NODE) / network / error / bytes(forwarded[1])
    verdict, out = node.run(packet)
    assert verdict == SENT[node.hook]
    assert (out[1].src, out[1].dst) == (OTHER_NODE[family], CLIENT[family])
    quoted = (IPv6 if family == 6 else IP)(bytes(out[2])[8:])
    assert (quoted.src, quoted.dst) == (CLIENT[family], NODE[family])
    assert (quoted[UDP].sport, quoted[UDP].dport) == (40000, PORT)


@FAMILIES
def test_local_backend_is_left_to_tc_by_xdp(node: Node, family: int) -> None:
    """A backend without a route out of a device of the node is on this node."""
    node.serve(family, socket.IPPROTO_TCP, backend=NODE[family])
    packet = request(family, TCP)
    verdict, out = node.run(packet)
    assert verdict == PASS[node.hook]
    if node.hook == "xdp":
        assert bytes(out) == bytes(packet)
    else:
        assert (out[1].src, out[TCP].dport) == (CLIENT[family], 8080)


@FAMILIES
def test_range_without_a_free_port_is_a_counted_drop(node: Node, family: int) -> None:
    values = {"nat_min_port": 50000, "nat_max_port": 50000}
    constants = {name: value.to_bytes(4, "little") for name, value in values.items()}
    with loaded(["host", "xdp"], constants, shared=node.datapath) as narrow:
        one_port = node._replace(datapath=narrow)
        one_port.serve(family, socket.IPPROTO_TCP)
        assert one_port.run(request(family, TCP))[0] == SENT[node.hook]
        packet = frame(CLIENT[family], NODE[family], TCP(sport=40001, dport=PORT))
        before = drops(narrow).get(-5, 0)
        assert one_port.run(packet)[0] == DROPPED[node.hook]
        assert drops(narrow)[-5] == before + 1
