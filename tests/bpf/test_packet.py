# SPDX-License-Identifier: Apache-2.0
"""Parsing and rewriting of packets, on both hooks: a packet between other addresses and ports must
be byte for byte the one that would have been made there, with all checksums.
"""

from __future__ import annotations

import ipaddress
import struct
from collections.abc import Callable, Iterator
from typing import NamedTuple

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption_NOP, fragment
from scapy.layers.inet6 import (
    ICMPv6DestUnreach,
    ICMPv6EchoReply,
    ICMPv6EchoRequest,
    ICMPv6PacketTooBig,
    ICMPv6TimeExceeded,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    fragment6,
)
from scapy.layers.l2 import ARP, Ether
from scapy.layers.sctp import SCTP, SCTPChunkData
from scapy.packet import Packet, Raw

from bpf.libbpf import lib
from bpf.object import Object
from bpf.program import Program
from tests.bpf.packets import MAC_NODE_ONE, MAC_POD_ONE, packet_diff
from tests.bpf.sources import build

pytestmark = pytest.mark.root

#: Gives each packet the source and destination in the map; says what was refused.
REWRITE = """
#include "lib/rewrite.h"
#define PASSED 1000
struct wanted {
    __be32 saddr[4], daddr[4];
    __be16 sport, dport;
    __u32 l3_shift;         /* pretend that the IP header is elsewhere */
    __u32 hop;
};
struct {
    __uint(type, BPF_MAP_TYPE_ARRAY);
    __type(key, __u32);
    __type(value, struct wanted);
    __uint(max_entries, 1);
} wanted SEC(".maps");

static __always_inline int set(ctx_t *ctx, struct packet *packet, const struct wanted *to, bool v6)
{
    int refused = to->hop ? packet_decrement_ttl(ctx, packet, v6) : 0;

    if (!refused)
        refused = packet_set_source(ctx, packet, to->saddr, to->sport, v6);
    if (!refused)
        refused = packet_set_destination(ctx, packet, to->daddr, to->dport, v6);
    return -refusal_reason(refused);
}

SEC(HOOK) int rewrite(ctx_t *ctx)
{
    struct packet packet;
    struct wanted *to;
    __u32 zero = 0;
    int found = packet_parse(ctx, &packet, ETH_HLEN);

    if (found == PACKET_OTHER)
        return PASSED;
    if (found)
        return -refusal_reason(found);
    to = bpf_map_lookup_elem(&wanted, &zero);
    if (!to)
        return -1;
    packet.l3 += to->l3_shift;
    if (packet.flags & PACKET_V6)
        return set(ctx, &packet, to, true);
    return set(ctx, &packet, to, false);
}
"""

PASSED = 1000
WANTED = struct.Struct("=16s16sHHII")


class Ends(NamedTuple):
    """Both ends of a tuple."""

    src: str
    sport: int
    dst: str
    dport: int


V4 = (Ends("10.0.1.11", 40000, "10.96.0.1", 80), Ends("169.254.42.1", 51515, "10.0.1.12", 8080))
V6 = (Ends("fd00:1::11", 40000, "fd00:96::1", 80), Ends("fd63::1", 51515, "fd00:1::12", 8080))
ROUTER, ROUTER_V6 = "192.0.2.77", "2001:db8::77"

PAYLOAD = b"some words that are an odd number of bytes."


def ethernet(packet: Packet) -> Packet:
    return Ether(src=MAC_POD_ONE, dst=MAC_NODE_ONE) / packet


def ip(ends: Ends, **fields: object) -> Packet:
    if ":" in ends.src:
        return IPv6(src=ends.src, dst=ends.dst)
    return IP(src=ends.src, dst=ends.dst, id=7, **fields)


def tcp(ends: Ends, payload: bytes = PAYLOAD) -> Packet:
    return ip(ends) / TCP(sport=ends.sport, dport=ends.dport, flags="PA") / Raw(payload)


def udp(ends: Ends, payload: bytes = PAYLOAD) -> Packet:
    return ip(ends) / UDP(sport=ends.sport, dport=ends.dport) / Raw(payload)


def udp_without_checksum(ends: Ends) -> Packet:
    return ip(ends) / UDP(sport=ends.sport, dport=ends.dport, chksum=0) / Raw(PAYLOAD)


def sctp(ends: Ends) -> Packet:
    return ip(ends) / SCTP(sport=ends.sport, dport=ends.dport) / SCTPChunkData(data=PAYLOAD)


def sctp_without_checksum(ends: Ends) -> Packet:
    return ip(ends) / SCTP(sport=ends.sport, dport=ends.dport, chksum=0) / SCTPChunkData(data=b"x")


def echo(ends: Ends) -> Packet:
    if ":" in ends.src:
        return ip(ends) / ICMPv6EchoRequest(id=ends.sport, seq=3, data=PAYLOAD)
    return ip(ends) / ICMP(type=8, id=ends.sport, seq=3) / Raw(PAYLOAD)


def echo_answer(ends: Ends) -> Packet:
    if ":" in ends.src:
        return ip(ends) / ICMPv6EchoReply(id=ends.dport, seq=3, data=PAYLOAD)
    return ip(ends) / ICMP(type=0, id=ends.dport, seq=3) / Raw(PAYLOAD)


def with_options(ends: Ends) -> Packet:
    if ":" in ends.src:
        extensions = IPv6ExtHdrHopByHop() / IPv6ExtHdrDestOpt()
        return ip(ends) / extensions / UDP(sport=ends.sport, dport=ends.dport) / Raw(PAYLOAD)
    options = [IPOption_NOP() for _ in range(8)]
    return ip(ends, options=options) / UDP(sport=ends.sport, dport=ends.dport) / Raw(PAYLOAD)


def exchanged(ends: Ends) -> Ends:
    return Ends(ends.dst, ends.dport, ends.src, ends.sport)


def quoting(
    make: Callable[[Ends], Packet], *, transport_bytes: int = 1000, router: bool = False
) -> Callable[[Ends], Packet]:
    """An ICMP error about a packet that went the other way."""

    def error(ends: Ends) -> Packet:
        header = 40 if ":" in ends.src else 20
        quoted = bytes(make(exchanged(ends)))[: header + transport_bytes]
        if ":" in ends.src:
            outer = IPv6(src=ROUTER_V6 if router else ends.src, dst=ends.dst)
            kind = ICMPv6PacketTooBig(mtu=1400) if router else ICMPv6DestUnreach(code=4)
        else:
            outer = IP(src=ROUTER if router else ends.src, dst=ends.dst, id=9)
            kind = ICMP(type=3, code=4, nexthopmtu=1400) if router else ICMP(type=3, code=3)
        return outer / kind / Raw(quoted)

    return error


def time_exceeded(ends: Ends) -> Packet:
    quoted = bytes(udp(exchanged(ends)))
    if ":" in ends.src:
        return IPv6(src=ROUTER_V6, dst=ends.dst) / ICMPv6TimeExceeded() / Raw(quoted)
    return IP(src=ROUTER, dst=ends.dst, id=9) / ICMP(type=11) / Raw(quoted)


ROWS: dict[str, Callable[[Ends], Packet]] = {
    "tcp": tcp,
    "udp": udp,
    "udp-without-checksum": udp_without_checksum,
    "sctp": sctp,
    "sctp-without-checksum": sctp_without_checksum,
    "echo": echo,
    "echo-answer": echo_answer,
    "options": with_options,
    "error-about-tcp": quoting(tcp),
    "error-about-udp": quoting(udp),
    "error-about-udp-without-checksum": quoting(udp_without_checksum),
    "error-about-sctp": quoting(lambda ends: _without_crc(ends)),
    "error-about-echo": quoting(echo),
    "error-about-echo-answer": quoting(echo_answer),
    "error-about-options": quoting(with_options),
    "error-of-router": quoting(tcp, router=True),
    "error-quoting-8-bytes": quoting(tcp, transport_bytes=8),
    "time-exceeded": time_exceeded,
}


def _without_crc(ends: Ends) -> Packet:
    """A quoted CRC covers what is not quoted: it stays as it was."""
    return ip(ends) / SCTP(sport=ends.sport, dport=ends.dport, chksum=77) / SCTPChunkData(data=b"x")


@pytest.fixture(scope="module", params=["tc", "xdp"])
def loaded(request: pytest.FixtureRequest) -> Iterator[Object]:
    define = "#define CILIA_XDP\n" if request.param == "xdp" else ""
    with Object.open("test", build(define + f'#define HOOK "{request.param}"\n' + REWRITE)) as obj:
        for definition in obj.map_definitions():
            if definition.max_entries > 64:
                obj.set_max_entries(definition.name, 64)
        obj.load()
        yield obj


@pytest.fixture
def rewrite(loaded: Object) -> Program:
    for name in ("cilia_frag4", "cilia_frag6"):
        with loaded.map(name) as fragments:
            fragments.clear()
    want(loaded, V4[0])
    return loaded.program("rewrite")


def want(obj: Object, ends: Ends, *, l3_shift: int = 0, hop: bool = False) -> None:
    source, destination = (
        ipaddress.ip_address(address).packed.ljust(16, b"\0") for address in (ends.src, ends.dst)
    )
    ports = (int.from_bytes(port.to_bytes(2), "little") for port in (ends.sport, ends.dport))
    with obj.map("wanted") as wanted:
        wanted.update(bytes(4), WANTED.pack(source, destination, *ports, l3_shift, hop))


@pytest.mark.parametrize("family", [V4, V6], ids=["v4", "v6"])
@pytest.mark.parametrize("name", ROWS)
def test_translated_packet_is_what_the_other_end_would_have_sent(
    loaded: Object, rewrite: Program, family: tuple[Ends, Ends], name: str
) -> None:
    make, (before, after) = ROWS[name], family
    want(loaded, after)
    result = rewrite.run(bytes(ethernet(make(before))))
    assert result.retval == 0
    difference = packet_diff(bytes(ethernet(make(after))), result.data)
    assert not difference, difference


def fragments_of(ends: Ends, make: Callable[..., Packet] = udp) -> list[Packet]:
    if ":" in ends.src:
        body = make(ends).payload
        whole = IPv6(src=ends.src, dst=ends.dst) / IPv6ExtHdrFragment(id=77) / body
        return [ethernet(part) for part in fragment6(whole, 300)]
    return [ethernet(part) for part in fragment(make(ends), 256)]


def long_udp(ends: Ends) -> Packet:
    return udp(ends, bytes(range(256)) * 3)


def long_echo(ends: Ends) -> Packet:
    return echo(ends) / Raw(bytes(range(256)) * 3)


def long_answer(ends: Ends) -> Packet:
    return echo_answer(ends) / Raw(bytes(range(256)) * 3)


@pytest.mark.parametrize("make", [long_udp, long_echo, long_answer])
@pytest.mark.parametrize("family", [V4, V6], ids=["v4", "v6"])
def test_later_fragments_follow_the_first(
    loaded: Object, rewrite: Program, family: tuple[Ends, Ends], make: Callable[[Ends], Packet]
) -> None:
    before, after = family
    want(loaded, after)
    parts = list(zip(fragments_of(before, make), fragments_of(after, make), strict=True))
    assert len(parts) >= 3
    for packet, expected in parts:
        result = rewrite.run(bytes(packet))
        assert result.retval == 0
        difference = packet_diff(bytes(expected), result.data)
        assert not difference, difference


@pytest.mark.parametrize("ends", [V4[0], V6[0]], ids=["v4", "v6"])
def test_ports_of_fragments_are_remembered_and_given(
    loaded: Object, rewrite: Program, ends: Ends
) -> None:
    name = "cilia_frag6" if ":" in ends.src else "cilia_frag4"
    first, *later = fragments_of(ends, long_udp)
    with loaded.map(name) as fragments:
        rewrite.run(bytes(later[0]))
        assert dict(fragments.items()) == {}
        rewrite.run(bytes(first))
        (value,) = dict(fragments.items()).values()
        assert value == ends.dport.to_bytes(2) + ends.sport.to_bytes(2)


NOT_OURS = {
    "arp": ethernet(ARP()),
    "gre": ethernet(IP(src=V4[0].src, dst=V4[0].dst, proto=47) / Raw(bytes(40))),
    "redirect": ethernet(
        IP(src=ROUTER, dst=V4[0].src) / ICMP(type=5, code=1) / Raw(bytes(tcp(V4[0])))
    ),
    "error-about-gre": ethernet(
        IP(src=ROUTER, dst=V4[0].src) / ICMP(type=3) / IP(src=V4[0].src, proto=47) / Raw(bytes(8))
    ),
    "fragment-of-an-error": ethernet(
        IP(src=ROUTER, dst=V4[0].src, flags="MF") / ICMP(type=3) / Raw(bytes(udp(V4[0])))
    ),
    "error-that-quotes-nothing": ethernet(IP(src=ROUTER, dst=V4[0].src) / ICMP(type=3)),
    "neighbour-solicitation": ethernet(
        IPv6(src=V6[0].src, dst=V6[0].dst, nh=58) / Raw(bytes([135]) + bytes(23))
    ),
}


@pytest.mark.parametrize("name", NOT_OURS)
def test_what_has_no_tuple_passes_untouched(rewrite: Program, name: str) -> None:
    packet = bytes(NOT_OURS[name])
    result = rewrite.run(packet)
    assert (result.retval, result.data) == (PASSED, packet)


def extended(count: int) -> bytes:
    """An IPv6 packet with so many extension headers."""
    packet = IPv6(src=V6[0].src, dst=V6[0].dst)
    for _ in range(count):
        packet /= IPv6ExtHdrDestOpt()
    return bytes(ethernet(packet / UDP(sport=1, dport=2)))


def without_ports(ends: Ends) -> bytes:
    whole = bytes(ethernet(ip(ends)))
    return (
        whole[:20] + bytes([17]) + whole[21:] if ends in V6 else whole[:23] + b"\x11" + whole[24:]
    )


def first_ip_byte(ends: Ends, value: int) -> bytes:
    whole = bytes(ethernet(tcp(ends)))
    return whole[:14] + bytes([value]) + whole[15:]


REFUSED = {
    "header-too-short": (first_ip_byte(V4[0], 0x44), lib.DROP_INVALID_PACKET),
    "other-version": (first_ip_byte(V4[0], 0x65), lib.DROP_INVALID_PACKET),
    "other-version-v6": (first_ip_byte(V6[0], 0x45), lib.DROP_INVALID_PACKET),
    "no-ports": (without_ports(V4[0]), lib.DROP_INVALID_PACKET),
    "no-ports-v6": (without_ports(V6[0]), lib.DROP_INVALID_PACKET),
    "too-many-extensions": (extended(7), lib.DROP_INVALID_EXTHDR),
    "tcp-without-checksum-field": (bytes(ethernet(tcp(V4[0])))[:50], lib.DROP_CSUM_L4),
    "fragment-of-sctp": (
        bytes(fragment(ethernet(ip(V4[0]) / SCTP() / SCTPChunkData(data=bytes(400))), 256)[0]),
        lib.DROP_CSUM_L4,
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_parsed_or_corrected_is_refused(
    loaded: Object, rewrite: Program, name: str
) -> None:
    packet, reason = REFUSED[name]
    want(loaded, V4[1])
    assert rewrite.run(packet).retval == -reason


def test_as_many_extension_headers_as_allowed_are_passed(loaded: Object, rewrite: Program) -> None:
    want(loaded, V6[1])
    assert rewrite.run(extended(5)).retval == 0


@pytest.mark.parametrize(
    ("ends", "reason"), [(V4, lib.DROP_CSUM_L3), (V6, lib.DROP_WRITE_ERROR)], ids=["v4", "v6"]
)
def test_header_that_is_not_there_is_not_written(
    loaded: Object, rewrite: Program, ends: tuple[Ends, Ends], reason: int
) -> None:
    want(loaded, ends[1], l3_shift=20000)
    assert rewrite.run(bytes(ethernet(udp_without_checksum(ends[0])))).retval == -reason


@pytest.mark.parametrize("ends", [V4[0], V6[0]], ids=["v4", "v6"])
def test_each_hop_takes_one_from_the_life_of_a_packet(
    loaded: Object, rewrite: Program, ends: Ends
) -> None:
    def packet(ttl: int) -> bytes:
        made = ethernet(udp(ends))
        made[1].fields["hlim" if ends in V6 else "ttl"] = ttl
        return bytes(made)

    want(loaded, ends, hop=True)
    assert rewrite.run(packet(64)).data == packet(63)
    assert rewrite.run(packet(2)).data == packet(1)
    result = rewrite.run(packet(1))
    assert (result.retval, result.data) == (-lib.DROP_TTL_EXCEEDED, packet(1))
