# SPDX-License-Identifier: Apache-2.0
"""A client when every port to its backend is taken: what its packet costs."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from scapy.layers.inet import TCP

from bpf.maps import nat
from bpf.maps.nat import NatDirection, NatFlag, NatKey, NatValue
from tests.bpf.datapath_world import loaded, packed
from tests.bpf.host_world import BACKEND, CLIENT, DROPPED, FAMILIES, NODE, Node, made, request

pytestmark = [pytest.mark.root, pytest.mark.timeout(60)]

FIRST_PORT = 50000
FEW, MANY = 64, 4096
#: The map is an LRU: with room to spare it forgets nothing.
ENTRIES = 8 * MANY
RUNS = 20


@pytest.fixture(scope="module")
def plain() -> Iterator[Node]:
    """A namespace with routes and neighbours; its own programs are not run."""
    with ExitStack() as stack:
        yield made("tc", 0, stack)


def refusal_ns(plain: Node, family: int, ports: int) -> int:
    """Return the time of a client's SYN in a range with this many ports, all taken."""
    constants = {
        "nat_min_port": FIRST_PORT.to_bytes(4, "little"),
        "nat_max_port": (FIRST_PORT + ports - 1).to_bytes(4, "little"),
    }
    name = f"cilia_snat{family}"
    with loaded(["host"], constants, entries={name: ENTRIES}) as datapath:
        datapath.netdev(plain.ifindex, NODE[4], NODE[6])
        node = plain._replace(datapath=datapath)
        node.serve(family, socket.IPPROTO_TCP)
        address, backend = packed(NODE[family]), packed(BACKEND[family])
        flags = NatFlag.SEEN_REPLY | NatFlag.CONFIRMED
        open_flow = NatValue(packed(CLIENT[family]), 1, flags, expires_s=1 << 31, created_s=1)
        other = nat.encode_value(open_flow)
        for port in range(FIRST_PORT, FIRST_PORT + ports):
            key = NatKey(address, backend, port, 8080, socket.IPPROTO_TCP, NatDirection.IN)
            datapath.maps[name].update(nat.encode_key(key), other)
        verdict, _ = node.run(request(family, TCP, flags="S"))
        assert verdict == DROPPED["tc"]
        skb = bytearray(192)
        struct.pack_into("I", skb, 40, plain.ifindex)
        packet = bytes(request(family, TCP, flags="S"))
        with plain.namespace.enter():
            program = datapath.program("from_netdev")
            return min(program.run(packet, bytes(skb), repeat=RUNS).duration_ns for _ in range(3))


@FAMILIES
def test_refusal_costs_the_same_when_the_range_is_larger(plain: Node, family: int) -> None:
    few, many = (refusal_ns(plain, family, ports) for ports in (FEW, MANY))
    assert many < 8 * few
