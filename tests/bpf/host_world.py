# SPDX-License-Identifier: Apache-2.0
"""What tests of a node's device share: one run a packet, by tc or by XDP, in a namespace with a
device, a route and a neighbour. Every checksum of what comes out is computed anew.
"""

from __future__ import annotations

import itertools
import os
import socket
import struct
from collections.abc import Mapping
from contextlib import ExitStack
from typing import NamedTuple

import pytest
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw

from bpf.link import AttachType, Link
from bpf.maps.cluster_nodes import ClusterNodeFlag
from bpf.xdp import XdpMode
from tests.bpf.datapath_world import Datapath, loaded
from tests.bpf.world import NetworkNamespace

CLIENT = {4: "192.0.2.9", 6: "fd00:2::9"}
NODE = {4: "192.0.2.1", 6: "fd00:2::1"}
OTHER_NODE = {4: "192.0.2.2", 6: "fd00:2::2"}
BACKEND = {4: "10.244.2.10", 6: "fd00:244:2::10"}
POD = {4: "10.244.1.10", 6: "fd00:244:1::10"}
MAC_NODE, MAC_CLIENT, MAC_OTHER = "02:00:00:00:00:01", "02:00:00:00:00:09", "02:00:00:00:00:02"
PORT, REV_NAT = 30080, 7

PASS = {"tc": 0xFFFFFFFF, "xdp": 2}
SENT = {"tc": 7, "xdp": 3}
DROPPED = {"tc": 2, "xdp": 1}

FAMILIES = pytest.mark.parametrize("family", [4, 6], ids=["v4", "v6"])
PROTOCOLS = pytest.mark.parametrize("transport", [TCP, UDP], ids=["tcp", "udp"])


_numbers = itertools.count()


class Node(NamedTuple):
    """A node's programs by one hook."""

    hook: str
    namespace: NetworkNamespace
    datapath: Datapath
    ifindex: int

    def run(self, packet: Packet, program: str = "from_netdev") -> tuple[int, Packet]:
        """Verdict and packet; the packet's checksums are right."""
        verdict, data = self.run_part(packet, program)
        out = Ether(data)
        assert bytes(out) == bytes(recomputed(out)), "a checksum or length is wrong"
        return verdict, out

    def run_part(self, packet: Packet, program: str = "from_netdev") -> tuple[int, bytes]:
        """Verdict and bytes, also of a fragment, which has no checksum of its own."""
        raw = bytes(packet)
        if self.hook == "xdp":
            program = "from_netdev_xdp"
            context = struct.pack("6I", 0, len(raw), 0, self.ifindex, 0, 0)
        else:
            skb = bytearray(192)
            struct.pack_into("I", skb, 40, self.ifindex)
            context = bytes(skb)
        with self.namespace.enter():
            result = self.datapath.program(program).run(raw, context)
        return result.retval, result.data

    def serve(self, family: int, proto: int, backend: str = "", flags: int = 0) -> None:
        self.datapath.clear()
        backends = [(backend or BACKEND[family], 8080)]
        self.datapath.service(NODE[family], PORT, proto, backends, rev_nat=REV_NAT, flags=flags)


def recomputed(packet: Packet) -> Packet:
    """The packet with the checksums that scapy computes, but for those that ICMP quotes."""
    copy = packet.copy()
    layer = copy
    while layer and not isinstance(layer, Raw):
        if type(layer).__name__ in ("IPerror", "IPerror6"):
            break
        for field in ("chksum", "cksum"):
            if field in layer.fields:
                delattr(layer, field)
        layer = layer.payload
    return Ether(bytes(copy))


def made(
    hook: str, dispatch: int, stack: ExitStack, constants: Mapping[str, bytes] | None = None
) -> Node:
    namespace = NetworkNamespace(f"cilia-host-{hook}-{os.getpid()}-{next(_numbers)}")
    stack.callback(namespace.close)
    namespace.veth("eth0", "wire")
    namespace.veth("lxc0", "pod")
    for family in (4, 6):
        nodad = ["nodad"] if family == 6 else []
        bits = 24 if family == 4 else 64
        namespace.run("addr", "add", f"{NODE[family]}/{bits}", "dev", "eth0", *nodad)
        for address, mac in ((OTHER_NODE, MAC_OTHER), (CLIENT, MAC_CLIENT)):
            place = ["lladdr", mac, "dev", "eth0", "nud", "permanent"]
            namespace.run("neigh", "add", address[family], *place)
        namespace.run(f"-{family}", "route", "add", POD[family], "dev", "lxc0")
        far = "10.244.2.0/24" if family == 4 else "fd00:244:2::/64"
        namespace.run(f"-{family}", "route", "add", far, "via", OTHER_NODE[family])
    with namespace.enter():
        for name in ("ipv4/ip_forward", "ipv6/conf/all/forwarding"):
            with open(f"/proc/sys/net/{name}", "w") as file:
                file.write("1")
    values = {"nodeport_dsr": b"\1", "nodeport_dispatch": bytes([dispatch]), **(constants or {})}
    datapath = stack.enter_context(loaded(["host", "xdp"], values))
    index = namespace.ifindex("eth0")
    datapath.netdev(index, NODE[4], NODE[6])
    for family in (4, 6):
        datapath.cluster_node(NODE[family], ClusterNodeFlag.SELF)
        datapath.cluster_node(OTHER_NODE[family])
    if hook == "xdp":  # a device without a program has no queue that a run may name
        with namespace.enter():
            program = datapath.program("from_netdev_xdp")
            stack.enter_context(
                Link.create(program, index, AttachType.XDP, flags=XdpMode.NATIVE.flags)
            )
    return Node(hook, namespace, datapath, index)


def frame(src: str, dst: str, transport: Packet, payload: bytes = b"hello") -> Packet:
    network = IPv6(src=src, dst=dst, hlim=64) if ":" in src else IP(src=src, dst=dst, ttl=64)
    return Ether(src=MAC_CLIENT, dst=MAC_NODE) / network / transport / Raw(payload)


def request(family: int, transport: type[Packet], **fields: object) -> Packet:
    head = transport(sport=40000, dport=PORT, **fields)
    return frame(CLIENT[family], NODE[family], head)


def proto_of(transport: type[Packet]) -> int:
    return socket.IPPROTO_TCP if transport is TCP else socket.IPPROTO_UDP


def hops(packet: Packet) -> int:
    return int(packet[1].hlim if packet[1].name == "IPv6" else packet[1].ttl)
