# SPDX-License-Identifier: Apache-2.0
"""The head of a captured packet, dissected: Ethernet, ARP, IPv4, IPv6, TCP, UDP, SCTP, ICMP.

What is cut off or unknown is left out: a record has the first bytes of a packet alone.
`Packet.text` is the one line that people know: `10.0.0.1:33 -> 10.0.0.2:80 tcp SYN`.
"""

from __future__ import annotations

from contextlib import suppress
from ipaddress import ip_address
from struct import Struct, error, unpack_from
from typing import Final

import msgspec

__all__ = ["TCP_FLAGS", "Packet", "dissect"]

#: Byte 13 of the header of TCP, in the order in which people name them.
TCP_FLAGS: Final = {
    "SYN": 0x02,
    "ACK": 0x10,
    "RST": 0x04,
    "FIN": 0x01,
    "PSH": 0x08,
    "URG": 0x20,
    "ECE": 0x40,
    "CWR": 0x80,
}

_ETHERNET: Final = Struct("!6s6sH")
_IPV4: Final = Struct("!BxxxxxHxB2x4s4s")
_IPV6: Final = Struct("!4xxxBx16s16s")
_ARP: Final = Struct("!6xH6s4s6s4s")
_PORTS: Final = Struct("!HH")

_ICMP, _TCP, _UDP, _ICMPV6, _SCTP = 1, 6, 17, 58, 132
_FRAGMENT: Final = 44
#: Extension headers of IPv6 whose length is in words of 8 bytes.
_EXTENSIONS: Final = (0, 43, 60)

_ICMP_NAMES: Final = {
    0: "EchoReply",
    3: "DestinationUnreachable",
    5: "Redirect",
    8: "EchoRequest",
    11: "TimeExceeded",
    12: "ParameterProblem",
}
_ICMPV6_NAMES: Final = {
    1: "DestinationUnreachable",
    2: "PacketTooBig",
    3: "TimeExceeded",
    4: "ParameterProblem",
    128: "EchoRequest",
    129: "EchoReply",
    133: "RouterSolicitation",
    134: "RouterAdvertisement",
    135: "NeighborSolicitation",
    136: "NeighborAdvertisement",
    137: "Redirect",
}


class Packet(msgspec.Struct):
    """What is known of a packet; empty or None where that was cut off."""

    ethernet_source: str = ""
    ethernet_destination: str = ""
    source: str = ""
    destination: str = ""
    #: `tcp`, `udp`, `sctp`, `icmp`, `icmp6`, `arp`, or the number of another protocol.
    protocol: str = ""
    source_port: int | None = None
    destination_port: int | None = None
    #: Flags of TCP, message of ICMP, question of ARP; `fragment` for a later part of a datagram.
    detail: str = ""

    @property
    def text(self) -> str:
        """One line."""
        if not self.source:
            return "[unknown]"
        ends = " -> ".join(
            _with_port(address, port)
            for address, port in (
                (self.source, self.source_port),
                (self.destination, self.destination_port),
            )
        )
        return " ".join(filter(None, (ends, self.protocol, self.detail)))


def _with_port(address: str, port: int | None) -> str:
    if port is None:
        return address
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def dissect(data: bytes) -> Packet:
    """Return what the first bytes of a frame say."""
    packet = Packet()
    with suppress(error):  # cut off: what came before is known
        _ethernet(packet, data)
    return packet


def _ethernet(packet: Packet, data: bytes) -> None:
    destination, source, kind = _ETHERNET.unpack_from(data)
    packet.ethernet_destination, packet.ethernet_source = destination.hex(":"), source.hex(":")
    match kind:
        case 0x0806:  # ARP
            _arp(packet, data, _ETHERNET.size)
        case 0x0800:  # IPv4
            _ipv4(packet, data, _ETHERNET.size)
        case 0x86DD:  # IPv6
            _ipv6(packet, data, _ETHERNET.size)


def _arp(packet: Packet, data: bytes, at: int) -> None:
    operation, _, sender, _, target = _ARP.unpack_from(data, at)
    packet.source, packet.destination = str(ip_address(sender)), str(ip_address(target))
    packet.protocol = "arp"
    packet.detail = {1: "request", 2: "reply"}.get(operation, str(operation))


def _ipv4(packet: Packet, data: bytes, at: int) -> None:
    first, fragment, protocol, source, destination = _IPV4.unpack_from(data, at)
    packet.source, packet.destination = str(ip_address(source)), str(ip_address(destination))
    _transport(packet, data, at + (first & 0x0F) * 4, protocol, is_later=bool(fragment & 0x1FFF))


def _ipv6(packet: Packet, data: bytes, at: int) -> None:
    following, source, destination = _IPV6.unpack_from(data, at)
    packet.source, packet.destination = str(ip_address(source)), str(ip_address(destination))
    at += _IPV6.size
    is_later = False
    while following in (*_EXTENSIONS, _FRAGMENT):
        is_fragment = following == _FRAGMENT
        following, length, offset = unpack_from("!BBH", data, at)
        is_later = is_later or (is_fragment and bool(offset & 0xFFF8))
        at += 8 if is_fragment else (length + 1) * 8
    _transport(packet, data, at, following, is_later=is_later)


def _transport(packet: Packet, data: bytes, at: int, protocol: int, *, is_later: bool) -> None:
    names = {_TCP: "tcp", _UDP: "udp", _SCTP: "sctp", _ICMP: "icmp", _ICMPV6: "icmp6"}
    packet.protocol = names.get(protocol, f"protocol {protocol}")
    if is_later:
        packet.detail = "fragment"
        return
    if protocol in (_ICMP, _ICMPV6):
        known = _ICMP_NAMES if protocol == _ICMP else _ICMPV6_NAMES
        kind, code = unpack_from("!BB", data, at)
        packet.detail = known.get(kind, f"type {kind} code {code}")
    elif protocol in (_TCP, _UDP, _SCTP):
        packet.source_port, packet.destination_port = _PORTS.unpack_from(data, at)
    if protocol == _TCP:
        (flags,) = unpack_from("!B", data, at + 13)
        packet.detail = ", ".join(name for name, bit in TCP_FLAGS.items() if flags & bit)
