# SPDX-License-Identifier: Apache-2.0
"""A node with two workloads of ours, whose packets run through the programs of their devices.

::

    one --one0-- [ programs, no stack ] --two0-- two       node and world send by the stack

A packet that a program leaves to the stack goes to the device of its destination, as the stack
would send it.
"""

from __future__ import annotations

import itertools
import os
import socket
import struct
from collections.abc import Mapping
from contextlib import ExitStack
from enum import Enum
from typing import Final, NamedTuple

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP, fragment
from scapy.layers.inet6 import (
    ICMPv6DestUnreach,
    ICMPv6EchoReply,
    ICMPv6EchoRequest,
    IPv6,
    IPv6ExtHdrFragment,
)
from scapy.layers.l2 import Ether
from scapy.layers.sctp import SCTP, SCTPChunkData
from scapy.packet import Packet, Raw

from bpf.layout import header
from bpf.maps import ct, endpoints, ipcache
from bpf.maps.ct import CtEntry, CtFlag, CtKey, Direction
from bpf.program import Program
from tables.addressing import Prefix
from tests.bpf.datapath_world import Datapath, drops, loaded, packed
from tests.bpf.world import NetworkNamespace

GO_ON, SHOT, REDIRECT = 0xFFFFFFFF, 2, 7
DENIED = header("drop_types.h").numbers("DROP_")["POLICY_DENIED"]

HOST, WORLD = 1, 2
#: Bits of `policy_refused_directions`.
EGRESS, INGRESS = 1 << Direction.EGRESS, 1 << Direction.INGRESS
BOTH = EGRESS | INGRESS
ITSELF = 4

GATEWAY: Final = {4: "10.0.1.1", 6: "fd00:1::1"}
OUTSIDE: Final = {4: "192.0.2.7", 6: "2001:db8::7"}
SERVICE: Final = {4: "10.96.0.1", 6: "fd00:96::1"}
LOOPBACK: Final = {4: "169.254.42.1", 6: "fd63:696c:6961::1"}

FAMILIES = pytest.mark.parametrize("family", [4, 6], ids=["v4", "v6"])
KINDS = pytest.mark.parametrize("kind", ["tcp", "udp", "sctp", "echo"])
PROTOCOLS: Final = {
    "tcp": socket.IPPROTO_TCP,
    "udp": socket.IPPROTO_UDP,
    "sctp": socket.IPPROTO_SCTP,
}

_numbers = itertools.count()


class Pod(NamedTuple):
    """A workload: its row, and the device on the node's side."""

    name: str
    addresses: dict[int, str]
    identity: int
    id: int
    ifindex: int
    mac: str
    node_mac: str


class Fate(Enum):
    """Where a packet ends."""

    DELIVERED = "delivered"
    LEFT = "left to the stack"
    REFUSED = "refused"


class FlowNode:
    """The programs by their generation, on one set of maps."""

    def __init__(self, stack: ExitStack, constants: Mapping[str, bytes] | None = None) -> None:
        self._stack = stack
        self._constants = {"pod_network": b"\1", **(constants or {})}
        self.namespace = NetworkNamespace(f"cilia-flow-{os.getpid()}-{next(_numbers)}")
        stack.callback(self.namespace.close)
        self.datapath = stack.enter_context(loaded(["lxc"], self._constants))
        self.programs = self.datapath
        self.one, self.two = self._pod("one", 11), self._pod("two", 12)
        self.pods = {"one": self.one, "two": self.two}
        for prefix in ("0.0.0.0/0", "::/0"):
            self.identify(prefix, WORLD)
        for family in (4, 6):
            self.identify(GATEWAY[family], HOST)

    def _pod(self, name: str, number: int) -> Pod:
        device = f"{name}0"
        self.namespace.veth(device, f"{name}1")
        node_mac, mac = f"02:00:00:00:01:{number}", f"02:00:00:00:00:{number}"
        self.namespace.run("link", "set", device, "address", node_mac)
        index = self.namespace.ifindex(device)
        addresses = {4: f"10.0.1.{number}", 6: f"fd00:1::{number}"}
        pod = Pod(name, addresses, 300 + number, number, index, mac, node_mac)
        self.write(pod)
        return pod

    def write(self, pod: Pod) -> None:
        """The rows of a workload, as an agent writes them."""
        macs = (_mac(pod.mac), _mac(pod.node_mac))
        ipv4, ipv6 = packed(pod.addresses[4]), packed(pod.addresses[6])
        row = endpoints.EndpointValue(pod.id, pod.identity, ipv4, ipv6, *macs)
        maps = self.datapath.maps
        maps[endpoints.NAME].update(endpoints.encode_key(pod.ifindex), endpoints.encode_value(row))
        place = endpoints.EndpointPlace(pod.ifindex, pod.identity, pod.id, *macs)
        for address in (ipv4, ipv6):
            maps[endpoints.BY_ADDRESS].update(
                endpoints.encode_address(address), endpoints.encode_place(place)
            )
        for family in (4, 6):
            self.identify(pod.addresses[family], pod.identity)

    def identify(self, prefix: str, identity: int) -> None:
        """The identity behind a prefix."""
        parsed = Prefix.parse(prefix)
        key = ipcache.encode_key(ipcache.IPCacheKey(parsed.ip.packed, parsed.length))
        value = ipcache.encode_value(ipcache.IPCacheValue(identity))
        self.datapath.maps[ipcache.NAME].update(key, value)

    def policy(self, generation: int, refused: int = 0) -> None:
        """Replace the programs: verdicts of other generations are stale from now on."""
        constants = {
            **self._constants,
            "policy_generation": generation.to_bytes(4, "little"),
            "policy_refused_directions": bytes([refused]),
        }
        self.programs = self._stack.enter_context(loaded(["lxc"], constants, shared=self.datapath))

    def use(self, programs: Datapath) -> None:
        """Go on with programs that `policy` made before."""
        self.programs = programs

    def clear(self) -> None:
        self.datapath.clear()

    def run(self, program: str, pod: Pod, data: bytes) -> tuple[int, bytes]:
        """A frame at the workload's device: verdict and bytes."""
        skb = bytearray(192)
        struct.pack_into("I", skb, 40, pod.ifindex)
        found: Program = self.programs.program(program)
        with self.namespace.enter():
            result = found.run(data, bytes(skb))
        return result.retval, result.data

    def sends(self, pod: Pod, packet: Packet) -> tuple[Fate, Packet]:
        """A packet of a workload, to where it ends on this node; and what it is there."""
        frame = Ether(src=pod.mac, dst=pod.node_mac) / packet
        verdict, data = self.run("from_pod", pod, bytes(frame))
        if verdict == GO_ON:
            return self._by_stack(Ether(data)[1])
        return {SHOT: Fate.REFUSED, REDIRECT: Fate.DELIVERED}[verdict], Ether(data)[1]

    def _by_stack(self, packet: Packet) -> tuple[Fate, Packet]:
        for pod in self.pods.values():
            if packet.dst in pod.addresses.values():
                return self.arrives(pod, packet)
        return Fate.LEFT, packet

    def arrives(self, pod: Pod, packet: Packet) -> tuple[Fate, Packet]:
        """A packet that the stack sends to a workload."""
        frame = Ether(src=pod.node_mac, dst=pod.mac) / packet
        verdict, data = self.run("to_pod", pod, bytes(frame))
        return (Fate.REFUSED if verdict == SHOT else Fate.DELIVERED), Ether(data)[1]

    def refused_reasons(self) -> dict[int, int]:
        return drops(self.datapath)

    def entries(self) -> dict[CtKey, CtEntry]:
        """All flows, of both families."""
        return {
            key: entry
            for name in ct.CT_MAPS
            for key, entry in ct.connections(self.datapath.maps[name])
        }

    def edit(self, key: CtKey, entry: CtEntry) -> None:
        """Write an entry as another program or time would."""
        kind = "tcp" if key.proto == socket.IPPROTO_TCP else "any"
        name = f"cilia_ct{6 if len(key.source) == 16 else 4}_{kind}"
        self.datapath.maps[name].update(ct.encode_key(key), ct.encode_entry(entry))

    def serve(self, family: int, kind: str, backend: str, port: int = 8080) -> None:
        self.datapath.service(SERVICE[family], 80, PROTOCOLS[kind], [(backend, port)], rev_nat=1)


def _mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


def ip(src: str, dst: str, **fields: int) -> Packet:
    return IPv6(src=src, dst=dst) if ":" in src else IP(src=src, dst=dst, **fields)


def packet(
    kind: str, src: str, sport: int, dst: str, dport: int, flags: str = "S", *, answer: bool = False
) -> Packet:
    """``kind``: of a transport, or an echo, whose identifier is the opener's port."""
    if kind == "tcp":
        return ip(src, dst) / TCP(sport=sport, dport=dport, flags=flags) / Raw(b"odd")
    if kind == "udp":
        return ip(src, dst) / UDP(sport=sport, dport=dport) / Raw(b"odd")
    if kind == "sctp":
        return ip(src, dst) / SCTP(sport=sport, dport=dport) / SCTPChunkData(data=b"odd")
    identifier = dport if answer else sport
    if ":" in src:
        echo = ICMPv6EchoReply if answer else ICMPv6EchoRequest
        return ip(src, dst) / echo(id=identifier)
    return ip(src, dst) / ICMP(type=0 if answer else 8, id=identifier)


def key(kind: str, src: str, sport: int, dst: str, dport: int, direction: Direction) -> CtKey:
    """Of the flow that such a packet opens."""
    if kind == "echo":
        dport = 0
        proto = socket.IPPROTO_ICMPV6 if ":" in src else socket.IPPROTO_ICMP
    else:
        proto = PROTOCOLS[kind]
    return CtKey(packed(dst), packed(src), dport, sport, proto, direction)


def answered(entry: CtEntry) -> bool:
    return bool(entry.flags & CtFlag.SEEN_REPLY)


def fragments(src: str, sport: int, dst: str, dport: int) -> list[Packet]:
    """A datagram of three parts."""
    body = UDP(sport=sport, dport=dport) / Raw(bytes(2000))
    if ":" not in src:
        return list(fragment(IP(src=src, dst=dst, id=7) / body, 1000))
    whole = bytes(IPv6(src=src, dst=dst) / body)[40:]
    return [
        IPv6(src=src, dst=dst)
        / IPv6ExtHdrFragment(nh=17, offset=at // 8, m=int(at + 1000 < len(whole)), id=7)
        / Raw(whole[at : at + 1000])
        for at in range(0, len(whole), 1000)
    ]


def error(src: str, dst: str, quoted: Packet) -> Packet:
    """Port unreachable, from ``src``, about a packet that ``dst`` sent."""
    if ":" in src:
        return IPv6(src=src, dst=dst) / ICMPv6DestUnreach(code=4) / bytes(quoted)
    return IP(src=src, dst=dst) / ICMP(type=3, code=3) / bytes(quoted)


class Policies(NamedTuple):
    """A node, and its programs by the directions that they refuse: each a generation of its own."""

    node: FlowNode
    refusing: dict[int, Datapath]

    def refuse(self, directions: int) -> None:
        self.node.use(self.refusing[directions])

    @staticmethod
    def generation(directions: int) -> int:
        return directions + 1


def policies_of(stack: ExitStack, *, legacy: bool) -> Policies:
    """A node whose workloads are delivered to directly, or by the stack."""
    node = FlowNode(stack, {"host_legacy_routing": bytes([legacy])})
    refusing = {}
    for directions in (0, EGRESS, INGRESS, BOTH, ITSELF):
        node.policy(Policies.generation(directions), directions)
        refusing[directions] = node.programs
    return Policies(node, refusing)
