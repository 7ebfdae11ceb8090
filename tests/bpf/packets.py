# SPDX-License-Identifier: Apache-2.0
"""Packets between named addresses, and a packet test as one row.

A row is (name, packet, services, verdict, expected packet); ``check`` runs a program on it and
shows a wrong packet field by field.
"""

from __future__ import annotations

import difflib
import ipaddress
from collections.abc import Sequence
from typing import Any, NamedTuple

from scapy.config import conf
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw

from bpf.maps import lb
from bpf.maps.lb import BackendValue, LBMaps, ServiceValue
from bpf.maps.lb_numbers import Scope
from bpf.program import Program

# Ports as numbers, not as the names of services.
conf.noenum.add(TCP.sport, TCP.dport, UDP.sport, UDP.dport)

MAC_POD_ONE = "02:00:00:00:01:01"
MAC_NODE_ONE = "02:00:00:00:00:01"

POD_ONE = "10.0.1.11"
POD_TWO = "10.0.1.12"
POD_ONE_V6 = "fd00:1::11"
POD_TWO_V6 = "fd00:1::12"
NODE_TWO = "192.0.2.2"
SVC_ONE = "10.96.0.1"
SVC_ONE_V6 = "fd00:96::1"

#: ``TC_ACT_*``
OK, SHOT = 0, 2


def tcp(src: str, dst: str, dport: int, sport: int = 40000, payload: bytes = b"hello") -> Packet:
    """A TCP segment on Ethernet, IPv4 or IPv6 by its addresses."""
    return _frame(src, dst, TCP(sport=sport, dport=dport, flags="S"), payload)


def udp(src: str, dst: str, dport: int, sport: int = 40000, payload: bytes = b"hello") -> Packet:
    """A UDP datagram on Ethernet."""
    return _frame(src, dst, UDP(sport=sport, dport=dport), payload)


def _frame(src: str, dst: str, transport: Packet, payload: bytes) -> Packet:
    network = IPv6 if ":" in src else IP
    ether = Ether(src=MAC_POD_ONE, dst=MAC_NODE_ONE)
    return ether / network(src=src, dst=dst) / transport / Raw(payload)


class Service(NamedTuple):
    """A frontend with its usable backends, for the maps of a row."""

    address: str
    port: int
    proto: int
    backends: Sequence[tuple[str, int]] = ()
    flags: int = 0
    scope: int = Scope.EXTERNAL

    def write(self, maps: LBMaps, rev_nat: int) -> None:
        """Backends, slots, then the master entry; backend ids are rev_nat * 100 + slot."""
        key = ipaddress.ip_address(self.address).packed
        family = maps.of(key)
        for slot, (address, port) in enumerate(self.backends, start=1):
            backend = BackendValue(ipaddress.ip_address(address).packed, port, self.proto)
            number = rev_nat * 100 + slot
            family.backend.update(lb.encode_id(number), lb.encode_backend(backend))
            self._write_slot(family.service, key, slot, ServiceValue(backend_id=number))
        master = ServiceValue(rev_nat=rev_nat, count=len(self.backends), flags=self.flags)
        self._write_slot(family.service, key, 0, master)

    def _write_slot(self, service: Any, key: bytes, slot: int, value: ServiceValue) -> None:
        raw_key = lb.encode_service_key(key, self.port, slot, self.proto, self.scope)
        service.update(raw_key, lb.encode_service(value))


class Row(NamedTuple):
    """One case of a packet test; without ``expected`` the packet must come out as it went in."""

    name: str
    packet: Packet
    services: Sequence[Service]
    verdict: int
    expected: Packet | None = None


def check(program: Program, maps: LBMaps, row: Row) -> None:
    """Run the program on the row. Raises: AssertionError with the difference of the packets."""
    for raw in maps.all():
        raw.clear()
    for number, service in enumerate(row.services, start=1):
        service.write(maps, number)
    result = program.run(bytes(row.packet))
    expected = row.packet if row.expected is None else row.expected
    difference = packet_diff(bytes(expected), result.data)
    assert not difference, f"{row.name}: another packet came out\n{difference}"
    assert result.retval == row.verdict, f"{row.name}: verdict {result.retval}, not {row.verdict}"


def packet_diff(expected: bytes, actual: bytes) -> str:
    """The fields that differ, as a unified diff; empty if the packets are equal."""
    if expected == actual:
        return ""
    before, after = _dissected(expected), _dissected(actual)
    diff = difflib.unified_diff(before, after, "expected", "actual", lineterm="", n=1)
    return "\n".join(diff) or f"bytes differ: {expected.hex()} != {actual.hex()}"


def _dissected(raw: bytes) -> list[str]:
    return str(Ether(raw).show(dump=True)).splitlines()
