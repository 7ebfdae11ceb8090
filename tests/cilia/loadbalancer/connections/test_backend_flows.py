# SPDX-License-Identifier: Apache-2.0
"""Which entries of connection tracking count as connections of a backend."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from bpf.maps import ct
from cilia.datapath.conntrack import ConntrackMaps
from cilia.loadbalancer.connections.backend_flows import BackendFlows
from tables.addressing import L3n4Addr
from tests.cilia.datapath.test_conntrack import new_maps

TCP, UDP = 6, 17
NOW = 1000
FIN, RST = 0x01, 0x04
ALIVE = ct.CtEntry(expires_s=NOW + 60, rev_nat=7)
A, B, SIX = "10.244.1.1", "10.244.1.2", "fd00::1"


def add(
    maps: ConntrackMaps,
    backend: str,
    port: int,
    client_port: int,
    proto: int = TCP,
    *,
    direction: ct.Direction = ct.Direction.EGRESS,
    entry: ct.CtEntry = ALIVE,
) -> None:
    destination = ip_address(backend).packed
    source = b"\x01" * len(destination)
    key = ct.CtKey(destination, source, port, client_port, proto, direction)
    family = 4 if len(destination) == 4 else 6
    raw = maps.connections[f"cilia_ct{family}_{'tcp' if proto == TCP else 'any'}"]
    raw.update(ct.encode_key(key), ct.encode_entry(entry))


def test_connections_are_counted_by_address_port_and_protocol() -> None:
    maps = new_maps()
    for client_port in (1, 2, 3):
        add(maps, A, 80, client_port)
    add(maps, A, 81, 1)
    add(maps, B, 80, 1)
    add(maps, A, 80, 1, UDP)
    add(maps, SIX, 80, 1)
    asked = [
        L3n4Addr.of(A, 80, "TCP"),
        L3n4Addr.of(A, 80, "UDP"),
        L3n4Addr.of(SIX, 80, "TCP"),
        L3n4Addr.of(B, 81, "TCP"),
    ]
    counted = BackendFlows(maps, now_s=lambda: NOW)(asked)
    assert [counted[address] for address in asked] == [3, 1, 1, 0]


@pytest.mark.parametrize(
    "entry",
    [
        ct.CtEntry(expires_s=NOW - 1, rev_nat=7),
        ct.CtEntry(expires_s=NOW + 60, rev_nat=7, tcp_flags=FIN, reply_tcp_flags=FIN),
        ct.CtEntry(expires_s=NOW + 60, rev_nat=7, reply_tcp_flags=RST),
        ct.CtEntry(expires_s=NOW + 60),
    ],
    ids=["silent for long", "closed", "reset", "dialled directly"],
)
def test_what_is_over_or_no_services_is_not_counted(entry: ct.CtEntry) -> None:
    maps = new_maps()
    add(maps, A, 80, 1, entry=entry)
    add(maps, A, 80, 2, direction=ct.Direction.SERVICE)
    add(maps, A, 80, 3, entry=ct.CtEntry(expires_s=NOW + 60, rev_nat=7, tcp_flags=FIN))
    address = L3n4Addr.of(A, 80, "TCP")
    assert BackendFlows(maps, now_s=lambda: NOW)([address]) == {address: 1}
