# SPDX-License-Identifier: Apache-2.0
"""NodePort by tc and by XDP against nftables and against routing without translation.

A client, a node between two links, and a backend, each a network namespace. End to end: new
connections a second (connect, one byte each way, close). Cost of the node alone: BPF_PROG_RUN on
SYNs of new flows, and the time that the machine works on each of a fixed number of SYNs, less what
the same SYNs cost when the node drops them at once.
"""

from __future__ import annotations

import os
import socket
import statistics
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import NamedTuple

from bpf.link import AttachType
from bpf.object import Object
from bpf.program import Program
from cilia.linux.netns import NetNS
from tests.benchmarks.report import Report, alternated
from tests.bpf.datapath_world import Datapath, loaded
from tests.bpf.sources import build
from tests.e2e.nodeport import PASS, attach, hook_device
from tests.e2e.nodes import forward, nft, pair
from tests.e2e.nodes import run as run_in
from tests.kernel import Kernel

NODE, BACKEND, CLIENT = "10.0.1.1", "10.0.2.2", "10.0.1.2"
NODE_PORT, PORT = 30080, 8080
CONNECTIONS = 400
SYNS = 4000
ROUNDS = 5

#: At the backend's end: what came through is gone. At the node: the cost of getting there alone.
DROP = """
SEC("tc") int drop_all(struct __sk_buff *skb)
{
    return 2;
}
"""

RULES = f"""
add table ip nat
add chain ip nat services {{ type nat hook prerouting priority -100; }}
add chain ip nat masquerading {{ type nat hook postrouting priority 100; }}
add map ip nat node-ports {{ type inet_proto . inet_service : ipv4_addr . inet_service; }}
add element ip nat node-ports {{ tcp . {NODE_PORT} : {BACKEND} . {PORT} }}
add rule ip nat services fib daddr type local dnat to meta l4proto . th dport map @node-ports
add rule ip nat masquerading ct status dnat masquerade
"""


class Line(NamedTuple):
    """Client, node and backend; the address that clients ask in this variant."""

    client: Kernel
    node: Kernel
    backend: Kernel
    target: tuple[str, int]


def ifindex(kernel: Kernel, device: str) -> int:
    return kernel.netns.run(lambda: socket.if_nametoindex(device))


@contextmanager
def line(target: tuple[str, int]) -> Iterator[Line]:
    """Three namespaces in a row, without a way out."""
    with ExitStack() as stack:
        kernels = [Kernel(stack.enter_context(NetNS.new())) for _ in range(3)]
        made = Line(kernels[0], kernels[1], kernels[2], target)
        pair(made.client, "eth0", made.node, "eth0")
        pair(made.backend, "eth0", made.node, "eth1")
        made.client.ip(f"addr add {CLIENT}/24 dev eth0")
        made.node.ip(f"addr add {NODE}/24 dev eth0")
        made.node.ip("addr add 10.0.2.1/24 dev eth1")
        made.backend.ip(f"addr add {BACKEND}/24 dev eth0")
        made.client.ip(f"route add default via {NODE}")
        made.backend.ip("route add default via 10.0.2.1")
        forward(made.node)
        for kernel, device in (
            (made.client, "eth0"),
            (made.node, "eth0"),
            (made.node, "eth1"),
            (made.backend, "eth0"),
        ):
            run_in(kernel, "ethtool", "-K", device, "tx", "off")
        yield made


@contextmanager
def routed() -> Iterator[Line]:
    with line((BACKEND, PORT)) as made:
        yield made


@contextmanager
def translated_by_nftables() -> Iterator[Line]:
    with line((NODE, NODE_PORT)) as made:
        for rule in RULES.strip().splitlines():
            nft(made.node, rule)
        yield made


@contextmanager
def datapath_on(made: Line, *, xdp: bool) -> Iterator[Datapath]:
    with ExitStack() as stack:
        sizes = {"cilia_snat4": 1 << 19, "cilia_ct4_tcp": 1 << 19}
        datapath = stack.enter_context(loaded(["host", "xdp"], entries=sizes))
        datapath.netdev(ifindex(made.node, "eth0"), NODE, None)
        datapath.netdev(ifindex(made.node, "eth1"), "10.0.2.1", None)
        datapath.service(NODE, NODE_PORT, socket.IPPROTO_TCP, [(BACKEND, PORT)], rev_nat=1)
        for device in ("eth0", "eth1"):
            hook_device(stack, made.node, device, datapath, xdp=xdp)
        if xdp:
            obj = stack.enter_context(Object.open("pass", build(PASS)))
            obj.load()
            program = stack.enter_context(obj.program("pass_all"))
            for kernel in (made.client, made.backend):
                stack.enter_context(attach(kernel, "eth0", program, AttachType.XDP))
        yield datapath


@contextmanager
def translated_by_us(*, xdp: bool) -> Iterator[Line]:
    with line((NODE, NODE_PORT)) as made, datapath_on(made, xdp=xdp):
        yield made


@contextmanager
def serving(made: Line) -> Iterator[None]:
    """A backend that sends a byte back."""
    server = made.backend.netns.socket(socket.AF_INET, socket.SOCK_STREAM)
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    server.bind((BACKEND, PORT))
    server.listen(512)

    def work() -> None:
        with suppress(OSError):  # shut down
            while True:
                connection, _ = server.accept()
                with connection:
                    connection.sendall(connection.recv(1))

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    yield
    server.shutdown(socket.SHUT_RDWR)
    thread.join()
    server.close()


def connections_per_s(made: Line) -> float:
    """Connect, one byte each way, close."""

    def work() -> float:
        start = time.perf_counter()
        for _ in range(CONNECTIONS):
            with socket.create_connection(made.target, timeout=5) as connection:
                connection.sendall(b"x")
                connection.recv(1)
        return CONNECTIONS / (time.perf_counter() - start)

    return made.client.netns.run(work)


def checksum(raw: bytes) -> int:
    total = sum(struct.unpack(f"!{len(raw) // 2}H", raw))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return int(~total & 0xFFFF)


def macs(made: Line) -> bytes:
    """Destination and source of the client's frames."""

    def read() -> bytes:
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sock:
            sock.bind(("eth0", 0))
            return bytes(sock.getsockname()[4])

    return made.node.netns.run(read) + made.client.netns.run(read)


def syn(addresses: bytes, target: tuple[str, int], number: int) -> bytes:
    """A SYN of its own flow for each number, complete with checksums."""
    source = socket.inet_aton(f"10.0.1.{3 + number // 40000 % 250}")
    destination = socket.inet_aton(target[0])
    ports = struct.pack("!HH", 1024 + number % 40000, target[1])
    tcp = ports + struct.pack("!IIBBHHH", number, 0, 5 << 4, 2, 64240, 0, 0)
    total = checksum(source + destination + struct.pack("!HH", 6, len(tcp)) + tcp)
    tcp = tcp[:16] + struct.pack("!H", total) + tcp[18:]
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(tcp), 0, 0x4000, 64, 6, 0)
    head += source + destination
    head = head[:10] + struct.pack("!H", checksum(head)) + head[12:]
    return addresses + b"\x08\x00" + head + tcp


class Flood:
    """SYNs of ever new flows from the client's device, on one CPU."""

    def __init__(self, made: Line) -> None:
        self.made = made
        self.next = 0
        self.macs = macs(made)

    def ns_per_packet(self) -> float:
        """Time of this thread for each: sending, with all that softirq does before it returns."""
        target = self.made.target
        frames = [syn(self.macs, target, self.next + i) for i in range(SYNS)]
        self.next += SYNS

        def work() -> float:
            with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sock:
                sock.bind(("eth0", 0))
                os.sched_setaffinity(0, {0})
                start = time.thread_time_ns()
                for frame in frames:
                    sock.send(frame)
                return (time.thread_time_ns() - start) / SYNS

        return self.made.client.netns.run(work)


@contextmanager
def dropped_at(kernel: Kernel, device: str) -> Iterator[None]:
    with Object.open("drop", build(DROP)) as obj:
        obj.load()
        with (
            obj.program("drop_all") as program,
            attach(kernel, device, program, AttachType.TCX_INGRESS),
        ):
            yield


def run(*, peers: bool) -> None:
    report = Report("NodePort; peer: routing without translation, or nftables")
    if os.geteuid() != 0:
        print("not run: needs root")
        return
    with ExitStack() as stack:
        lines = [
            stack.enter_context(made)
            for made in (
                routed(),
                translated_by_nftables(),
                translated_by_us(xdp=False),
                translated_by_us(xdp=True),
            )
        ]
        _connections(report, lines)
        _floods(report, lines)
    _program_runs(report)


def _connections(report: Report, lines: list[Line]) -> None:
    with ExitStack() as stack:
        for made in lines:
            stack.enter_context(serving(made))
        sides: list[Callable[[], float]] = [
            lambda made=made: connections_per_s(made)  # type: ignore[misc]
            for made in lines
        ]
        for side in sides:
            side()  # neighbours, caches
        routing, nftables, by_tc, by_xdp = alternated(sides, ROUNDS)
    report.row("nodeport.connect.tc", by_tc, "connections/s; peer: routing", peer=routing)
    report.row("nodeport.connect.tc_nft", by_tc, "connections/s; peer: nftables", peer=nftables)
    report.row("nodeport.connect.xdp", by_xdp, "connections/s; peer: routing", peer=routing)
    report.row("nodeport.connect.xdp_nft", by_xdp, "connections/s; peer: nftables", peer=nftables)


def _floods(report: Report, lines: list[Line]) -> None:
    with ExitStack() as stack:
        arrival = stack.enter_context(line((NODE, NODE_PORT)))
        stack.enter_context(dropped_at(arrival.node, "eth0"))
        for made in lines:
            stack.enter_context(dropped_at(made.backend, "eth0"))
        floods = [Flood(made) for made in (arrival, *lines)]
        for flood in floods:
            flood.ns_per_packet()
        base, *costs = alternated([flood.ns_per_packet for flood in floods], ROUNDS)
    routing, nftables, by_tc, by_xdp = (cost - base for cost in costs)
    for name, ours in (("tc", by_tc), ("xdp", by_xdp)):
        report.row(
            f"nodeport.syn.{name}",
            ours,
            "ns a SYN in softirq; peer: nftables",
            peer=nftables,
            higher_is_better=False,
        )
    report.row("nodeport.syn.routing", routing, "ns a SYN; no translation", higher_is_better=False)


def _program_runs(report: Report) -> None:
    """One run a packet: a second run would see what the first made of it."""
    with line((NODE, NODE_PORT)) as made, datapath_on(made, xdp=True) as datapath:
        made.node.ip("neigh replace 10.0.2.2 lladdr 02:00:00:00:00:22 dev eth1 nud permanent")
        index, addresses = ifindex(made.node, "eth0"), macs(made)
        for name, hook in (("tc", "from_netdev"), ("xdp", "from_netdev_xdp")):
            program = datapath.program(hook)
            offset = 100000 * (name == "xdp")
            frames = [syn(addresses, made.target, offset + i) for i in range(1000)]
            first = _median_ns(made.node, program, frames, index)
            again = _median_ns(made.node, program, frames, index)
            report.row(f"nodeport.run.{name}.new", first, "ns a packet", higher_is_better=False)
            report.row(f"nodeport.run.{name}.known", again, "ns a packet", higher_is_better=False)


def _median_ns(node: Kernel, program: Program, frames: list[bytes], index: int) -> float:
    def context(frame: bytes) -> bytes:
        if program.name.endswith("xdp"):
            return struct.pack("IIIIII", 0, len(frame), 0, index, 0, 0)
        skb = bytearray(192)
        struct.pack_into("I", skb, 40, index)
        return bytes(skb)

    def work() -> float:
        return statistics.median(
            program.run(frame, context(frame), repeat=1).duration_ns for frame in frames
        )

    return node.netns.run(work)
