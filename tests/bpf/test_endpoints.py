# SPDX-License-Identifier: Apache-2.0
"""A workload whose network is ours sends in nobody else's name."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from scapy.layers.inet import ICMP, IP, UDP
from scapy.layers.inet6 import (
    ICMPv6EchoRequest,
    ICMPv6MLReport2,
    ICMPv6ND_NA,
    ICMPv6ND_NS,
    ICMPv6ND_RA,
    ICMPv6ND_Redirect,
    ICMPv6ND_RS,
    ICMPv6NDOptDstLLAddr,
    IPv6,
    IPv6ExtHdrHopByHop,
)
from scapy.layers.l2 import ARP, Dot1Q, Ether
from scapy.packet import Packet, Raw

from bpf.layout import header
from bpf.maps import endpoints as codec
from tests.bpf.datapath_world import Datapath, loaded, packed
from tests.bpf.lxc_world import (
    CLIENT_PORT,
    GO_ON,
    REDIRECT,
    V4,
    V6,
    Family,
    expect,
    packet,
    refused,
)
from tests.bpf.packets import MAC_NODE_ONE, MAC_POD_ONE, packet_diff

pytestmark = [pytest.mark.root, pytest.mark.timeout(60)]

#: What BPF_PROG_RUN says that a packet came by.
LOOPBACK = 1

MAC_THIEF = "02:00:00:00:00:99"
POD_LINK_LOCAL, NODE_LINK_LOCAL = "fe80::11", "fe80::1"
ROUTER = "10.0.1.1"


def mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


@pytest.fixture(scope="module")
def datapath() -> Iterator[Datapath]:
    with loaded(["lxc"], {"pod_network": b"\1"}) as made:
        endpoint(made)
        yield made


def endpoint(datapath: Datapath, ipv4: str = V4.pod, ipv6: str = V6.pod, flags: int = 0) -> None:
    value = codec.EndpointValue(
        7,
        300,
        packed(ipv4) if ipv4 else b"",
        packed(ipv6) if ipv6 else b"",
        mac(MAC_POD_ONE),
        mac(MAC_NODE_ONE),
        flags,
    )
    raw = datapath.maps[codec.NAME]
    raw.update(codec.encode_key(LOOPBACK), codec.encode_value(value))


def test_neighbours_of_a_chained_workload_answer_for_themselves() -> None:
    with loaded(["lxc"], {"pod_network": b"\1"}) as made:
        endpoint(made, flags=codec.CHAINED)
        question = eth() / ARP(op=1, hwsrc=MAC_POD_ONE, psrc=V4.pod, pdst=ROUTER)
        expect(made, "from_pod", question, GO_ON, None)
        lie = eth() / ARP(op=1, hwsrc=MAC_POD_ONE, psrc=ROUTER, pdst=V4.pod)
        assert refused(made, "from_pod", lie) == SOURCE


def eth(source: str = MAC_POD_ONE) -> Packet:
    """A frame to the device that BPF_PROG_RUN says that it came by."""
    return Ether(src=source, dst="00:00:00:00:00:00")


def four(source: str, destination: str = "192.0.2.7") -> Packet:
    return eth() / IP(src=source, dst=destination) / UDP(sport=1, dport=2) / Raw(b"x")


def six(source: str, destination: str = "2001:db8::7") -> Packet:
    return eth() / IPv6(src=source, dst=destination) / UDP(sport=1, dport=2) / Raw(b"x")


def arp(
    sender: str,
    sender_mac: str = MAC_POD_ONE,
    source: str = MAC_POD_ONE,
    *,
    target: str = ROUTER,
    op: int = 1,
) -> Packet:
    return eth(source) / ARP(op=op, hwsrc=sender_mac, psrc=sender, pdst=target)


HONEST = {
    "IPv4": four(V4.pod),
    "IPv4, another protocol": eth() / IP(src=V4.pod, dst="192.0.2.7", proto=47) / Raw(b"gre"),
    "IPv4, ping": eth() / IP(src=V4.pod, dst="192.0.2.7") / ICMP(),
    "IPv6": six(V6.pod),
    "IPv6 on the link": six(POD_LINK_LOCAL, NODE_LINK_LOCAL),
    "ARP, is it free?": arp("0.0.0.0"),
    "ND on the link": eth()
    / IPv6(src=POD_LINK_LOCAL, dst="ff02::1:ff00:1", hlim=255)
    / ICMPv6ND_NS(tgt=NODE_LINK_LOCAL),
    "ND for itself": eth() / IPv6(src=V6.pod, dst="ff02::1:ff00:11") / ICMPv6ND_NS(tgt=V6.pod),
    "ND that came from afar": eth()
    / IPv6(src=V6.pod, dst="ff02::1:ff00:1", hlim=64)
    / ICMPv6ND_NS(tgt="fd00:1::1"),
    "ARP for itself": arp(V4.pod, target=V4.pod),
    "ARP, an answer": arp(V4.pod, op=2),
    "ND, is it free?": eth() / IPv6(src="::", dst="ff02::1:ff00:11") / ICMPv6ND_NS(tgt=V6.pod),
    "RS": eth() / IPv6(src="::", dst="ff02::2") / ICMPv6ND_RS(),
    "MLD": eth() / IPv6(src="::", dst="ff02::16") / IPv6ExtHdrHopByHop() / ICMPv6MLReport2(),
    "IPv4, error": eth()
    / IP(src=V4.pod, dst="192.0.2.7")
    / ICMP(type=3, code=3)
    / IP(src="192.0.2.7", dst=V4.pod)
    / UDP(sport=5, dport=6),
}


@pytest.mark.parametrize("name", HONEST)
def test_what_a_workload_may_send_passes_untouched(datapath: Datapath, name: str) -> None:
    result = datapath.program("from_pod").run(bytes(HONEST[name]))
    assert (result.retval, result.data) == (GO_ON, bytes(HONEST[name]))


NEIGHBOR = {4: V4.backend, 6: V6.backend}
MAC_NEIGHBOR, MAC_NEIGHBOR_NODE = "02:00:00:00:00:12", "02:00:00:00:01:12"
ELSEWHERE = 77


def neighbor(datapath: Datapath, ifindex: int = ELSEWHERE) -> None:
    """Another workload of this node."""
    place = codec.EndpointPlace(ifindex, 301, 8, mac(MAC_NEIGHBOR), mac(MAC_NEIGHBOR_NODE))
    for address in NEIGHBOR.values():
        raw = datapath.maps[codec.BY_ADDRESS]
        raw.update(codec.encode_address(packed(address)), codec.encode_place(place))


@pytest.mark.parametrize("family", [4, 6])
def test_another_workload_of_the_node_gets_it_at_once(datapath: Datapath, family: int) -> None:
    neighbor(datapath)
    sent = four(V4.pod, NEIGHBOR[4]) if family == 4 else six(V6.pod, NEIGHBOR[6])
    result = datapath.program("from_pod").run(bytes(sent))
    expected = sent.copy()
    expected.src, expected.dst = MAC_NEIGHBOR_NODE, MAC_NEIGHBOR
    if family == 4:
        expected[IP].ttl = 63
    else:
        expected[IPv6].hlim = 63
    assert result.retval == REDIRECT
    assert not packet_diff(bytes(expected), result.data)


TO_THE_STACK = {
    "its last hop": eth() / IP(src=V4.pod, dst=NEIGHBOR[4], ttl=1) / UDP(sport=1, dport=2),
    "another device's frame": Ether(src=MAC_POD_ONE, dst=MAC_THIEF)
    / IP(src=V4.pod, dst=NEIGHBOR[4])
    / UDP(sport=1, dport=2),
    "another node's workload": four(V4.pod, V4.other_backend),
    "the node": four(V4.pod, ROUTER),
}


@pytest.mark.parametrize("name", TO_THE_STACK)
def test_what_the_stack_knows_better_is_left_to_it(datapath: Datapath, name: str) -> None:
    neighbor(datapath)
    result = datapath.program("from_pod").run(bytes(TO_THE_STACK[name]))
    assert (result.retval, result.data) == (GO_ON, bytes(TO_THE_STACK[name]))


def test_an_error_goes_where_its_header_says(datapath: Datapath) -> None:
    """Not where the packet that it quotes was going."""
    neighbor(datapath)
    quoted = IP(src=NEIGHBOR[4], dst=V4.pod) / UDP(sport=5, dport=6)
    error = eth() / IP(src=V4.pod, dst=NEIGHBOR[4]) / ICMP(type=3, code=3) / quoted
    result = datapath.program("from_pod").run(bytes(error))
    assert (result.retval, Ether(result.data).dst) == (REDIRECT, MAC_NEIGHBOR)


def test_other_protocols_are_delivered_too(datapath: Datapath) -> None:
    neighbor(datapath)
    sent = eth() / IP(src=V4.pod, dst=NEIGHBOR[4], proto=47) / Raw(b"gre")
    result = datapath.program("from_pod").run(bytes(sent))
    assert (result.retval, Ether(result.data).dst) == (REDIRECT, MAC_NEIGHBOR)


def test_all_takes_the_stack_where_its_rules_are_to_see_it() -> None:
    constants = {"pod_network": b"\1", "host_legacy_routing": b"\1"}
    with loaded(["lxc"], constants) as made:
        endpoint(made)
        neighbor(made)
        result = made.program("from_pod").run(bytes(four(V4.pod, NEIGHBOR[4])))
    assert result.retval == GO_ON


REASONS = header("drop_types.h").numbers("DROP_")


@pytest.mark.parametrize("target", [ROUTER, "192.0.2.7"])
def test_arp_is_answered_with_the_nodes_end(datapath: Datapath, target: str) -> None:
    result = datapath.program("from_pod").run(bytes(arp(V4.pod, target=target)))
    answer = Ether(result.data)
    assert result.retval == REDIRECT
    assert (answer.src, answer.dst) == (MAC_NODE_ONE, MAC_POD_ONE)
    told = answer[ARP]
    assert (told.op, told.hwsrc, told.psrc) == (2, MAC_NODE_ONE, target)
    assert (told.hwdst, told.pdst) == (MAC_POD_ONE, V4.pod)


@pytest.mark.parametrize("source", [V6.pod, POD_LINK_LOCAL])
@pytest.mark.parametrize("tail", [b"", b"\1\1\2\0\0\0\0\x11", bytes(64)])
def test_nd_is_answered_with_the_nodes_end(datapath: Datapath, source: str, tail: bytes) -> None:
    solicitation = ICMPv6ND_NS(tgt="fd00:1::1") / Raw(tail)
    sent = eth() / IPv6(src=source, dst="ff02::1:ff00:1", hlim=255) / solicitation
    result = datapath.program("from_pod").run(bytes(sent))
    answer = Ether(result.data)
    assert result.retval == REDIRECT
    assert (answer.src, answer.dst) == (MAC_NODE_ONE, MAC_POD_ONE)
    assert (answer[IPv6].src, answer[IPv6].dst) == ("fd00:1::1", source)
    assert (answer[IPv6].hlim, answer[IPv6].plen) == (255, 32)
    told = answer[ICMPv6ND_NA]
    assert (told.R, told.S, told.O, told.tgt) == (1, 1, 1, "fd00:1::1")
    assert answer[ICMPv6NDOptDstLLAddr].lladdr == MAC_NODE_ONE
    assert not packet_diff(recomputed(answer), result.data)


def recomputed(packet: Packet) -> bytes:
    """The packet with its checksum as scapy makes it."""
    del packet[ICMPv6ND_NA].cksum
    return bytes(packet)


SOURCE, MAC = REASONS["INVALID_SOURCE"], REASONS["INVALID_SOURCE_MAC"]
FORGED = {
    "IPv4": (four("10.0.1.99"), SOURCE),
    "IPv4, the gateway's": (four(ROUTER), SOURCE),
    "IPv4, nobody's": (four("0.0.0.0", "255.255.255.255"), SOURCE),
    "IPv4, an error in another's name": (
        eth()
        / IP(src="10.0.1.99", dst="192.0.2.7")
        / ICMP(type=3, code=3)
        / IP(src="192.0.2.7", dst=V4.pod)
        / UDP(sport=5, dport=6),
        SOURCE,
    ),
    "IPv4, GRE": (eth() / IP(src="10.0.1.99", dst="192.0.2.7", proto=47) / Raw(b"gre"), SOURCE),
    "IPv4, a later fragment": (
        eth() / IP(src="10.0.1.99", dst="192.0.2.7", frag=9) / Raw(b"12345678"),
        SOURCE,
    ),
    "IPv6": (six("fd00:1::99"), SOURCE),
    "IPv6, ping": (eth() / IPv6(src="fd00:1::99", dst="fd00:1::1") / ICMPv6EchoRequest(), SOURCE),
    "IPv6, nobody's": (six("::"), SOURCE),
    "IPv6, of the link to elsewhere": (six(POD_LINK_LOCAL), SOURCE),
    "ARP for another": (arp("10.0.1.99"), SOURCE),
    "ARP with another device": (arp(V4.pod, MAC_THIEF), MAC),
    "frame of another device": (eth(MAC_THIEF) / IP(src=V4.pod, dst="192.0.2.7"), MAC),
    "ARP in a frame of another device": (arp(V4.pod, MAC_POD_ONE, MAC_THIEF), MAC),
    "another protocol": (
        Ether(src=MAC_POD_ONE, dst=MAC_NODE_ONE, type=0x88CC) / Raw(b"lldp"),
        REASONS["UNKNOWN_L3"],
    ),
    "a VLAN": (eth() / Dot1Q(vlan=7) / IP(src=V4.pod, dst="192.0.2.7"), REASONS["UNKNOWN_L3"]),
    "the node's loopback": (four(V4.pod, "127.0.0.1"), REASONS["NODE_LOOPBACK"]),
    "a router's advertisement": (
        eth() / IPv6(src=POD_LINK_LOCAL, dst="ff02::1", hlim=255) / ICMPv6ND_RA(),
        REASONS["FORBIDDEN_ICMP6"],
    ),
    "a redirect": (
        eth() / IPv6(src=POD_LINK_LOCAL, dst=NODE_LINK_LOCAL, hlim=255) / ICMPv6ND_Redirect(),
        REASONS["FORBIDDEN_ICMP6"],
    ),
    "ARP cut short": (
        bytes(Ether(src=MAC_POD_ONE, dst=MAC_NODE_ONE, type=0x0806)) + b"\0\1\x08",
        REASONS["INVALID_PACKET"],
    ),
}


@pytest.mark.parametrize("name", FORGED)
def test_what_is_not_its_own_is_dropped_with_the_reason(datapath: Datapath, name: str) -> None:
    sent, reason = FORGED[name]
    assert refused(datapath, "from_pod", sent) == reason


def test_a_family_that_it_does_not_have_is_nobodys(datapath: Datapath) -> None:
    endpoint(datapath, ipv6="")
    try:
        assert refused(datapath, "from_pod", six(V6.pod)) == SOURCE
        assert refused(datapath, "from_pod", six("::")) == SOURCE
    finally:
        endpoint(datapath)


def test_a_device_of_no_endpoint_sends_nothing(datapath: Datapath) -> None:
    datapath.maps[codec.NAME].delete(codec.encode_key(LOOPBACK))
    try:
        assert refused(datapath, "from_pod", four(V4.pod)) == REASONS["ENDPOINT_NOT_READY"]
    finally:
        endpoint(datapath)


def test_a_device_of_no_endpoint_gets_nothing_but_what_finds_it(datapath: Datapath) -> None:
    workload(datapath)
    datapath.maps[codec.NAME].delete(codec.encode_key(LOOPBACK))
    asked = IPv6(src=NODE_LINK_LOCAL, dst="ff02::1:ff00:11", hlim=255) / ICMPv6ND_NS(tgt=V6.pod)
    try:
        for sent in (four("192.0.2.7", V4.pod), six("2001:db8::7", V6.pod)):
            assert refused(datapath, "to_pod", sent) == REASONS["ENDPOINT_NOT_READY"]
        for finding in (eth() / asked, arp(ROUTER, target=V4.pod)):
            assert datapath.program("to_pod").run(bytes(finding)).retval == GO_ON
    finally:
        endpoint(datapath)


def test_pods_of_another_plugin_are_not_looked_at() -> None:
    with loaded(["lxc"]) as made:
        result = made.program("from_pod").run(bytes(four("10.0.1.99")))
    assert result.retval == GO_ON


def test_a_value_comes_back_as_it_was() -> None:
    value = codec.EndpointValue(65_535, 1 << 24, packed(V4.pod), packed(V6.pod), b"m" * 6, b"n" * 6)
    assert codec.decode_value(codec.encode_value(value)) == value
    assert codec.decode_key(codec.encode_key(1 << 20)) == 1 << 20
    place = codec.EndpointPlace(1 << 20, 1 << 24, 65_535, b"m" * 6, b"n" * 6)
    assert codec.decode_place(codec.encode_place(place)) == place
    for address in (V4.pod, V6.pod):
        raw = codec.encode_address(packed(address))
        assert (len(raw), codec.decode_address(raw)) == (20, packed(address))


# -- pods of another plugin, on a node whose pod network is ours

FOREIGN = {"v4": four("10.9.9.9"), "v6": six("fd09::9")}


@pytest.mark.parametrize(
    "sent",
    [
        *FOREIGN.values(),
        arp("10.9.9.9"),
        arp("0.0.0.0"),
        six("fe80::9", NODE_LINK_LOCAL),
        eth() / Dot1Q(vlan=5) / IP(src=V4.pod, dst="192.0.2.7") / UDP(),
        eth(MAC_THIEF) / IP(src="10.9.9.9", dst="192.0.2.7", proto=47) / Raw(b"gre"),
    ],
)
def test_pods_of_another_plugin_send_as_it_allows(datapath: Datapath, sent: Packet) -> None:
    workload(datapath)
    result = datapath.program("from_other_pod").run(bytes(sent))
    assert (result.retval, result.data) == (GO_ON, bytes(sent))


@pytest.mark.parametrize(
    "sent", [four(V4.pod), six(V6.pod), arp(V4.pod), four(V4.pod) / Raw(bytes(100))]
)
def test_pods_of_another_plugin_do_not_send_in_the_name_of_ours(
    datapath: Datapath, sent: Packet
) -> None:
    workload(datapath)
    assert refused(datapath, "from_other_pod", sent) == REASONS["INVALID_SOURCE"]


def test_arp_of_another_plugins_pod_that_is_cut_is_refused(datapath: Datapath) -> None:
    cut = bytes(arp("10.9.9.9"))[:20]
    assert refused(datapath, "from_other_pod", cut) == REASONS["INVALID_PACKET"]


def workload(datapath: Datapath) -> None:
    for address in (V4.pod, V6.pod):
        datapath.workload(address)


@pytest.mark.parametrize("family", [V4, V6], ids=["v4", "v6"])
def test_pods_of_another_plugin_reach_services(datapath: Datapath, family: Family) -> None:
    client = "fd09::9" if family is V6 else "10.9.9.9"
    datapath.service(family.service, 80, 17, [(family.backend, 8080)], rev_nat=1)
    sent = packet("udp", client, CLIENT_PORT, family.service, 80)
    expect(
        datapath,
        "from_other_pod",
        sent,
        GO_ON,
        packet("udp", client, CLIENT_PORT, family.backend, 8080),
    )
    answer = packet("udp", family.backend, 8080, client, CLIENT_PORT)
    expect(
        datapath,
        "to_pod",
        answer,
        GO_ON,
        packet("udp", family.service, 80, client, CLIENT_PORT),
    )
