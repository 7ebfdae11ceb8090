# SPDX-License-Identifier: Apache-2.0
"""Heads of packets in one line, whole and cut off anywhere."""

from __future__ import annotations

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption_NOP
from scapy.layers.inet6 import (
    ICMPv6ND_NS,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
)
from scapy.layers.l2 import ARP, Ether
from scapy.layers.sctp import SCTP
from scapy.packet import Packet, Raw

from cilia.flows.packets import dissect

FOUR = Ether() / IP(src="10.0.0.1", dst="10.0.0.2")
SIX = Ether() / IPv6(src="fd00::1", dst="fd00::2")
OPTIONS = [IPOption_NOP()] * 4

PACKETS: dict[str, tuple[Packet, str]] = {
    "tcp": (FOUR / TCP(sport=33, dport=80, flags="S"), "10.0.0.1:33 -> 10.0.0.2:80 tcp SYN"),
    "tcp, all flags": (
        FOUR / TCP(sport=1, dport=2, flags="FSRPAUEC"),
        "10.0.0.1:1 -> 10.0.0.2:2 tcp SYN, ACK, RST, FIN, PSH, URG, ECE, CWR",
    ),
    "udp": (FOUR / UDP(sport=33, dport=53), "10.0.0.1:33 -> 10.0.0.2:53 udp"),
    "sctp": (SIX / SCTP(sport=1, dport=2), "[fd00::1]:1 -> [fd00::2]:2 sctp"),
    "options": (
        Ether() / IP(src="10.0.0.1", dst="10.0.0.2", options=OPTIONS) / UDP(sport=3, dport=4),
        "10.0.0.1:3 -> 10.0.0.2:4 udp",
    ),
    "extensions": (
        SIX / IPv6ExtHdrHopByHop() / IPv6ExtHdrDestOpt() / TCP(sport=1, dport=2, flags="A"),
        "[fd00::1]:1 -> [fd00::2]:2 tcp ACK",
    ),
    "first fragment": (
        SIX / IPv6ExtHdrFragment(m=1) / UDP(sport=3, dport=4),
        "[fd00::1]:3 -> [fd00::2]:4 udp",
    ),
    "later fragment": (
        SIX / IPv6ExtHdrFragment(offset=3, nh=17) / Raw(b"data"),
        "fd00::1 -> fd00::2 udp fragment",
    ),
    "later fragment of IPv4": (
        Ether() / IP(src="10.0.0.1", dst="10.0.0.2", frag=9, proto=6) / Raw(b"data" * 9),
        "10.0.0.1 -> 10.0.0.2 tcp fragment",
    ),
    "ping": (FOUR / ICMP(type=8), "10.0.0.1 -> 10.0.0.2 icmp EchoRequest"),
    "unknown message": (FOUR / ICMP(type=77, code=3), "10.0.0.1 -> 10.0.0.2 icmp type 77 code 3"),
    "neighbour": (SIX / ICMPv6ND_NS(), "fd00::1 -> fd00::2 icmp6 NeighborSolicitation"),
    "arp": (Ether() / ARP(psrc="10.0.0.1", pdst="10.0.0.2"), "10.0.0.1 -> 10.0.0.2 arp request"),
    "another protocol": (
        Ether() / IP(src="10.0.0.1", dst="10.0.0.2", proto=47) / Raw(b"gre"),
        "10.0.0.1 -> 10.0.0.2 protocol 47",
    ),
    "no IP": (Ether(type=0x88CC) / Raw(b"lldp"), "[unknown]"),
}


@pytest.mark.parametrize("name", PACKETS)
def test_packet_is_one_line(name: str) -> None:
    packet, text = PACKETS[name]
    assert dissect(bytes(packet)).text == text


@pytest.mark.parametrize("name", PACKETS)
def test_packet_that_is_cut_off_says_what_is_left(name: str) -> None:
    packet, text = PACKETS[name]
    whole = bytes(packet)
    for length in range(len(whole)):
        left = dissect(whole[:length])
        assert left.text == "[unknown]" or left.source in text
    assert dissect(whole[:14]).ethernet_source == packet[Ether].src
