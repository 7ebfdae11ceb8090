# SPDX-License-Identifier: Apache-2.0
"""A workload's device, packet by packet: which come out how, and which are refused."""

from __future__ import annotations

import os
import socket

import pytest
from scapy.layers.inet import ICMP, IP, TCP
from scapy.layers.inet6 import ICMPv6DestUnreach, ICMPv6EchoRequest, IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw

from bpf.events import read_metrics
from bpf.libbpf import lib
from bpf.maps import lb
from bpf.maps.ct import CtFlag
from bpf.maps.lb import ServiceValue
from bpf.maps.lb_numbers import ServiceFlag
from bpf.maps.percpu import PerCpuMap
from tests.bpf.datapath_world import Datapath, drops, loaded, packed
from tests.bpf.lxc_world import (
    CLIENT_PORT,
    EACH_PROTOCOL,
    FAMILIES,
    GO_ON,
    PROTOCOLS,
    REDIRECT,
    SHOT,
    V4,
    V6,
    Family,
    behind_key,
    connections,
    expect,
    now_s,
    only_drop,
    packet,
    refused,
    service_key,
    web,
)
from tests.bpf.packets import MAC_NODE_ONE, MAC_POD_ONE
from tests.bpf.test_packet import Ends, fragments_of, long_udp

pytestmark = pytest.mark.root


# -- there and back --


@FAMILIES
@EACH_PROTOCOL
def test_service_goes_to_a_backend_and_its_answer_comes_back(
    pod: Datapath, family: Family, proto: str
) -> None:
    web(pod, family, proto)
    sent = packet(proto, family.pod, CLIENT_PORT, family.service, 80)
    there = packet(proto, family.pod, CLIENT_PORT, family.backend, 8080)
    expect(pod, "from_pod", sent, GO_ON, there)
    answer = packet(proto, family.backend, 8080, family.pod, CLIENT_PORT, flags="SA", turned=True)
    seen = packet(proto, family.service, 80, family.pod, CLIENT_PORT, flags="SA", turned=True)
    expect(pod, "to_pod", answer, GO_ON, seen)


@FAMILIES
@EACH_PROTOCOL
def test_both_entries_are_made(pod: Datapath, family: Family, proto: str) -> None:
    web(pod, family, proto)
    sent = packet(proto, family.pod, CLIENT_PORT, family.service, 80)
    pod.program("from_pod").run(bytes(sent))
    found = connections(pod, family, proto)
    assert set(found) == {behind_key(family, proto), service_key(family, proto)}
    for entry in found.values():
        assert (entry.rev_nat, entry.backend_id) == (1, 101)
        assert entry.ifindex == 1
        assert now_s() - 1 <= entry.created_s <= now_s()
        assert entry.expires_s - entry.created_s == 60


@FAMILIES
def test_what_belongs_to_no_service_passes_and_datagrams_are_not_tracked(
    pod: Datapath, family: Family
) -> None:
    web(pod, family)
    for proto, dst, dport in (
        ("udp", family.router, 53),
        ("sctp", family.other_backend, 80),
        ("udp", family.service, 80),
    ):
        sent = packet(proto, family.pod, CLIENT_PORT, dst, dport)
        expect(pod, "from_pod", sent, GO_ON, None)
        expect(pod, "to_pod", packet(proto, dst, dport, family.pod, 1234), GO_ON, None)
        assert connections(pod, family, proto) == {}


@FAMILIES
@EACH_PROTOCOL
def test_workload_reaches_itself(pod: Datapath, family: Family, proto: str) -> None:
    pod.service(family.service, 80, PROTOCOLS[proto], [(family.pod, 8080)], rev_nat=1)
    sent = packet(proto, family.pod, CLIENT_PORT, family.service, 80)
    turned = packet(proto, family.loopback, CLIENT_PORT, family.pod, 8080, turned=True)
    expect(pod, "from_pod", sent, REDIRECT, turned)
    expect(pod, "to_pod", turned, GO_ON, None)
    answer = packet(proto, family.pod, 8080, family.loopback, CLIENT_PORT, flags="SA")
    seen = packet(proto, family.service, 80, family.pod, CLIENT_PORT, flags="SA", turned=True)
    expect(pod, "from_pod", answer, REDIRECT, seen)
    expect(pod, "to_pod", seen, GO_ON, None)
    flags = {entry.flags & CtFlag.HAIRPIN for entry in connections(pod, family, proto).values()}
    assert flags == {CtFlag.HAIRPIN}


@FAMILIES
def test_loopback_that_nobody_used_passes(pod: Datapath, family: Family) -> None:
    expect(pod, "from_pod", packet("udp", family.pod, 8080, family.loopback, 1), GO_ON, None)


def error_about(quoted: Packet, src: str) -> Packet:
    """A port-unreachable from ``src`` to who sent the packet; what is quoted has no Ethernet."""
    network = quoted[1]
    ether = Ether(src=MAC_NODE_ONE, dst=MAC_POD_ONE)
    if ":" in src:
        error = IPv6(src=src, dst=network.src) / ICMPv6DestUnreach(code=4)
    else:
        error = IP(src=src, dst=network.src) / ICMP(type=3, code=3)
    return ether / error / Raw(bytes(network))


@FAMILIES
@pytest.mark.parametrize("by", ["backend", "router"])
def test_error_about_what_was_sent_names_the_service(
    pod: Datapath, family: Family, by: str
) -> None:
    web(pod, family, "udp")
    sent = packet("udp", family.pod, CLIENT_PORT, family.service, 80)
    there = packet("udp", family.pod, CLIENT_PORT, family.backend, 8080)
    pod.program("from_pod").run(bytes(sent))
    before = connections(pod, family, "udp")
    source = {"backend": (family.backend, family.service), "router": (family.router,) * 2}[by]
    error, seen = error_about(there, source[0]), error_about(sent, source[1])
    expect(pod, "to_pod", error, GO_ON, seen)
    assert connections(pod, family, "udp") == before


@FAMILIES
def test_error_of_the_client_about_an_answer_reaches_the_backend(
    pod: Datapath, family: Family
) -> None:
    web(pod, family, "udp")
    sent = packet("udp", family.pod, CLIENT_PORT, family.service, 80)
    seen = packet("udp", family.service, 80, family.pod, CLIENT_PORT)
    answer = packet("udp", family.backend, 8080, family.pod, CLIENT_PORT)
    error, expected = error_about(seen, family.pod), error_about(answer, family.pod)
    expect(pod, "from_pod", error, GO_ON, None)
    assert connections(pod, family, "udp") == {}
    pod.program("from_pod").run(bytes(sent))
    expect(pod, "from_pod", error, GO_ON, expected)


@FAMILIES
def test_all_fragments_go_to_the_backend(pod: Datapath, family: Family) -> None:
    web(pod, family, "udp")
    client = Ends(family.pod, CLIENT_PORT, family.service, 80)
    behind = Ends(family.pod, CLIENT_PORT, family.backend, 8080)
    for sent, there in zip(
        fragments_of(client, long_udp), fragments_of(behind, long_udp), strict=True
    ):
        expect(pod, "from_pod", sent, GO_ON, there)


# -- refusals --


def wildcard(datapath: Datapath, family: Family) -> None:
    """The row that stands for every other port of the service's address."""
    address = packed(family.service)
    value = ServiceValue(flags=ServiceFlag.NON_ROUTABLE)
    key = lb.encode_service_key(address, 0, 0, 0)
    datapath.lb.of(address).service.update(key, lb.encode_service(value))


def answered(sent: Packet) -> Packet:
    """Port unreachable or a reset, from the address that was asked."""
    network = sent[1]
    ether = Ether(src=sent.dst, dst=sent.src)
    if TCP in sent and sent[TCP].flags == "S":
        return ether / reset(network)
    if isinstance(network, IPv6):
        error = IPv6(src=network.dst, dst=network.src, hlim=64) / ICMPv6DestUnreach(code=4)
    else:
        error = IP(src=network.dst, dst=network.src, id=0) / ICMP(type=3, code=3)
    return ether / error / Raw(bytes(network)[:128])


def reset(network: Packet) -> Packet:
    """The answer of RFC 9293 to a SYN that carries something."""
    syn = network[TCP]
    tcp = TCP(
        sport=syn.dport,
        dport=syn.sport,
        seq=0,
        ack=syn.seq + 1 + len(syn.payload),
        flags="RA",
        window=0,
    )
    if isinstance(network, IPv6):
        return IPv6(src=network.dst, dst=network.src, hlim=64) / tcp
    return IP(src=network.dst, dst=network.src, id=0) / tcp


@FAMILIES
@EACH_PROTOCOL
def test_no_backend_is_answered_and_counted(pod: Datapath, family: Family, proto: str) -> None:
    pod.service(family.service, 80, PROTOCOLS[proto], [], rev_nat=1)
    sent = packet(proto, family.pod, CLIENT_PORT, family.service, 80)
    before = drops(pod)
    expect(pod, "from_pod", sent, REDIRECT, answered(sent))
    assert only_drop(pod, before) == lib.DROP_NO_BACKEND
    assert connections(pod, family, proto) == {}


@FAMILIES
def test_segment_of_a_connection_without_backend_is_answered_by_icmp(
    pod: Datapath, family: Family
) -> None:
    pod.service(family.service, 80, socket.IPPROTO_TCP, [], rev_nat=1)
    sent = packet("tcp", family.pod, CLIENT_PORT, family.service, 80, flags="A")
    expect(pod, "from_pod", sent, REDIRECT, answered(sent))


@FAMILIES
def test_long_packet_is_quoted_in_part(pod: Datapath, family: Family) -> None:
    pod.service(family.service, 80, socket.IPPROTO_UDP, [], rev_nat=1)
    sent = packet("udp", family.pod, CLIENT_PORT, family.service, 80) / Raw(bytes(range(200)))
    expect(pod, "from_pod", Ether(bytes(sent)), REDIRECT, answered(sent))


@FAMILIES
def test_port_that_no_service_has_is_refused_at_its_address(pod: Datapath, family: Family) -> None:
    web(pod, family)
    wildcard(pod, family)
    before = drops(pod)
    sent = packet("tcp", family.pod, CLIENT_PORT, family.service, 81)
    expect(pod, "from_pod", sent, REDIRECT, answered(sent))
    assert only_drop(pod, before) == lib.DROP_NO_SERVICE


@FAMILIES
def test_echo_to_a_service_is_refused(pod: Datapath, family: Family) -> None:
    wildcard(pod, family)
    if family is V6:
        ping = IPv6(src=family.pod, dst=family.service) / ICMPv6EchoRequest(id=3)
    else:
        ping = IP(src=family.pod, dst=family.service) / ICMP(type=8, id=3)
    before = drops(pod)
    pod.program("from_pod").run(bytes(Ether(src=MAC_POD_ONE, dst=MAC_NODE_ONE) / ping))
    assert only_drop(pod, before) == lib.DROP_NO_SERVICE


@FAMILIES
def test_fragment_without_its_first_is_refused_at_a_services_address(
    pod: Datapath, family: Family
) -> None:
    web(pod, family, "udp")
    _, later, *_ = fragments_of(Ends(family.pod, CLIENT_PORT, family.service, 80), long_udp)
    expect(pod, "from_pod", later, GO_ON, None)
    wildcard(pod, family)
    assert refused(pod, "from_pod", later) == lib.DROP_FRAG_NOT_FOUND


@FAMILIES
def test_no_answer_to_errors_resets_or_groups(pod: Datapath, family: Family) -> None:
    web(pod, family)
    wildcard(pod, family)
    reset = packet("tcp", family.pod, CLIENT_PORT, family.service, 81, flags="R")
    assert refused(pod, "from_pod", reset) == lib.DROP_NO_SERVICE
    broadcast = packet("tcp", family.pod, CLIENT_PORT, family.service, 81)
    broadcast.dst = "ff:ff:ff:ff:ff:ff"
    assert refused(pod, "from_pod", broadcast) == lib.DROP_NO_SERVICE
    answer = packet("udp", family.service, 81, family.pod, CLIENT_PORT)
    assert refused(pod, "from_pod", error_about(answer, family.pod)) == lib.DROP_NO_SERVICE
    group = packet("udp", "ff02::1" if family is V6 else "224.0.0.1", 1, family.service, 81)
    assert refused(pod, "from_pod", group) == lib.DROP_NO_SERVICE


def test_answers_can_be_switched_off_and_are_limited() -> None:
    sent = packet("udp", V4.pod, CLIENT_PORT, V4.service, 80)
    with loaded(["lxc"], {"lb_reject": b"\0"}) as silent:
        silent.service(V4.service, 80, socket.IPPROTO_UDP, [], rev_nat=1)
        assert refused(silent, "from_pod", sent) == lib.DROP_NO_BACKEND
    with loaded(["lxc"], {"icmp_rate_per_s": (3).to_bytes(4, "little")}) as limited:
        limited.service(V4.service, 80, socket.IPPROTO_UDP, [], rev_nat=1)
        verdicts = [limited.program("from_pod").run(bytes(sent)).retval for _ in range(20)]
    # A second may end between any two of them, and two CPUs have a budget each.
    assert 3 <= verdicts.count(REDIRECT) <= 12
    assert verdicts.count(SHOT) == 20 - verdicts.count(REDIRECT)


@FAMILIES
def test_loopback_host_port_is_refused(pod: Datapath, family: Family) -> None:
    web(pod, family, flags=ServiceFlag.LOOPBACK)
    sent = packet("tcp", family.pod, CLIENT_PORT, family.service, 80)
    assert refused(pod, "from_pod", sent) == lib.DROP_LOOPBACK_ONLY


def passed_on(datapath: Datapath) -> int:
    """Packets that were counted and not refused."""
    with PerCpuMap(os.dup(datapath.maps["cilia_metrics"].number)) as metrics:
        return sum(metric.packets for metric in read_metrics(metrics) if metric.reason == 0)


@FAMILIES
@pytest.mark.parametrize("flag", [ServiceFlag.L7, ServiceFlag.DELEGATE])
def test_what_someone_else_serves_goes_on(pod: Datapath, family: Family, flag: ServiceFlag) -> None:
    web(pod, family, flags=flag)
    sent = packet("tcp", family.pod, CLIENT_PORT, family.service, 80)
    before = passed_on(pod)
    expect(pod, "from_pod", sent, GO_ON, None)
    assert passed_on(pod) == before + 1


@FAMILIES
def test_malformed_packets_are_refused_and_counted_both_ways(pod: Datapath, family: Family) -> None:
    raw = bytearray(bytes(packet("tcp", family.pod, 1, family.backend, 2)))
    raw[14] = 0x45 if family is V6 else 0x65
    for program in ("from_pod", "to_pod"):
        assert refused(pod, program, bytes(raw)) == lib.DROP_INVALID_PACKET
