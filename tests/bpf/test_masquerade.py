# SPDX-License-Identifier: Apache-2.0
"""What workloads send to the world, through the programs of a node's device: sources, exclusions,
answers, and what is refused.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import ExitStack

import msgspec
import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP, fragment
from scapy.layers.inet6 import (
    ICMPv6DestUnreach,
    ICMPv6EchoReply,
    ICMPv6EchoRequest,
    ICMPv6PacketTooBig,
    IPv6,
    IPv6ExtHdrFragment,
    fragment6,
)
from scapy.layers.l2 import Ether
from scapy.layers.sctp import SCTP, SCTPChunkData
from scapy.packet import Packet, Raw

from bpf.libbpf import lib
from bpf.maps import ct, nat
from bpf.maps.cluster_nodes import NAMES as NODE_MAPS
from bpf.maps.nat import NatDirection, NatFlag, NatKey, NatValue
from tests.bpf.datapath_world import drops, packed
from tests.bpf.host_world import (
    DROPPED,
    FAMILIES,
    MAC_CLIENT,
    MAC_NODE,
    NODE,
    OTHER_NODE,
    PASS,
    Node,
    frame,
    made,
)

pytestmark = [pytest.mark.root, pytest.mark.timeout(60)]

OUT, IN = "to_netdev", "from_netdev"
POD = {4: "10.207.0.10", 6: "fd00:207::a"}
OTHER_POD = {4: "10.207.0.11", 6: "fd00:207::b"}
WORLD = {4: "198.51.100.7", 6: "2001:db8::7"}
ROUTER = {4: "203.0.113.9", 6: "2001:db8:9::9"}
REMOTE_PODS = {4: "10.208.0.0/16", 6: "fd00:208::/32"}
REMOTE_POD = {4: "10.208.3.4", 6: "fd00:208::4"}

#: A range that a test can fill.
FEW = {"nat_min_port": (40000).to_bytes(4, "little"), "nat_max_port": (40003).to_bytes(4, "little")}
ON = {"pod_network": b"\1", "masquerade4": b"\1", "masquerade6": b"\1"}


def world(stack: ExitStack, **constants: bytes) -> Node:
    node = made("tc", 0, stack, {**ON, **constants})
    for family in (4, 6):
        for address in (POD, OTHER_POD):
            node.datapath.workload(address[family])
            node.namespace.run(f"-{family}", "route", "add", address[family], "dev", "lxc0")
        node.datapath.spare(REMOTE_PODS[family])
    return node


@pytest.fixture(scope="module")
def loaded_node() -> Iterator[Node]:
    with ExitStack() as stack:
        yield world(stack)


@pytest.fixture
def node(loaded_node: Node) -> Node:
    """A node that masquerades, without flows."""
    loaded_node.datapath.clear()
    return loaded_node


@pytest.fixture(scope="module")
def narrow_node() -> Iterator[Node]:
    with ExitStack() as stack:
        yield world(stack, **FEW)


def request(family: int, proto: str, sport: int = 40000, dport: int = 80) -> Packet:
    if proto == "tcp":
        return TCP(sport=sport, dport=dport, flags="S")
    if proto == "udp":
        return UDP(sport=sport, dport=dport)
    if proto == "sctp":
        return SCTP(sport=sport, dport=dport) / SCTPChunkData(data=b"data")
    return ICMP(type=8, id=sport) if family == 4 else ICMPv6EchoRequest(id=sport)


def reply(family: int, proto: str, port: int, dport: int = 80) -> Packet:
    if proto == "tcp":
        return TCP(sport=dport, dport=port, flags="SA")
    if proto == "udp":
        return UDP(sport=dport, dport=port)
    if proto == "sctp":
        return SCTP(sport=dport, dport=port) / SCTPChunkData(data=b"data")
    return ICMP(type=0, id=port) if family == 4 else ICMPv6EchoReply(id=port)


def port_of(packet: Packet, side: str = "sport") -> int:
    """The port of a side, or the identifier of an echo."""
    for kind in (TCP, UDP, SCTP):
        if kind in packet:
            return int(getattr(packet[kind], side))
    echo = next(k for k in (ICMP, ICMPv6EchoRequest, ICMPv6EchoReply) if k in packet)
    return int(packet[echo].id)


def sent(src: str, dst: str, head: Packet) -> Packet:
    if SCTP in head:
        network = IPv6(src=src, dst=dst) if ":" in src else IP(src=src, dst=dst)
        return Ether(src=MAC_CLIENT, dst=MAC_NODE) / network / head
    return frame(src, dst, head)


def refused(node: Node, packet: Packet | bytes, program: str = OUT) -> int:
    """Run a packet that is dropped; why."""
    before = drops(node.datapath)
    verdict, _ = node.run_part(packet, program)
    assert verdict == DROPPED["tc"]
    after = drops(node.datapath)
    ((reason, count),) = {
        k: n - before.get(k, 0) for k, n in after.items() if n != before.get(k, 0)
    }.items()
    assert count == 1
    return reason


def untouched(node: Node, packet: Packet, program: str = OUT) -> None:
    verdict, data = node.run_part(packet, program)
    assert (verdict, data) == (PASS["tc"], bytes(packet))


def translations(node: Node, family: int) -> dict[NatKey, NatValue]:
    return dict(nat.translations(node.datapath.maps[f"cilia_snat{family}"]))


EACH = pytest.mark.parametrize("proto", ["tcp", "udp", "sctp", "echo"])


@EACH
@pytest.mark.parametrize("sport", [40000, 1000], ids=["own-port", "other-port"])
@FAMILIES
def test_a_flow_leaves_with_the_nodes_address_and_comes_back(
    node: Node, family: int, proto: str, sport: int
) -> None:
    for _ in range(2):
        packet = sent(POD[family], WORLD[family], request(family, proto, sport))
        verdict, out = node.run(packet, OUT)
        assert verdict == PASS["tc"]
        assert (out[1].src, out[1].dst) == (NODE[family], WORLD[family])
        port = port_of(out)
        assert port == sport if sport == 40000 else 32768 <= port <= 65535
    answer = sent(WORLD[family], NODE[family], reply(family, proto, port))
    verdict, out = node.run(answer, IN)
    assert verdict == PASS["tc"]
    assert (out[1].src, out[1].dst) == (WORLD[family], POD[family])
    assert port_of(out, "dport") == sport
    assert len(translations(node, family)) == 2


@FAMILIES
def test_two_workloads_have_a_port_each(node: Node, family: int) -> None:
    ports = {}
    for pod in (POD, OTHER_POD):
        _, out = node.run(sent(pod[family], WORLD[family], request(family, "udp")), OUT)
        ports[pod[family]] = port_of(out)
    assert len(set(ports.values())) == 2
    for address, port in ports.items():
        _, out = node.run(sent(WORLD[family], NODE[family], reply(family, "udp", port)), IN)
        assert (out[1].dst, port_of(out, "dport")) == (address, 40000)


@EACH
@pytest.mark.parametrize(
    ("source", "destination"),
    [
        pytest.param(POD, REMOTE_POD, id="own-routes"),
        pytest.param(POD, OTHER_NODE, id="other-node"),
        pytest.param(POD, NODE, id="this-node"),
        pytest.param(REMOTE_POD, WORLD, id="no-workload-of-ours"),
        pytest.param(NODE, WORLD, id="node"),
    ],
)
@FAMILIES
def test_what_knows_the_way_back_sees_the_source(
    node: Node, family: int, proto: str, source: dict[int, str], destination: dict[int, str]
) -> None:
    untouched(node, sent(source[family], destination[family], request(family, proto)))
    assert translations(node, family) == {}


@FAMILIES
def test_the_longest_prefix_does_not_decide_but_any(node: Node, family: int) -> None:
    """A narrower exclusion inside of another one goes; what is left holds."""
    inner = {4: "10.208.3.0/24", 6: "fd00:208::/64"}[family]
    node.datapath.spare(inner)
    packet = sent(POD[family], REMOTE_POD[family], request(family, "udp"))
    untouched(node, packet)
    from bpf.maps import masquerade
    from tables.addressing import Prefix

    prefix = Prefix.parse(inner)
    raw = node.datapath.maps[masquerade.NAMES[family == 6]]
    raw.delete(masquerade.encode_key(prefix.ip.packed, prefix.length))
    untouched(node, packet)


@FAMILIES
def test_a_flow_stays_as_it_began(node: Node, family: int) -> None:
    """Also when its destination becomes one that knows the way back."""
    address = {4: "198.51.100.99", 6: "2001:db8:77::99"}[family]
    packet = sent(POD[family], address, request(family, "tcp"))
    _, out = node.run(packet, OUT)
    node.datapath.cluster_node(address)
    _, again = node.run(packet, OUT)
    assert bytes(out) == bytes(again)
    node.datapath.maps[NODE_MAPS[family == 6]].delete(packed(address))


@FAMILIES
@EACH
def test_what_the_world_asked_is_answered_by_the_workload_itself(
    node: Node, family: int, proto: str
) -> None:
    asked = sent(WORLD[family], POD[family], request(family, proto))
    untouched(node, asked, IN)
    answer = sent(POD[family], WORLD[family], reply(family, proto, 40000))
    untouched(node, answer)
    assert translations(node, family) == {}
    if proto in ("tcp", "sctp"):
        return
    # Another port was never asked, and who asked long ago waits no more.
    other = sent(POD[family], WORLD[family], reply(family, proto, 40001))
    _, out = node.run(other, OUT)
    assert out[1].src == NODE[family]
    raw = node.datapath.maps[f"cilia_ct{family}_any"]
    for key, entry in list(ct.connections(raw)):
        older = msgspec.structs.replace(entry, expires_s=int(time.monotonic()) - 1)
        raw.update(ct.encode_key(key), ct.encode_entry(older))
    _, out = node.run(answer, OUT)
    assert out[1].src == NODE[family]


@FAMILIES
def test_a_connection_of_the_world_whose_entry_was_forgotten_goes_on(
    node: Node, family: int
) -> None:
    """Its next packet is none that opens one, and the workload's answer keeps its source."""
    middle = TCP(sport=40000, dport=80, flags="PA")
    untouched(node, sent(WORLD[family], POD[family], middle), IN)
    untouched(node, sent(POD[family], WORLD[family], reply(family, "tcp", 40000)))
    assert translations(node, family) == {}
    _, out = node.run(sent(POD[family], WORLD[family], reply(family, "tcp", 40001)), OUT)
    assert out[1].src == NODE[family], "another port was never asked"


@FAMILIES
@pytest.mark.parametrize("proto", ["tcp", "udp", "echo"])
def test_what_did_not_come_in_by_a_device_of_the_node_was_not_asked_by_the_world(
    node: Node, family: int, proto: str
) -> None:
    """A late answer of the world looks like a question where the workload's program sees it."""
    untouched(node, sent(WORLD[family], POD[family], request(family, "udp")), IN)
    raw = node.datapath.maps[f"cilia_ct{family}_any"]
    ((_, asked),) = list(ct.connections(raw))
    late = sent(WORLD[family], POD[family], request(family, proto))
    entry = msgspec.structs.replace(asked, ifindex=node.namespace.ifindex("lxc0"))
    kind = "tcp" if proto == "tcp" else "any"
    raw = node.datapath.maps[f"cilia_ct{family}_{kind}"]
    raw.update(ct.encode_key(question(late)), ct.encode_entry(entry))
    _, out = node.run(sent(POD[family], WORLD[family], reply(family, proto, 40000)), OUT)
    assert out[1].src == NODE[family]


def question(packet: Packet) -> ct.CtKey:
    """Key of what the packet asks a workload."""
    head = packet[1].payload
    proto = packet[1].nh if packet[1].name == "IPv6" else packet[1].proto
    dport, sport = (head.dport, head.sport) if proto in (6, 17) else (0, head.id)
    destination, source = packed(packet[1].dst), packed(packet[1].src)
    return ct.CtKey(destination, source, dport, sport, proto, ct.Direction.INGRESS)


@FAMILIES
def test_other_nodes_and_pods_leave_no_trace_of_their_questions(node: Node, family: int) -> None:
    for source in (REMOTE_POD, OTHER_NODE):
        untouched(node, sent(source[family], POD[family], request(family, "udp")), IN)
    assert dict(node.datapath.maps[f"cilia_ct{family}_any"].items()) == {}


@FAMILIES
@pytest.mark.parametrize("kind", ["tcp", "udp", "echo", "error", "gre"])
def test_nobody_outside_sends_in_the_name_of_a_workload(node: Node, family: int, kind: str) -> None:
    """Its identity would be the workload's where the packet arrives."""
    for source, passes in ((POD, False), (REMOTE_POD, True)):
        if kind == "error":
            quoted = sent(OTHER_POD[family], WORLD[family], request(family, "udp"))
            packet = error(family, source[family], OTHER_POD[family], quoted)
        elif kind == "gre":
            packet = frame(source[family], OTHER_POD[family], Raw(b"gre"))
            packet[1].fields["nh" if family == 6 else "proto"] = 47
        else:
            packet = sent(source[family], OTHER_POD[family], request(family, kind))
        before = drops(node.datapath).get(lib.DROP_INVALID_SOURCE, 0)
        verdict, _ = node.run_part(packet, IN)
        assert verdict == (PASS if passes else DROPPED)["tc"]
        assert drops(node.datapath).get(lib.DROP_INVALID_SOURCE, 0) - before == (not passes)


def error(family: int, src: str, dst: str, quoted: Packet) -> Packet:
    """Too big, as a router says it."""
    size = (20 if family == 4 else 40) + 8
    about = bytes(quoted.payload)[:size]
    kind = ICMP(type=3, code=4, nexthopmtu=1400) if family == 4 else ICMPv6PacketTooBig(mtu=1400)
    return frame(src, dst, kind, about)


@FAMILIES
@pytest.mark.parametrize("proto", ["tcp", "udp", "echo"])
def test_an_error_about_a_flow_reaches_the_workload(node: Node, family: int, proto: str) -> None:
    packet = sent(POD[family], WORLD[family], request(family, proto, 1000))
    _, out = node.run(packet, OUT)
    assert port_of(out) != 1000
    verdict, got = node.run(error(family, ROUTER[family], NODE[family], out), IN)
    assert verdict == PASS["tc"]
    assert (got[1].src, got[1].dst) == (ROUTER[family], POD[family])
    kind = ICMP if family == 4 else ICMPv6PacketTooBig
    quoted = bytes(got[kind].payload)
    header = 20 if family == 4 else 40
    inner = (IP if family == 4 else IPv6)(quoted)
    assert (inner.src, inner.dst) == (POD[family], WORLD[family])
    if proto == "echo":
        assert int.from_bytes(quoted[header + 4 : header + 6]) == 1000
    else:
        assert int.from_bytes(quoted[header : header + 2]) == 1000


@FAMILIES
def test_an_error_of_a_workload_is_about_its_own_flows_alone(node: Node, family: int) -> None:
    opened = sent(POD[family], WORLD[family], request(family, "udp", 1000))
    _, out = node.run(opened, OUT)
    answer = sent(WORLD[family], POD[family], reply(family, "udp", 1000))
    kind = ICMP(type=3, code=3) if family == 4 else ICMPv6DestUnreach(code=4)
    about = bytes(answer.payload)[: (20 if family == 4 else 40) + 8]
    verdict, got = node.run(frame(POD[family], WORLD[family], kind, about), OUT)
    assert (verdict, got[1].src) == (PASS["tc"], NODE[family])
    quoted = bytes(got[ICMP if family == 4 else ICMPv6DestUnreach].payload)
    inner = (IP if family == 4 else IPv6)(quoted)
    assert (inner.src, inner.dst) == (WORLD[family], NODE[family])
    assert quoted[(22 if family == 4 else 42) :][:2] == port_of(out).to_bytes(2)
    # In the name of a neighbour, and about nothing that there is.
    forged = frame(OTHER_POD[family], WORLD[family], kind, about)
    assert refused(node, forged) == lib.DROP_NAT_NO_MAPPING
    other = sent(WORLD[family], POD[family], reply(family, "udp", 1001))
    about = bytes(other.payload)[: (20 if family == 4 else 40) + 8]
    nothing = frame(POD[family], WORLD[family], kind, about)
    assert refused(node, nothing) == lib.DROP_NAT_NO_MAPPING


def other_protocols(family: int, src: str, dst: str) -> dict[str, Packet]:
    network = IP(src=src, dst=dst) if family == 4 else IPv6(src=src, dst=dst)
    gre = network.copy()
    gre.fields["proto" if family == 4 else "nh"] = 47
    made = {"gre": Ether(src=MAC_CLIENT, dst=MAC_NODE) / gre / Raw(bytes(40))}
    if family == 4:
        made["timestamp"] = frame(src, dst, ICMP(type=13))
    return made


@FAMILIES
def test_what_has_no_port_to_translate_does_not_leave(node: Node, family: int) -> None:
    for packet in other_protocols(family, POD[family], WORLD[family]).values():
        assert refused(node, packet) == lib.DROP_NAT_PROTOCOL
    for source, destination in ((POD, REMOTE_POD), (NODE, WORLD), (REMOTE_POD, WORLD)):
        for packet in other_protocols(family, source[family], destination[family]).values():
            untouched(node, packet)


@FAMILIES
def test_what_cannot_be_parsed_does_not_leave(node: Node, family: int) -> None:
    for source, verdict in ((POD, DROPPED["tc"]), (NODE, PASS["tc"])):
        network = (
            IP(src=source[4], dst=WORLD[4], proto=17)
            if family == 4
            else IPv6(src=source[6], dst=WORLD[6], nh=17)
        )
        got, _ = node.run_part(Ether(src=MAC_CLIENT, dst=MAC_NODE) / network, OUT)
        assert got == verdict


def fragments_of(family: int, src: str, dst: str, head: Packet) -> list[Packet]:
    body = head / Raw(bytes(range(256)) * 3)
    ether = Ether(src=MAC_CLIENT, dst=MAC_NODE)
    if family == 4:
        return [ether / part for part in fragment(IP(src=src, dst=dst, id=77) / body, 256)]
    whole = IPv6(src=src, dst=dst) / IPv6ExtHdrFragment(id=77) / body
    return [ether / part for part in fragment6(whole, 300)]


@pytest.mark.parametrize("proto", ["udp", "echo"])
@FAMILIES
def test_fragments_leave_together(node: Node, family: int, proto: str) -> None:
    head = request(family, proto, 40000)
    before = fragments_of(family, POD[family], WORLD[family], head)
    after = fragments_of(family, NODE[family], WORLD[family], head)
    assert len(before) >= 3
    for packet, expected in zip(before, after, strict=True):
        assert node.run_part(packet, OUT) == (PASS["tc"], bytes(expected))
    back = fragments_of(family, WORLD[family], NODE[family], reply(family, proto, 40000))
    at_pod = fragments_of(family, WORLD[family], POD[family], reply(family, proto, 40000))
    for packet, expected in zip(back, at_pod, strict=True):
        assert node.run_part(packet, IN) == (PASS["tc"], bytes(expected))


@FAMILIES
def test_a_fragment_whose_first_one_was_not_seen_does_not_leave(node: Node, family: int) -> None:
    late = fragments_of(family, POD[family], WORLD[family], request(family, "udp"))[1]
    assert refused(node, late) == lib.DROP_FRAG_NOT_FOUND
    untouched(node, fragments_of(family, NODE[family], WORLD[family], request(family, "udp"))[1])


@FAMILIES
def test_a_device_without_an_address_sends_nothing(node: Node, family: int) -> None:
    try:
        node.datapath.netdev(node.ifindex, None, None)
        packet = sent(POD[family], WORLD[family], request(family, "tcp"))
        assert refused(node, packet) == lib.DROP_NO_SOURCE
        untouched(node, sent(NODE[family], WORLD[family], request(family, "tcp")))
    finally:
        node.datapath.netdev(node.ifindex, NODE[4], NODE[6])


@FAMILIES
def test_a_flow_that_finds_no_port_does_not_leave(narrow_node: Node, family: int) -> None:
    node = narrow_node
    node.datapath.clear()

    def opened(sport: int) -> Packet:
        return sent(POD[family], WORLD[family], request(family, "tcp", sport))

    ports = set()
    for sport in range(1000, 1004):
        _, out = node.run(opened(sport), OUT)
        ports.add(port_of(out))
        answer = sent(WORLD[family], NODE[family], reply(family, "tcp", port_of(out)))
        node.run(answer, IN)
        ack = sent(POD[family], WORLD[family], TCP(sport=sport, dport=80, flags="A"))
        node.run(ack, OUT)
    assert ports == {40000, 40001, 40002, 40003}
    assert refused(node, opened(1004)) == lib.DROP_NAT_NO_MAPPING
    # Another destination has ports of its own, and those that are open go on.
    elsewhere = sent(POD[family], ROUTER[family], request(family, "tcp", 1004))
    assert node.run(elsewhere, OUT)[1][1].src == NODE[family]
    assert port_of(node.run(opened(1000), OUT)[1]) in ports


@FAMILIES
def test_replies_to_a_workload_that_is_gone_reach_nobody(node: Node, family: int) -> None:
    packet = sent(POD[family], WORLD[family], request(family, "udp", 1000))
    _, out = node.run(packet, OUT)
    port = port_of(out)
    raw = node.datapath.maps[f"cilia_snat{family}"]
    for key, value in translations(node, family).items():
        if key.direction == NatDirection.OUT:
            raw.delete(nat.encode_key(key))
        else:
            flags = value.flags | NatFlag.ENDED | NatFlag.CLOSING
            ended = msgspec.structs.replace(value, flags=int(flags))
            raw.update(nat.encode_key(key), nat.encode_value(ended))
    answer = sent(WORLD[family], NODE[family], reply(family, "udp", port))
    untouched(node, answer, IN)
    untouched(node, error(family, ROUTER[family], NODE[family], out), IN)
    # Who has its address next may use the same ports.
    _, again = node.run(packet, OUT)
    _, got = node.run(sent(WORLD[family], NODE[family], reply(family, "udp", port_of(again))), IN)
    assert (got[1].dst, port_of(got, "dport")) == (POD[family], 1000)


@FAMILIES
def test_two_cpus_give_a_flow_one_port(node: Node, family: int) -> None:
    packets = [
        sent(POD[family], WORLD[family], request(family, "udp", 1000 + number))
        for number in range(100)
    ]
    children = []
    for _ in range(2):
        pid = os.fork()
        if pid == 0:
            for packet in packets:
                node.run(packet, OUT)
            os._exit(0)
        children.append(pid)
    assert [os.waitpid(pid, 0)[1] for pid in children] == [0, 0]
    entries = translations(node, family)
    assert len(entries) == 2 * len(packets)
    for key, value in entries.items():
        assert nat.partner(nat.partner(key, value), entries[nat.partner(key, value)]) == key


@FAMILIES
def test_a_family_that_is_off_is_left_alone(family: int) -> None:
    off = {f"masquerade{family}": b"\0"}
    with ExitStack() as stack:
        node = world(stack, **off)
        for proto in ("tcp", "echo"):
            untouched(node, sent(POD[family], WORLD[family], request(family, proto)))
        for packet in other_protocols(family, POD[family], WORLD[family]).values():
            untouched(node, packet)
        other = 10 - family
        _, out = node.run(sent(POD[other], WORLD[other], request(other, "tcp")), OUT)
        assert out[1].src == NODE[other]
