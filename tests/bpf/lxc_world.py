# SPDX-License-Identifier: Apache-2.0
"""What tests of a workload's device share: programs, packets between named addresses, entries."""

from __future__ import annotations

import socket
import time
from typing import NamedTuple

import msgspec
import pytest
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from scapy.layers.sctp import SCTP, SCTPChunkData
from scapy.packet import Packet, Raw

from bpf.maps import ct
from bpf.maps.ct import CtEntry, CtKey, Direction
from tests.bpf.datapath_world import Datapath, drops, packed
from tests.bpf.packets import MAC_NODE_ONE, MAC_POD_ONE, packet_diff

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


def edit(datapath: Datapath, family: Family, proto: str, key: CtKey, **fields: int | bytes) -> None:
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
