# SPDX-License-Identifier: Apache-2.0
"""Cost of the first packet of a client's flow by the share of ports that open flows have.

The program of a node's device, by BPF_PROG_RUN, one run a packet: each one is a flow of its own to
one backend behind a source translation. The ports in use are of flows that are open and were used
right now, so none of them is taken from its owner.
"""

from __future__ import annotations

import os
import random
import statistics
import struct
import time
from collections.abc import Iterator
from contextlib import ExitStack

from scapy.layers.inet import TCP, UDP
from scapy.packet import Packet

from bpf.maps import nat
from bpf.maps.map import Map
from bpf.maps.nat import NatDirection, NatFlag, NatKey, NatValue
from tests.benchmarks.report import Report
from tests.bpf.datapath_world import loaded, packed
from tests.bpf.host_world import (
    BACKEND,
    CLIENT,
    NODE,
    PORT,
    Node,
    frame,
    made,
    proto_of,
)

FIRST, LAST = 32768, 65535
SHARES = (0, 50, 90, 100)
PACKETS = 1000
#: An LRU with this much room forgets nothing.
ENTRIES = 1 << 18
#: What an open flow has: answered, and the answer acknowledged.
OPEN = NatFlag.SEEN_REPLY | NatFlag.CONFIRMED
LIFETIME_S = {TCP: 8000, UDP: 60}


def fill(entries: Map, family: int, transport: type[Packet], share: int) -> None:
    """Give this share of the ports, in percent, to open flows."""
    now_s = int(time.monotonic())
    value = NatValue(
        packed(CLIENT[family]),
        1,
        flags=OPEN,
        expires_s=now_s + LIFETIME_S[transport],
        created_s=now_s,
        rev_nat=1,
    )
    ports = random.Random(1).sample(range(FIRST, LAST + 1), (LAST - FIRST + 1) * share // 100)
    node, backend = packed(NODE[family]), packed(BACKEND[family])
    for port in ports:
        key = NatKey(node, backend, port, 8080, proto_of(transport), NatDirection.IN)
        entries.update(nat.encode_key(key), nat.encode_value(value))


def first_packets(family: int, transport: type[Packet]) -> Iterator[bytes]:
    flags = {"flags": "S"} if transport is TCP else {}
    for sport in random.Random(2).sample(range(1024, 30000), PACKETS):
        head = transport(sport=sport, dport=PORT, **flags)
        yield bytes(frame(CLIENT[family], NODE[family], head))


def cost_ns(plain: Node, family: int, transport: type[Packet], share: int) -> float:
    """Return the median time of a first packet."""
    name, kind = f"cilia_snat{family}", "tcp" if transport is TCP else "any"
    sizes = {name: ENTRIES, f"cilia_ct{family}_{kind}": ENTRIES}
    with loaded(["host"], entries=sizes) as datapath:
        datapath.netdev(plain.ifindex, NODE[4], NODE[6])
        plain._replace(datapath=datapath).serve(family, proto_of(transport))
        fill(datapath.maps[name], family, transport, share)
        skb = bytearray(192)
        struct.pack_into("I", skb, 40, plain.ifindex)
        packets = list(first_packets(family, transport))
        program = datapath.program("from_netdev")
        with plain.namespace.enter():
            return statistics.median(
                program.run(packet, bytes(skb)).duration_ns for packet in packets
            )


def run(*, peers: bool) -> None:
    del peers  # they have no such range
    if os.geteuid() != 0:
        print("bench nat_full: needs root (real programs), not run")
        return
    report = Report("first packet of a translated flow; peer: 0 % of the ports are in use")
    with ExitStack() as stack:
        plain = made("tc", 0, stack)
        for transport in (TCP, UDP):
            for family in (4, 6):
                name = f"{transport.__name__.lower()}{family}"
                unused = cost_ns(plain, family, transport, 0)
                for share in SHARES:
                    cost = cost_ns(plain, family, transport, share) if share else unused
                    report.row(
                        f"{name} at {share} %", cost, "ns", peer=unused, higher_is_better=False
                    )
