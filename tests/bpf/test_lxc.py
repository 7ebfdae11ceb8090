# SPDX-License-Identifier: Apache-2.0
"""A workload's device, packet by packet: which come out how, and what is remembered."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from contextlib import closing
from typing import NamedTuple

import msgspec
import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6DestUnreach, ICMPv6EchoRequest, IPv6
from scapy.layers.l2 import Ether
from scapy.layers.sctp import SCTP, SCTPChunkData
from scapy.packet import Packet, Raw

from bpf.events import read_metrics
from bpf.libbpf import ffi, lib
from bpf.maps import ct, lb
from bpf.maps.ct import CtEntry, CtFlag, CtKey, Direction
from bpf.maps.lb import BackendState, BackendValue, LBMaps, ServiceFlag, ServiceValue
from bpf.maps.map import Map
from bpf.maps.percpu import PerCpuMap
from bpf.maps.types import MapType
from tests.bpf.datapath_world import Datapath, drops, loaded, packed
from tests.bpf.packets import MAC_NODE_ONE, MAC_POD_ONE, packet_diff
from tests.bpf.test_packet import Ends, fragments_of, long_udp

pytestmark = pytest.mark.root

#: ``TC_ACT_UNSPEC``: other programs on the hook go on.
GO_ON, SHOT, REDIRECT = 0xFFFFFFFF, 2, 7

#: Accounting on, and a budget of answers that no test exhausts by chance.
CONSTANTS = {"ct_accounting": b"\1", "icmp_rate_per_s": (1 << 30).to_bytes(4, "little")}


class Family(NamedTuple):
    """Addresses of one family, in their roles."""

    pod: str
    service: str
    other_service: str
    backend: str
    other_backend: str
    loopback: str
    router: str


V4 = Family(
    "10.0.1.11", "10.96.0.1", "10.96.0.2", "10.0.1.12", "10.0.1.13", "169.254.42.1", "192.0.2.7"
)
V6 = Family(
    "fd00:1::11",
    "fd00:96::1",
    "fd00:96::2",
    "fd00:1::12",
    "fd00:1::13",
    "fd63:696c:6961::1",
    "2001:db8::7",
)
FAMILIES = pytest.mark.parametrize("family", [V4, V6], ids=["v4", "v6"])

PROTOCOLS = {"tcp": socket.IPPROTO_TCP, "udp": socket.IPPROTO_UDP, "sctp": socket.IPPROTO_SCTP}
EACH_PROTOCOL = pytest.mark.parametrize("proto", PROTOCOLS)

CLIENT_PORT = 40000


@pytest.fixture(scope="module")
def objects() -> Iterator[Datapath]:
    with loaded(["lxc"], CONSTANTS) as datapath:
        yield datapath


@pytest.fixture
def pod(objects: Datapath) -> Datapath:
    objects.clear()
    return objects


def packet(
    proto: str,
    src: str,
    sport: int,
    dst: str,
    dport: int,
    *,
    flags: str = "S",
    turned: bool = False,
) -> Packet:
    """A packet of a workload on Ethernet; ``turned``: of its gateway to it."""
    macs = (MAC_POD_ONE, MAC_NODE_ONE)
    ether = Ether(src=macs[turned], dst=macs[not turned])
    network = IPv6(src=src, dst=dst) if ":" in src else IP(src=src, dst=dst)
    if proto == "tcp":
        return ether / network / TCP(sport=sport, dport=dport, flags=flags) / Raw(b"odd")
    if proto == "udp":
        return ether / network / UDP(sport=sport, dport=dport) / Raw(b"odd")
    return ether / network / SCTP(sport=sport, dport=dport) / SCTPChunkData(data=b"odd")


def expect(
    datapath: Datapath, program: str, sent: Packet, verdict: int, expected: Packet | None
) -> None:
    """``expected`` None: it comes out as it was."""
    result = datapath.program(program).run(bytes(sent))
    difference = packet_diff(bytes(sent if expected is None else expected), result.data)
    assert not difference, difference
    assert result.retval == verdict


def refused(datapath: Datapath, program: str, sent: Packet | bytes) -> int:
    """Run a packet that is refused without an answer; why."""
    before = drops(datapath)
    assert datapath.program(program).run(bytes(sent)).retval == SHOT
    return only_drop(datapath, before)


def only_drop(datapath: Datapath, before: dict[int, int]) -> int:
    """The reason of the one packet that was dropped since."""
    changed = {
        reason: count - before.get(reason, 0)
        for reason, count in drops(datapath).items()
        if count != before.get(reason, 0)
    }
    ((reason, count),) = changed.items()
    assert count == 1
    return reason


def web(datapath: Datapath, family: Family, proto: str = "tcp", **fields: int) -> None:
    datapath.service(
        family.service, 80, PROTOCOLS[proto], [(family.backend, 8080)], rev_nat=1, **fields
    )


def flow_map(datapath: Datapath, family: Family, proto: str) -> str:
    number = 6 if family is V6 else 4
    return f"cilia_ct{number}_{'tcp' if proto == 'tcp' else 'any'}"


def connections(datapath: Datapath, family: Family, proto: str) -> dict[CtKey, CtEntry]:
    return dict(ct.connections(datapath.maps[flow_map(datapath, family, proto)]))


def edit(datapath: Datapath, family: Family, proto: str, key: CtKey, **fields: int) -> None:
    """Change an entry as time or the other side would."""
    raw = datapath.maps[flow_map(datapath, family, proto)]
    entry = connections(datapath, family, proto)[key]
    raw.update(ct.encode_key(key), ct.encode_entry(msgspec.structs.replace(entry, **fields)))


def behind_key(family: Family, proto: str, backend: str | None = None) -> CtKey:
    """Of the connection to the backend."""
    return CtKey(
        packed(backend or family.backend),
        packed(family.pod),
        8080,
        CLIENT_PORT,
        PROTOCOLS[proto],
        Direction.EGRESS,
    )


def service_key(family: Family, proto: str) -> CtKey:
    return CtKey(
        packed(family.service),
        packed(family.pod),
        80,
        CLIENT_PORT,
        PROTOCOLS[proto],
        Direction.SERVICE,
    )


def now_s() -> int:
    return int(time.monotonic())


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
def test_what_belongs_to_no_service_passes_and_is_not_tracked(
    pod: Datapath, family: Family
) -> None:
    web(pod, family)
    for proto, dst, dport in (
        ("tcp", family.backend, 8080),
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


# -- a connection's life --


def open_connection(datapath: Datapath, family: Family, proto: str = "tcp") -> None:
    web(datapath, family, proto)
    sent = packet(proto, family.pod, CLIENT_PORT, family.service, 80)
    assert datapath.program("from_pod").run(bytes(sent)).retval == GO_ON


def send(datapath: Datapath, family: Family, flags: str) -> None:
    sent = packet("tcp", family.pod, CLIENT_PORT, family.service, 80, flags=flags)
    assert datapath.program("from_pod").run(bytes(sent)).retval == GO_ON


def receive(datapath: Datapath, family: Family, flags: str) -> None:
    answer = packet("tcp", family.backend, 8080, family.pod, CLIENT_PORT, flags=flags)
    assert datapath.program("to_pod").run(bytes(answer)).retval == GO_ON


def lifetimes(datapath: Datapath, family: Family, proto: str = "tcp") -> tuple[int, int]:
    """Seconds that the entries stay, behind the translation and of the service."""
    found = connections(datapath, family, proto)
    keys = (behind_key(family, proto), service_key(family, proto))
    behind, service = (found[key].expires_s - now_s() for key in keys)
    return behind, service


def is_about(found: tuple[int, int], *wanted: int) -> bool:
    return all(-2 <= one - other <= 1 for one, other in zip(found, wanted, strict=True))


@FAMILIES
def test_timeouts_follow_the_state_of_tcp(pod: Datapath, family: Family) -> None:
    open_connection(pod, family)
    assert is_about(lifetimes(pod, family), 60, 60)
    receive(pod, family, "SA")
    assert is_about(lifetimes(pod, family), 8000, 60)
    send(pod, family, "A")
    assert is_about(lifetimes(pod, family), 8000, 8000)
    send(pod, family, "FA")
    assert is_about(lifetimes(pod, family), 8000, 60)
    receive(pod, family, "FA")
    assert is_about(lifetimes(pod, family), 10, 60)
    entry = connections(pod, family, "tcp")[behind_key(family, "tcp")]
    assert entry.flags == CtFlag.SEEN_REPLY | ct.CLOSING
    assert (entry.tcp_flags, entry.reply_tcp_flags) == (0x13, 0x13)


@FAMILIES
@pytest.mark.parametrize("side", [send, receive])
def test_reset_of_either_side_ends_it(pod: Datapath, family: Family, side: object) -> None:
    open_connection(pod, family)
    receive(pod, family, "SA")
    send(pod, family, "A")
    side(pod, family, "R")  # type: ignore[operator]
    behind, _ = lifetimes(pod, family)
    assert 8 <= behind <= 11


@FAMILIES
def test_entries_of_datagrams_last_a_minute_after_each(pod: Datapath, family: Family) -> None:
    open_connection(pod, family, "udp")
    for key in (behind_key(family, "udp"), service_key(family, "udp")):
        edit(pod, family, "udp", key, expires_s=now_s() + 3)
    open_connection(pod, family, "udp")
    assert is_about(lifetimes(pod, family, "udp"), 60, 60)


@FAMILIES
def test_packets_and_bytes_are_counted_on_request(pod: Datapath, family: Family) -> None:
    open_connection(pod, family)
    for _ in range(3):
        send(pod, family, "A")
    receive(pod, family, "A")
    size = len(bytes(packet("tcp", family.pod, 1, family.service, 80)))
    entry = connections(pod, family, "tcp")[behind_key(family, "tcp")]
    assert (entry.packets, entry.bytes) == (3, 3 * size)
    assert (entry.reply_packets, entry.reply_bytes) == (1, size)


def move(datapath: Datapath, family: Family, proto: str = "tcp", *, keep_old: bool) -> None:
    """The service has another backend now, number 151; the old one may still have its row."""
    address = packed(family.service)
    maps = datapath.lb.of(address)
    value = BackendValue(packed(family.other_backend), 8080, PROTOCOLS[proto])
    maps.backend.update(lb.encode_id(151), lb.encode_backend(value))
    slot = lb.encode_service_key(address, 80, 1, PROTOCOLS[proto])
    maps.service.update(slot, lb.encode_service(ServiceValue(backend_id=151)))
    if not keep_old:
        maps.backend.delete(lb.encode_id(101))


def destination(datapath: Datapath, family: Family, proto: str = "tcp", flags: str = "A") -> str:
    """Where the client's next packet goes."""
    sent = packet(proto, family.pod, CLIENT_PORT, family.service, 80, flags=flags)
    result = datapath.program("from_pod").run(bytes(sent))
    assert result.retval == GO_ON
    return str(Ether(result.data)[1].dst)


@FAMILIES
@EACH_PROTOCOL
def test_connection_keeps_its_backend_when_others_take_over(
    pod: Datapath, family: Family, proto: str
) -> None:
    open_connection(pod, family, proto)
    move(pod, family, proto, keep_old=True)
    assert destination(pod, family, proto) == family.backend
    other = packet(proto, family.pod, CLIENT_PORT + 1, family.service, 80)
    result = pod.program("from_pod").run(bytes(other))
    assert Ether(result.data)[1].dst == family.other_backend


@FAMILIES
@EACH_PROTOCOL
def test_backend_that_is_gone_is_left_at_once(pod: Datapath, family: Family, proto: str) -> None:
    open_connection(pod, family, proto)
    move(pod, family, proto, keep_old=False)
    assert destination(pod, family, proto) == family.other_backend


@FAMILIES
@pytest.mark.parametrize("state", [BackendState.TERMINATING, BackendState.QUARANTINED])
def test_only_a_new_connection_leaves_a_backend_on_its_way_out(
    pod: Datapath, family: Family, state: BackendState
) -> None:
    open_connection(pod, family)
    move(pod, family, keep_old=True)
    value = BackendValue(packed(family.backend), 8080, socket.IPPROTO_TCP, state)
    maps = pod.lb.of(packed(family.service))
    maps.backend.update(lb.encode_id(101), lb.encode_backend(value))
    assert destination(pod, family, flags="A") == family.backend
    assert destination(pod, family, flags="S") == family.other_backend


@FAMILIES
@pytest.mark.parametrize("side", [send, receive])
def test_port_that_is_used_again_gets_a_new_backend(
    pod: Datapath, family: Family, side: object
) -> None:
    open_connection(pod, family)
    receive(pod, family, "SA")
    send(pod, family, "A")
    move(pod, family, keep_old=True)
    assert destination(pod, family, flags="S") == family.backend
    side(pod, family, "FA")  # type: ignore[operator]
    assert destination(pod, family, flags="A") == family.backend
    assert destination(pod, family, flags="S") == family.other_backend


@FAMILIES
def test_expired_flow_of_datagrams_chooses_anew(pod: Datapath, family: Family) -> None:
    open_connection(pod, family, "udp")
    move(pod, family, "udp", keep_old=True)
    edit(pod, family, "udp", service_key(family, "udp"), expires_s=now_s() - 5)
    assert destination(pod, family, "udp") == family.other_backend


@FAMILIES
def test_silent_tcp_connection_is_still_known(pod: Datapath, family: Family) -> None:
    open_connection(pod, family)
    move(pod, family, keep_old=True)
    edit(pod, family, "tcp", service_key(family, "tcp"), expires_s=now_s() - 5)
    assert destination(pod, family, flags="A") == family.backend


@FAMILIES
def test_entry_of_another_frontend_at_the_same_address_is_not_used(
    pod: Datapath, family: Family
) -> None:
    open_connection(pod, family)
    pod.service(family.service, 80, socket.IPPROTO_TCP, [(family.other_backend, 8080)], rev_nat=9)
    assert destination(pod, family) == family.other_backend


# -- one tuple, two claims --


def other_web(datapath: Datapath, family: Family, backends: list[str]) -> Packet:
    """Another frontend; the packet that the same client port sends to it."""
    ports = [(backend, 8080) for backend in backends]
    datapath.service(family.other_service, 80, socket.IPPROTO_TCP, ports, rev_nat=2)
    return packet("tcp", family.pod, CLIENT_PORT, family.other_service, 80)


@FAMILIES
def test_second_frontend_with_one_backend_is_refused_not_mixed_up(
    pod: Datapath, family: Family
) -> None:
    open_connection(pod, family)
    sent = other_web(pod, family, [family.backend])
    assert refused(pod, "from_pod", sent) == lib.DROP_CT_COLLISION
    answer = packet("tcp", family.backend, 8080, family.pod, CLIENT_PORT, flags="SA")
    seen = packet("tcp", family.service, 80, family.pod, CLIENT_PORT, flags="SA")
    expect(pod, "to_pod", answer, GO_ON, seen)


@FAMILIES
def test_second_frontend_gets_another_backend(pod: Datapath, family: Family) -> None:
    open_connection(pod, family)
    free = [f"10.0.9.{n}" if family is V4 else f"fd00:9::{n}" for n in range(1, 16)]
    sent = other_web(pod, family, [family.backend, *free])
    results = [pod.program("from_pod").run(bytes(sent)) for _ in range(5)]
    chosen = {str(Ether(result.data)[1].dst) for result in results}
    assert len(chosen) == 1
    assert chosen < set(free)


@FAMILIES
def test_tuple_of_a_closed_connection_is_free(pod: Datapath, family: Family) -> None:
    open_connection(pod, family)
    receive(pod, family, "RA")
    sent = other_web(pod, family, [family.backend])
    expected = packet("tcp", family.pod, CLIENT_PORT, family.backend, 8080)
    expect(pod, "from_pod", sent, GO_ON, expected)


@FAMILIES
def test_direct_packet_is_refused_while_its_answers_would_be_a_services(
    pod: Datapath, family: Family
) -> None:
    open_connection(pod, family, "udp")
    direct = packet("udp", family.pod, CLIENT_PORT, family.backend, 8080)
    assert refused(pod, "from_pod", direct) == lib.DROP_CT_COLLISION
    edit(pod, family, "udp", behind_key(family, "udp"), expires_s=now_s() - 5)
    expect(pod, "from_pod", direct, GO_ON, None)
    answer = packet("udp", family.backend, 8080, family.pod, CLIENT_PORT)
    expect(pod, "to_pod", answer, GO_ON, None)


@FAMILIES
def test_connection_of_the_backends_own_passes(pod: Datapath, family: Family) -> None:
    open_connection(pod, family)
    opening = packet("tcp", family.backend, 8080, family.pod, CLIENT_PORT, flags="S")
    expect(pod, "to_pod", opening, GO_ON, None)
    receive(pod, family, "R")
    expect(pod, "to_pod", opening, GO_ON, None)
    assert behind_key(family, "tcp") not in connections(pod, family, "tcp")


@FAMILIES
def test_answer_of_a_deleted_service_is_refused(pod: Datapath, family: Family) -> None:
    open_connection(pod, family)
    pod.lb.of(packed(family.service)).rev_nat.delete(lb.encode_id(1))
    answer = packet("tcp", family.backend, 8080, family.pod, CLIENT_PORT, flags="SA")
    assert refused(pod, "to_pod", answer) == lib.DROP_NO_SERVICE


@FAMILIES
def test_answer_of_what_entered_by_a_device_is_left_to_the_device(
    pod: Datapath, family: Family
) -> None:
    open_connection(pod, family)
    edit(pod, family, "tcp", behind_key(family, "tcp"), flags=int(CtFlag.NODE_PORT))
    answer = packet("tcp", family.backend, 8080, family.pod, CLIENT_PORT, flags="SA")
    expect(pod, "to_pod", answer, GO_ON, None)


def test_connection_that_cannot_be_remembered_is_refused() -> None:
    """The real maps evict what is old; a plain hash of one entry is full."""
    sizes = ffi.sizeof("struct ct4_key"), ffi.sizeof("struct ct_entry")
    full = Map.create(MapType.HASH, "cilia_ct4_tcp", *sizes, 1)
    with full, closing(LBMaps.create(16, 16)) as lb_maps:
        shared = Datapath(lb_maps, {"cilia_ct4_tcp": full}, [])
        with loaded(["lxc"], shared=shared) as pod:
            web(pod, V4)
            sent = packet("tcp", V4.pod, CLIENT_PORT, V4.service, 80)
            assert refused(pod, "from_pod", sent) == lib.DROP_CT_CREATE_FAILED
