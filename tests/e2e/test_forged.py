# SPDX-License-Identifier: Apache-2.0
"""A pod that lies about who it is: nothing of it gets through, by any way that a packet has.

Each test sends forged frames from a raw socket of pod one, and then an honest one, which a listener
must get first.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import pytest
from scapy.contrib.geneve import GENEVE
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import ICMPv6ND_NA, ICMPv6NDOptDstLLAddr, IPv6
from scapy.layers.l2 import ARP, Ether
from scapy.layers.vxlan import VXLAN
from scapy.packet import Packet, Raw

from bpf.layout import header
from cilia.linux.netns import NetNS
from tests.e2e.nodes import Server
from tests.e2e.outside import FAR, NODE, wire
from tests.e2e.pods import FAMILIES, Pod, PodNode, pod_node
from tests.kernel import Kernel

pytestmark = [pytest.mark.root, pytest.mark.timeout(60)]

EACH_FAMILY = pytest.mark.parametrize("family", FAMILIES)
KIND = {4: socket.AF_INET, 6: socket.AF_INET6}
LAYER = {4: IP, 6: IPv6}
GATEWAY = {4: "10.207.0.1", 6: "fd00:207::1"}
UNUSED = {4: "10.207.0.99", 6: "fd00:207::99"}
OTHER_MAC = "02:00:00:00:00:77"
PORT = 9700
TUNNELS = {"vxlan": 4789, "vxlan of Linux": 8472, "geneve": 6081}
MARK_TRANSLATED = header("mark_types.h").numbers("MARK_")["TRANSLATED"]


class Liar(NamedTuple):
    """Pod one, a raw socket at its device, and everybody who may not believe it."""

    node: PodNode
    far: Kernel
    sock: socket.socket

    @property
    def one(self) -> Pod:
        return self.node.pods["one"]

    @property
    def two(self) -> Pod:
        return self.node.pods["two"]

    def ether(self) -> Packet:
        node_mac, mac = (interface["mac"] for interface in self.one.result["interfaces"])
        return Ether(src=mac, dst=node_mac)

    def places(self, family: int) -> dict[str, tuple[Kernel, str]]:
        """Where packets of a pod go: namespace and address."""
        return {
            "pod": (self.two, self.two.address(family)),
            "node": (self.node.node, GATEWAY[family]),
            "world": (self.far, FAR[family]),
        }

    def names(self, family: int) -> list[str]:
        """Addresses that pod one does not have."""
        loopback = {4: "127.0.0.1", 6: "::1"}[family]
        others = [self.two.address(family), GATEWAY[family], NODE[family], FAR[family]]
        return [*others, UNUSED[family], loopback]

    def send(self, frames: Iterable[Packet]) -> None:
        for frame in frames:
            self.sock.send(bytes(frame))

    def packet(self, family: int, source: str, destination: str, content: bytes) -> Packet:
        ip = LAYER[family](src=source, dst=destination)
        return ip / UDP(sport=1, dport=PORT) / Raw(content)

    def honest(self, family: int, destination: str) -> Packet:
        own = self.one.address(family)
        return self.ether() / self.packet(family, own, destination, b"honest")


@pytest.fixture(scope="module")
def liar(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Liar]:
    with ExitStack() as stack:
        node = stack.enter_context(pod_node(tmp_path_factory.mktemp("forged"), "forged"))
        router, far = (Kernel(stack.enter_context(NetNS.new())) for _ in range(2))
        wire(node.node, router, far)
        node.start()
        for name in ("one", "two"):
            node.add(name)
        sock = node.pods["one"].netns.socket(socket.AF_PACKET, socket.SOCK_RAW)
        stack.enter_context(sock)
        sock.bind(("eth0", 0))
        yield Liar(node, far, sock)


def listener(stack: ExitStack, kernel: Kernel, family: int, address: str) -> socket.socket:
    sock = stack.enter_context(kernel.netns.socket(KIND[family], socket.SOCK_DGRAM))
    sock.bind((address, PORT))
    sock.settimeout(3)
    return sock


@EACH_FAMILY
@pytest.mark.parametrize("place", ["pod", "node", "world"])
def test_no_other_source_gets_through(liar: Liar, family: int, place: str) -> None:
    kernel, address = liar.places(family)[place]
    with ExitStack() as stack:
        listening = listener(stack, kernel, family, address)
        liar.send(
            liar.ether() / liar.packet(family, source, address, b"forged")
            for source in liar.names(family)
        )
        frame = liar.honest(family, address)
        frame.src = OTHER_MAC
        frame[Raw].load = b"forged"
        liar.send([frame, liar.honest(family, address)])
        assert listening.recv(100) == b"honest"


def neighbours(liar: Liar) -> str:
    """All entries of the node and of pod two that somebody could have put there."""
    return liar.node.node.ip("neigh") + liar.node.node.ip("-6 neigh") + liar.two.ip("neigh")


def test_answers_in_the_names_of_others_are_not_believed(liar: Liar) -> None:
    """ARP and neighbour discovery, asked for by nobody and to everybody."""
    for name in ("ipv4/conf/all/arp_accept", "ipv6/conf/all/accept_untracked_na"):
        liar.node.node.netns.run(lambda name=name: Path(f"/proc/sys/net/{name}").write_text("1"))  # type: ignore[misc]
    ether, own = liar.ether(), liar.one.address
    for destination in (ether.dst, "ff:ff:ff:ff:ff:ff"):
        to = Ether(src=ether.src, dst=destination)
        liar.send(
            to / ARP(op=op, hwsrc=mac, psrc=source, hwdst=to.dst, pdst=asked)
            for op in (1, 2)
            for mac in (ether.src, OTHER_MAC)
            for source in liar.names(4)
            for asked in (source, GATEWAY[4])
        )
        liar.send(
            to
            / IPv6(src=source, dst="ff02::1", hlim=255)
            / ICMPv6ND_NA(tgt=target, R=0, S=0, O=1)
            / ICMPv6NDOptDstLLAddr(lladdr=ether.src)
            for target in liar.names(6)
            for source in (target, own(6))
        )
    with ExitStack() as stack:  # the last one arrived, so the others would have
        listening = listener(stack, liar.node.node, 6, GATEWAY[6])
        liar.send([liar.honest(6, GATEWAY[6])])
        assert listening.recv(100) == b"honest"
    believed = [
        line
        for line in neighbours(liar).splitlines()
        if line.split()[0] in {*liar.names(4), *liar.names(6)}
        and (ether.src in line or OTHER_MAC in line)
    ]
    assert believed == []


@EACH_FAMILY
@pytest.mark.parametrize("mark", [MARK_TRANSLATED, 0x200, 0xF00, 0x7FFFFFFF])
def test_a_mark_of_a_pod_says_nothing(liar: Liar, family: int, mark: int) -> None:
    """The programs tell each other by it that a packet is translated already."""
    with ExitStack() as stack:
        stack.callback(Server(liar.far, "far", FAR[family], PORT, socket.SOCK_DGRAM).close)
        client = stack.enter_context(liar.one.netns.socket(KIND[family], socket.SOCK_DGRAM))
        client.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
        client.settimeout(3)
        client.sendto(b"asked", (FAR[family], PORT))
        assert client.recv(100).decode().split("|")[1] == NODE[family]


@EACH_FAMILY
@pytest.mark.parametrize("tunnel", [*TUNNELS, "ip in ip"])
def test_a_tunnel_of_a_pod_ends_nowhere(liar: Liar, family: int, tunnel: str) -> None:
    """Headers of tunnels, to each address of the node, around packets of others."""
    two = liar.two.address(family)
    inner = [liar.packet(family, source, two, b"forged") for source in liar.names(family)]
    with ExitStack() as stack:
        listening = listener(stack, liar.two, family, two)
        for address in (GATEWAY[family], NODE[family]):
            outer = liar.ether() / LAYER[family](src=liar.one.address(family), dst=address)
            liar.send(outer / _tunnelled(tunnel, liar, packet) for packet in inner)
        liar.send([liar.honest(family, two)])
        assert listening.recv(100) == b"honest"


def _tunnelled(tunnel: str, liar: Liar, inner: Packet) -> Packet:
    if tunnel == "ip in ip":
        return inner
    frame = Ether(src=OTHER_MAC, dst=liar.two.result["interfaces"][1]["mac"]) / inner
    layer = GENEVE(vni=2) if tunnel == "geneve" else VXLAN(vni=2)
    return UDP(sport=5000, dport=TUNNELS[tunnel]) / layer / frame
