# SPDX-License-Identifier: Apache-2.0
"""Direct return packet by packet: whose frontends are believed, in whose name backends answer."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import msgspec
import pytest
from scapy.layers.inet import IP, TCP, UDP, IPOption, fragment
from scapy.layers.inet6 import (
    HBHOptUnknown,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    fragment6,
)
from scapy.layers.l2 import Ether
from scapy.packet import Packet

from bpf.maps import cluster_nodes
from bpf.maps.ct import CtFlag, Direction, connections, encode_entry, encode_key
from bpf.maps.lb_numbers import FrontendType, ServiceFlag
from tests.bpf.datapath_world import drops, packed
from tests.bpf.host_world import (
    BACKEND,
    CLIENT,
    DROPPED,
    FAMILIES,
    MAC_CLIENT,
    MAC_NODE,
    NODE,
    OTHER_NODE,
    PASS,
    POD,
    PORT,
    PROTOCOLS,
    SENT,
    Node,
    frame,
    made,
    proto_of,
    request,
)

pytestmark = [pytest.mark.root, pytest.mark.timeout(60)]

ANY = {4: "0.0.0.0", 6: "::"}
THIRD_NODE = {4: "192.0.2.3", 6: "fd00:2::3"}
CLUSTER_IP = {4: "10.96.0.1", 6: "fd00:96::1"}
#: Of no node's object.
SECOND_ADDRESS = {4: "198.51.100.1", 6: "fd00:51::1"}
STRANGER = {4: "203.0.113.7", 6: "fd00:203::7"}

#: ``DROP_*`` of drop_types.h.
COLLISION, NOT_IN_RANGE, IS_CLUSTER_IP, UNKNOWN_FRONTEND, NOT_FROM_NODE = -16, -17, -18, -20, -21

SERVED = ServiceFlag.NON_ROUTABLE | ServiceFlag.DSR


def world(dispatch: int, stack: ExitStack) -> Node:
    node = made("tc", dispatch, stack)
    for family in (4, 6):
        node.datapath.cluster_node(THIRD_NODE[family])
    return node


@pytest.fixture(scope="module")
def opt() -> Iterator[Node]:
    with ExitStack() as stack:
        yield world(0, stack)


@pytest.fixture(scope="module")
def ipip() -> Iterator[Node]:
    with ExitStack() as stack:
        yield world(1, stack)


def serve(node: Node, family: int, proto: int, flags: ServiceFlag = SERVED) -> None:
    """The pod of this node behind a node port, as the agent writes it, and a cluster address."""
    node.serve(family, proto, POD[family], ServiceFlag.DSR)
    backends = [(POD[family], 8080)]
    node.datapath.service(ANY[family], PORT, proto, backends, rev_nat=8, flags=flags)
    node.datapath.service(
        CLUSTER_IP[family],
        80,
        proto,
        backends,
        rev_nat=9,
        flags=ServiceFlag.NON_ROUTABLE,
        kind=FrontendType.CLUSTER_IP.number,
    )


def named(family: int, address: str, port: int, transport: type[Packet], **fields: Any) -> Packet:
    """A client's packet to the pod with the frontend in an option."""
    packet = frame(CLIENT[family], POD[family], transport(sport=40000, dport=8080, **fields))
    return naming(packet, family, address, port)


def naming(packet: Packet, family: int, address: str, port: int) -> Packet:
    """The packet with the frontend in an option."""
    raw = packed(address)
    head = packet[1].copy()
    head.remove_payload()
    if family == 4:
        del head.ihl, head.len, head.chksum
        head.options = [IPOption(b"\x9a\x08" + port.to_bytes(2, "little") + raw[::-1])]
        return Ether(bytes(packet)[:14]) / head / packet[1].payload
    option = HBHOptUnknown(otype=0x1B, optdata=raw + port.to_bytes(2, "big") + bytes(2))
    del head.plen, head.nh
    header = IPv6ExtHdrDestOpt(options=[option])
    return Ether(bytes(packet)[:14]) / head / header / packet[1].payload


def inside(family: int, address: str, port: int, transport: type[Packet], **fields: Any) -> Packet:
    """A client's packet to the frontend in one from another node to the pod."""
    source = fields.pop("source", OTHER_NODE[family])
    inner = frame(CLIENT[family], address, transport(sport=40000, dport=port, **fields))[1]
    outer = (IPv6 if family == 6 else IP)(src=source, dst=POD[family])
    return Ether(src=MAC_CLIENT, dst=MAC_NODE) / outer / inner


def answered(node: Node, family: int, transport: type[Packet], **fields: Any) -> tuple[str, int]:
    """The source that an answer of the pod to the client's port leaves with."""
    flags = {"flags": "SA"} if transport is TCP else {}
    port = fields.pop("port", 40000)
    packet = frame(
        POD[family], CLIENT[family], transport(sport=8080, dport=port, **flags, **fields)
    )
    verdict, out = node.run(packet, "to_netdev")
    assert verdict == PASS["tc"]
    assert out[transport].dport == 40000
    return out[1].src, out[transport].sport


def reason(node: Node, packet: Packet) -> int:
    """Why a packet is dropped."""
    before = drops(node.datapath)
    assert node.run(packet)[0] == DROPPED["tc"]
    ((found, _),) = drops(node.datapath).items() - before.items()
    return found


def passes(node: Node, packet: Packet) -> Packet:
    verdict, out = node.run(packet)
    assert verdict == PASS["tc"]
    return out


@PROTOCOLS
@FAMILIES
def test_node_that_was_asked_last_is_who_answers(
    opt: Node, family: int, transport: type[Packet]
) -> None:
    """The connection before is over each time; of datagrams nothing tells that."""
    serve(opt, family, proto_of(transport))
    end = {"flags": "FA"} if transport is TCP else {}
    for _ in range(2):
        passes(opt, request(family, transport))
        assert answered(opt, family, transport) == (NODE[family], PORT)
        if end:
            passes(opt, request(family, transport, **end))
        for asked in (OTHER_NODE, THIRD_NODE):
            passes(opt, named(family, asked[family], PORT, transport))
            assert answered(opt, family, transport) == (asked[family], PORT)
            if end:
                direct = frame(
                    CLIENT[family], POD[family], TCP(sport=40000, dport=8080, flags="FA")
                )
                passes(opt, direct)


@PROTOCOLS
@FAMILIES
def test_backend_gets_the_packet_as_the_client_made_it(
    opt: Node, family: int, transport: type[Packet]
) -> None:
    """Its device may be narrower than those between nodes."""
    serve(opt, family, proto_of(transport))
    packet = frame(CLIENT[family], POD[family], transport(sport=40000, dport=8080))
    out = passes(opt, naming(packet, family, OTHER_NODE[family], PORT))
    assert bytes(out) == bytes(packet)


@FAMILIES
def test_each_fragment_is_as_the_client_made_it(opt: Node, family: int) -> None:
    serve(opt, family, socket.IPPROTO_UDP)
    body = UDP(sport=40000, dport=8080) / (b"z" * 3000)
    packet = frame(CLIENT[family], POD[family], body)
    if family == 6:
        packet[IPv6].payload = IPv6ExtHdrFragment(id=77) / body
    for part in fragments(packet, family):
        brought = naming(part, family, OTHER_NODE[family], PORT)
        assert opt.run_part(brought) == (PASS["tc"], bytes(part))


def fragments(packet: Packet, family: int) -> list[Packet]:
    """The packet in pieces, none of which is longer than 1280 bytes."""
    parts = fragment6(packet[1], 1280) if family == 6 else fragment(packet[1], 1240)
    return [Ether(bytes(packet)[:14] + bytes(part)) for part in parts]


@FAMILIES
def test_connection_keeps_its_frontend_while_it_lives(opt: Node, family: int) -> None:
    serve(opt, family, socket.IPPROTO_TCP)
    passes(opt, named(family, OTHER_NODE[family], PORT, TCP))
    passes(opt, named(family, OTHER_NODE[family], PORT, TCP))  # sent again
    assert reason(opt, named(family, THIRD_NODE[family], PORT, TCP)) == COLLISION
    direct = frame(CLIENT[family], POD[family], TCP(sport=40000, dport=8080))
    assert reason(opt, direct) == COLLISION
    more = frame(CLIENT[family], POD[family], TCP(sport=40000, dport=8080, flags="PA"))
    assert bytes(passes(opt, more)) == bytes(more)  # of the connection, which names it no more
    assert passes(opt, request(family, TCP))[TCP].sport != 40000
    assert answered(opt, family, TCP) == (OTHER_NODE[family], PORT)

    serve(opt, family, socket.IPPROTO_TCP)
    passes(opt, direct)
    assert reason(opt, named(family, OTHER_NODE[family], PORT, TCP)) == COLLISION
    assert answered(opt, family, TCP) == (POD[family], 8080)

    serve(opt, family, socket.IPPROTO_TCP)
    passes(opt, request(family, TCP))
    assert reason(opt, named(family, OTHER_NODE[family], PORT, TCP)) == COLLISION
    assert answered(opt, family, TCP) == (NODE[family], PORT)


@PROTOCOLS
@FAMILIES
def test_frontend_that_no_node_has_is_not_believed(
    opt: Node, family: int, transport: type[Packet]
) -> None:
    serve(opt, family, proto_of(transport))
    for address, port in (
        (STRANGER[family], PORT),
        (CLIENT[family], PORT),
        (OTHER_NODE[family], 22),
        (NODE[family], 22),
    ):
        assert reason(opt, named(family, address, port, transport)) == UNKNOWN_FRONTEND
    assert reason(opt, named(family, CLUSTER_IP[family], 80, transport)) == IS_CLUSTER_IP
    assert answered(opt, family, transport) == (POD[family], 8080)


@FAMILIES
def test_client_outside_of_the_source_ranges_stays_outside(
    opt: Node, ipip: Node, family: int
) -> None:
    for node, packet in (
        (opt, named(family, OTHER_NODE[family], PORT, UDP)),
        (ipip, inside(family, OTHER_NODE[family], PORT, UDP)),
    ):
        serve(node, family, socket.IPPROTO_UDP, SERVED | ServiceFlag.SOURCE_RANGE)
        assert reason(node, packet) == NOT_IN_RANGE


@PROTOCOLS
@FAMILIES
def test_packet_in_another_is_answered_by_the_node_that_it_names(
    ipip: Node, family: int, transport: type[Packet]
) -> None:
    """Two nodes and this one, asked from one port at once: each flow has a port of its own."""
    serve(ipip, family, proto_of(transport))
    ports = {}
    for asked in (OTHER_NODE, THIRD_NODE):
        out = passes(ipip, inside(family, asked[family], PORT, transport))
        assert (out[1].src, out[1].dst) == (CLIENT[family], POD[family])
        assert out[transport].dport == 8080
        ports[asked[family]] = out[transport].sport
    ports[NODE[family]] = passes(ipip, request(family, transport))[transport].sport
    assert len(set(ports.values())) == 3
    for address, port in ports.items():
        assert answered(ipip, family, transport, port=port) == (address, PORT)


@FAMILIES
def test_packet_in_another_is_taken_from_nodes_alone(ipip: Node, family: int) -> None:
    serve(ipip, family, socket.IPPROTO_UDP)
    for source in (CLIENT[family], NODE[family]):
        packet = inside(family, NODE[family], PORT, UDP, source=source)
        assert reason(ipip, packet) == NOT_FROM_NODE
    assert reason(ipip, inside(family, CLUSTER_IP[family], 80, UDP)) == IS_CLUSTER_IP
    tunnel = inside(family, STRANGER[family], 53, UDP, source=CLIENT[family])
    assert bytes(passes(ipip, tunnel)) == bytes(Ether(bytes(tunnel))), "a tunnel of others"


def sent_on(node: Node, packet: Packet) -> str:
    """The source with which a packet goes to another node."""
    verdict, out = node.run(packet)
    assert verdict == SENT["tc"]
    assert out[1].dst == BACKEND[packet[1].version]
    return str(out[1].src)


@pytest.mark.parametrize("dispatch", ["opt", "ipip"])
@FAMILIES
def test_client_that_is_a_node_is_translated(
    opt: Node, ipip: Node, family: int, dispatch: str
) -> None:
    """The backend may be on its node, where it would answer past the devices."""
    node = {"opt": opt, "ipip": ipip}[dispatch]
    node.serve(family, socket.IPPROTO_UDP, flags=ServiceFlag.DSR)
    packet = frame(THIRD_NODE[family], NODE[family], UDP(sport=40000, dport=PORT))
    assert sent_on(node, packet) == NODE[family]


@pytest.mark.parametrize("kind", [FrontendType.NODE_PORT, FrontendType.LOAD_BALANCER])
@FAMILIES
def test_node_port_at_an_address_that_others_do_not_know_is_translated(
    opt: Node, family: int, kind: FrontendType
) -> None:
    opt.serve(family, socket.IPPROTO_UDP, flags=ServiceFlag.DSR)
    address = SECOND_ADDRESS[family]
    opt.datapath.service(
        address,
        PORT,
        socket.IPPROTO_UDP,
        [(BACKEND[family], 8080)],
        rev_nat=8,
        flags=ServiceFlag.DSR,
        kind=kind.number,
    )
    packet = frame(CLIENT[family], address, UDP(sport=40000, dport=PORT))
    node_port = kind is FrontendType.NODE_PORT
    assert sent_on(opt, packet) == (NODE if node_port else CLIENT)[family]


@FAMILIES
def test_address_that_others_do_not_know_sends_no_packet_in_another(
    ipip: Node, family: int
) -> None:
    ipip.serve(family, socket.IPPROTO_UDP, flags=ServiceFlag.DSR)
    ipip.datapath.service(
        STRANGER[family],
        PORT,
        socket.IPPROTO_UDP,
        [(BACKEND[family], 8080)],
        rev_nat=8,
        flags=ServiceFlag.DSR,
        kind=FrontendType.LOAD_BALANCER.number,
    )
    packet = frame(CLIENT[family], STRANGER[family], UDP(sport=40000, dport=PORT))
    known = ipip.datapath.maps[cluster_nodes.NAMES[family == 6]]
    own, flags = packed(NODE[family]), cluster_nodes.ClusterNodeFlag.SELF
    known.delete(own)
    _, translated = ipip.run(packet)
    known.update(own, cluster_nodes.encode_value(flags))
    assert translated[2].name == "UDP"
    ipip.datapath.maps[f"cilia_ct{family}_any"].clear()
    _, wrapped = ipip.run(packet)
    assert wrapped[2].dst == STRANGER[family]


@pytest.mark.parametrize("dispatch", ["opt", "ipip"])
@FAMILIES
def test_connection_stays_as_it_began(opt: Node, ipip: Node, family: int, dispatch: str) -> None:
    """Also when the nodes get to know each other meanwhile."""
    node = {"opt": opt, "ipip": ipip}[dispatch]
    node.serve(family, socket.IPPROTO_TCP, flags=ServiceFlag.DSR)
    known = node.datapath.maps[cluster_nodes.NAMES[family == 6]]
    own, flags = packed(NODE[family]), cluster_nodes.ClusterNodeFlag.SELF
    known.delete(own)
    assert sent_on(node, request(family, TCP)) == NODE[family]
    known.update(own, cluster_nodes.encode_value(flags))
    assert sent_on(node, request(family, TCP, flags="A")) == NODE[family]
    node.datapath.maps[f"cilia_ct{family}_tcp"].clear()
    verdict, out = node.run(request(family, TCP))
    assert (verdict, out[1].dst) == (SENT["tc"], BACKEND[family])
    direct = out[1].src == CLIENT[family] if dispatch == "opt" else out[2].dst == NODE[family]
    assert direct


@pytest.mark.parametrize("dispatch", ["opt", "ipip"])
@PROTOCOLS
@FAMILIES
def test_second_frontend_of_one_backend_is_translated(
    opt: Node, ipip: Node, family: int, transport: type[Packet], dispatch: str
) -> None:
    """Asked from the same port, the backend's node could not tell whose its replies are."""
    node, proto = {"opt": opt, "ipip": ipip}[dispatch], proto_of(transport)
    node.serve(family, proto, flags=ServiceFlag.DSR)
    node.datapath.service(
        SECOND_ADDRESS[family],
        80,
        proto,
        [(BACKEND[family], 8080)],
        rev_nat=8,
        flags=ServiceFlag.DSR,
        kind=FrontendType.LOAD_BALANCER.number,
    )
    verdict, first = node.run(request(family, transport))
    assert (verdict, first[1].dst) == (SENT["tc"], BACKEND[family])
    assert NODE[family] != first[1].src or dispatch == "ipip"
    packet = frame(CLIENT[family], SECOND_ADDRESS[family], transport(sport=40000, dport=80))
    for _ in range(2):
        verdict, out = node.run(packet)
        assert (verdict, out[1].src, out[1].dst) == (SENT["tc"], NODE[family], BACKEND[family])
        assert out[2].name == transport.__name__
        assert out[transport].dport == 8080
    assert bytes(node.run(request(family, transport))[1][2])[:4] == bytes(first[2])[:4]


@FAMILIES
@PROTOCOLS
def test_packet_in_another_keeps_its_port_when_its_frontend_is_made_anew(
    ipip: Node, family: int, transport: type[Packet]
) -> None:
    """The client's own port is another frontend's at this backend."""
    ipip.datapath.clear()
    proto, backends = proto_of(transport), [(POD[family], 8080)]
    vip = STRANGER[family]
    for port, number in ((81, 8), (80, 7)):
        ipip.datapath.service(vip, port, proto, backends, rev_nat=number, flags=ServiceFlag.DSR)
        out = ipip.run(inside(family, vip, port, transport))[1]
    moved = out[transport].sport
    assert moved != 40000
    ipip.datapath.delete_service(vip, 80, proto)
    ipip.datapath.service(vip, 80, proto, backends, rev_nat=9, flags=ServiceFlag.DSR)
    fields = {"flags": "A"} if transport is TCP else {}
    for _ in range(2):
        out = ipip.run(inside(family, vip, 80, transport, **fields))[1]
        assert (out[1].dst, out[transport].sport) == (POD[family], moved)
    assert answered(ipip, family, transport, port=moved) == (vip, 80)


def names_frontend(node: Node, family: int, flags: str) -> tuple[str, bool]:
    """Where a client's packet to the node port goes, and whether it brings the frontend along."""
    verdict, out = node.run(request(family, TCP, flags=flags))
    assert verdict in (SENT["tc"], PASS["tc"]), "or the stack brings it to the pod"
    brings = bool(out[IP].options) if family == 4 else IPv6ExtHdrDestOpt in out
    return out[1].dst, brings


@FAMILIES
@pytest.mark.parametrize("where", ["on this node", "on another node"])
def test_an_open_connection_names_the_frontend_where_its_backend_moves_to(
    opt: Node, family: int, where: str
) -> None:
    """The backend keeps its address, as a virtual machine does; its new node knows no frontend."""
    begins, hops = (POD, OTHER_NODE) if where == "on this node" else (BACKEND, THIRD_NODE)
    backend, hop = begins[family], hops[family]
    opt.serve(family, socket.IPPROTO_TCP, backend, ServiceFlag.DSR)
    assert names_frontend(opt, family, "S") == (backend, begins is BACKEND)
    assert names_frontend(opt, family, "A") == (backend, False)
    narrow = [f"-{family}", "route", "replace", f"{backend}/{32 if family == 4 else 128}"]
    neighbour = ["neigh", "replace", hop, "lladdr", MAC_CLIENT, "dev", "eth0", "nud", "permanent"]
    opt.namespace.run(*neighbour)
    opt.namespace.run(*narrow, "via", hop)
    try:
        for _ in range(2):
            assert names_frontend(opt, family, "A") == (backend, True), "any of them may be lost"
    finally:
        if begins is POD:
            opt.namespace.run(*narrow, "dev", "lxc0")
        else:
            opt.namespace.run(f"-{family}", "route", "del", narrow[-1], "via", hop)
    assert names_frontend(opt, family, "A") == (backend, False)


def as_an_earlier_version_left_it(node: Node, family: int) -> None:
    """Take from the client's entry what this version notes of its backend's place."""
    entries = node.datapath.maps[f"cilia_ct{family}_tcp"]
    ((key, entry),) = [
        pair for pair in connections(entries) if pair[0].direction == Direction.SERVICE
    ]
    flags = entry.flags & ~CtFlag.LOCAL
    left = msgspec.structs.replace(entry, flags=flags, nat_address=bytes(16))
    entries.update(encode_key(key), encode_entry(left))


@FAMILIES
def test_a_connection_of_an_earlier_version_names_its_frontend_once(opt: Node, family: int) -> None:
    """Nothing tells whether its backend moved before: to a node that knows the connection it says
    nothing new.
    """
    opt.serve(family, socket.IPPROTO_TCP, BACKEND[family], ServiceFlag.DSR)
    names_frontend(opt, family, "S")
    as_an_earlier_version_left_it(opt, family)
    assert names_frontend(opt, family, "A") == (BACKEND[family], True)
    assert names_frontend(opt, family, "A") == (BACKEND[family], False)


@FAMILIES
def test_a_long_packet_of_an_earlier_versions_connection_goes_without_its_frontend(
    opt: Node, family: int
) -> None:
    opt.serve(family, socket.IPPROTO_TCP, BACKEND[family], ServiceFlag.DSR)
    names_frontend(opt, family, "S")
    as_an_earlier_version_left_it(opt, family)
    head = 40 if family == 4 else 60
    transport = TCP(sport=40000, dport=PORT, flags="A")
    long = frame(CLIENT[family], NODE[family], transport, bytes(1500 - head))
    verdict, out = opt.run(long)
    assert (verdict, len(out)) == (SENT["tc"], 1514)
    assert names_frontend(opt, family, "A") == (BACKEND[family], True)


@FAMILIES
def test_a_connection_of_an_earlier_version_whose_backend_moves_away_names_its_frontend(
    opt: Node, family: int
) -> None:
    """One packet after the upgrade is enough to know that the backend was on this node."""
    backend, hop = POD[family], OTHER_NODE[family]
    opt.serve(family, socket.IPPROTO_TCP, backend, ServiceFlag.DSR)
    names_frontend(opt, family, "S")
    as_an_earlier_version_left_it(opt, family)
    assert names_frontend(opt, family, "A") == (backend, False)
    narrow = [f"-{family}", "route", "replace", f"{backend}/{32 if family == 4 else 128}"]
    opt.namespace.run(*narrow, "via", hop)
    try:
        for _ in range(2):
            assert names_frontend(opt, family, "A") == (backend, True)
    finally:
        opt.namespace.run(*narrow, "dev", "lxc0")
