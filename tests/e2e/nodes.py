# SPDX-License-Identifier: Apache-2.0
"""Two nodes with pods and a client, each a network namespace, on one switch without a way out.

::

    client .9    node1 .1 ── pod .1.10     node2 .2 ── pod .2.10
       |            |                         |
       +────────────+── switch (a bridge) ────+        192.0.2.0/24, fd00:2::/64

The switch is a namespace of its own, so that a node has one device to everybody, as on a LAN. A
second client sits behind another device of node1. Servers are threads of the test with sockets
inside the pods' namespaces; they answer with their name, whom they saw and what they got.
"""

from __future__ import annotations

import socket
import struct
import subprocess
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import NamedTuple

from cilia.linux.netns import NetNS
from tests.kernel import Kernel

ADDRESS = {4: "192.0.2.{}", 6: "fd00:2::{}"}
NODE_BITS = {4: 24, 6: 64}
POD = {4: "10.244.{}.10", 6: "fd00:244:{}::10"}
POD_RANGE = {4: "10.244.{}.0/24", 6: "fd00:244:{}::/64"}
POD_GATEWAY = {4: "10.244.{}.1", 6: "fd00:244:{}::1"}
SECOND_NET = {4: "198.51.100.{}", 6: "fd00:51::{}"}
SERVICES = {4: "203.0.113.0/24", 6: "fd00:203::/64"}

CLIENT = 9
FAMILIES = (4, 6)


def node_address(number: int, family: int) -> str:
    return ADDRESS[family].format(number)


def client_address(family: int) -> str:
    return ADDRESS[family].format(CLIENT)


def pod_address(node: int, family: int) -> str:
    return POD[family].format(node)


class Nodes(NamedTuple):
    """The namespaces, by role."""

    switch: Kernel
    client: Kernel
    second_client: Kernel
    node: dict[int, Kernel]
    pod: dict[int, Kernel]

    def ifindex(self, kernel: Kernel, device: str = "eth0") -> int:
        return kernel.netns.run(lambda: socket.if_nametoindex(device))

    def all(self) -> list[Kernel]:
        ends = [self.switch, self.client, self.second_client]
        return [*ends, *self.node.values(), *self.pod.values()]


@contextmanager
def two_nodes(*, bridged: bool = False) -> Iterator[Nodes]:
    """Build everything.

    ``bridged``: pods are behind a bridge and masqueraded by nftables, as with other CNIs.
    """
    with ExitStack() as stack:

        def namespace() -> Kernel:
            kernel = Kernel(stack.enter_context(NetNS.new()))
            kernel.ip("link set lo up")
            return kernel

        nodes = Nodes(
            namespace(),
            namespace(),
            namespace(),
            {number: namespace() for number in (1, 2)},
            {number: namespace() for number in (1, 2)},
        )
        nodes.switch.ip_batch(["link add br0 type bridge", "link set br0 up"])
        _plug(nodes, nodes.client, CLIENT)
        for number, node in nodes.node.items():
            _plug(nodes, node, number)
            forward(node)
        for number in nodes.node:
            _pod(nodes, number, bridged=bridged)
        _second_client(nodes)
        _routes(nodes)
        for kernel in nodes.all():
            _no_checksum_offload(kernel)
        yield nodes


def forward(kernel: Kernel) -> None:
    """Make a namespace a router; no reverse path filter, as Cilium's replies may need it off."""
    for name, value in (
        ("ipv4/ip_forward", "1"),
        ("ipv6/conf/all/forwarding", "1"),
        ("ipv4/conf/all/rp_filter", "0"),
    ):
        write_sysctl(kernel, name, value)


def write_sysctl(kernel: Kernel, name: str, value: str) -> None:
    def write() -> None:
        with open(f"/proc/sys/net/{name}", "w") as file:
            file.write(value)

    kernel.netns.run(write)


def pair(one: Kernel, name: str, other: Kernel, other_name: str) -> None:
    """A veth pair between two namespaces, both ends up."""
    one.ip_batch(
        [
            f"link add {name} type veth peer name {other_name} netns {other.netns.path}"
            if one is not other
            else f"link add {name} type veth peer name {other_name}",
            f"link set {name} up",
        ]
    )
    other.ip(f"link set {other_name} up")


def _plug(nodes: Nodes, kernel: Kernel, number: int) -> None:
    port = f"port{number}"
    pair(kernel, "eth0", nodes.switch, port)
    nodes.switch.ip(f"link set {port} master br0")
    for family in FAMILIES:
        address = f"{node_address(number, family)}/{NODE_BITS[family]}"
        kernel.ip(f"addr add {address} dev eth0{' nodad' if family == 6 else ''}")


def _pod(nodes: Nodes, number: int, *, bridged: bool) -> None:
    node, pod = nodes.node[number], nodes.pod[number]
    pair(node, "lxc0", pod, "eth0")
    device = "lxc0"
    if bridged:
        device = "cni0"
        node.ip_batch(
            ["link add cni0 type bridge", "link set cni0 up", "link set lxc0 master cni0"]
        )
    for family in FAMILIES:
        bits = NODE_BITS[family]
        gateway, nodad = POD_GATEWAY[family].format(number), " nodad" if family == 6 else ""
        node.ip(f"addr add {gateway}/{bits} dev {device}{nodad}")
        pod.ip(f"addr add {pod_address(number, family)}/{bits} dev eth0{nodad}")
        pod.ip(f"-{family} route add default via {gateway}")
    if bridged:
        rules = "; ".join(
            f"add rule inet nat post {name} saddr {POD_RANGE[family].format(number)} "
            f"oifname eth0 masquerade"
            for family, name in ((4, "ip"), (6, "ip6"))
        )
        nft(
            node,
            "add table inet nat; add chain inet nat post "
            "{ type nat hook postrouting priority 100; }; " + rules,
        )


def _second_client(nodes: Nodes) -> None:
    pair(nodes.node[1], "eth1", nodes.second_client, "eth0")
    for family in FAMILIES:
        nodad = " nodad" if family == 6 else ""
        bits = NODE_BITS[family]
        nodes.node[1].ip(f"addr add {SECOND_NET[family].format(1)}/{bits} dev eth1{nodad}")
        nodes.second_client.ip(f"addr add {SECOND_NET[family].format(9)}/{bits} dev eth0{nodad}")
        nodes.second_client.ip(f"-{family} route add default via {SECOND_NET[family].format(1)}")


def _routes(nodes: Nodes) -> None:
    """Pods of the other node by that node; service addresses by node1, and nowhere beyond it."""
    for family in FAMILIES:
        for here, there in ((1, 2), (2, 1)):
            way = f"{POD_RANGE[family].format(there)} via {node_address(there, family)}"
            nodes.node[here].ip(f"-{family} route add {way}")
        second = f"{SECOND_NET[family].format(0)}/{NODE_BITS[family]}"
        nodes.node[2].ip(f"-{family} route add {second} via {node_address(1, family)}")
        nodes.client.ip(f"-{family} route add {SERVICES[family]} via {node_address(1, family)}")
        for node in nodes.node.values():
            node.ip(f"-{family} route add unreachable {SERVICES[family]}")


def _no_checksum_offload(kernel: Kernel) -> None:
    """Checksums are complete on every wire, as between machines: XDP cannot complete them."""
    for _, name in kernel.netns.run(socket.if_nameindex):
        if name.startswith(("eth", "lxc", "port")):
            run(kernel, "ethtool", "-K", name, "tx", "off")


def run(kernel: Kernel, *command: str) -> str:
    """Any command inside a namespace. Raises: AssertionError with its words when it fails."""
    done = subprocess.run(
        ["nsenter", f"--net={kernel.netns.path}", *command],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
    return done.stdout


def nft(kernel: Kernel, text: str) -> None:
    run(kernel, "nft", text)


class Server:
    """Answers on one port until closed: ``NAME|ADDRESS OF THE CLIENT|`` and what it got."""

    def __init__(self, kernel: Kernel, name: str, address: str, port: int, kind: int) -> None:
        self.name = name
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self._sock = kernel.netns.socket(family, kind)
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._sock.bind((address, port))
        self._open: list[socket.socket] = []
        if kind == socket.SOCK_STREAM:
            self._sock.listen(512)
        serve = self._serve_tcp if kind == socket.SOCK_STREAM else self._serve_udp
        self._thread = threading.Thread(target=serve, name=name, daemon=True)
        self._thread.start()

    def _answer(self, client: tuple[str, int], content: bytes) -> bytes:
        return f"{self.name}|{client[0]}|".encode() + content

    def _serve_udp(self) -> None:
        with suppress(OSError):  # closed
            while True:
                content, client = self._sock.recvfrom(65535)
                if client is None:  # shut down
                    return
                self._sock.sendto(self._answer(client, content), client)

    def _serve_tcp(self) -> None:
        with suppress(OSError):  # closed
            while True:
                connection, client = self._sock.accept()
                self._open.append(connection)
                threading.Thread(
                    target=self._serve_connection, args=(connection, client), daemon=True
                ).start()

    def _serve_connection(self, connection: socket.socket, client: tuple[str, int]) -> None:
        with connection, suppress(OSError):
            while head := connection.recv(4, socket.MSG_WAITALL):
                (size,) = struct.unpack("!I", head)
                content = connection.recv(size, socket.MSG_WAITALL)
                answer = self._answer(client, content)
                connection.sendall(struct.pack("!I", len(answer)) + answer)

    def close(self) -> None:
        """Close the sockets; a thread that waits on one is woken by shutdown or ends with it."""
        with suppress(OSError):  # never connected
            self._sock.shutdown(socket.SHUT_RDWR)
        self._thread.join(2)
        self._sock.close()
        for connection in self._open:
            with suppress(OSError):  # ended before
                connection.shutdown(socket.SHUT_RDWR)


def exactly(sock: socket.socket, size: int) -> bytes:
    """This many bytes. Raises: ConnectionError when the stream ends before, TimeoutError."""
    parts = bytearray()
    while len(parts) < size:
        part = sock.recv(size - len(parts))
        if not part:
            raise ConnectionError(f"{size - len(parts)} bytes are missing")
        parts += part
    return bytes(parts)


class Connection:
    """A client's TCP connection or UDP socket; ``ask`` gives what the server answered."""

    def __init__(
        self, kernel: Kernel, address: str, port: int, kind: int, *, timeout_s: float = 3.0
    ) -> None:
        self.kind = kind
        self.sock = kernel.netns.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, kind)
        self.sock.settimeout(timeout_s)
        try:
            self.sock.connect((address, port))
        except OSError:
            self.sock.close()
            raise

    def ask(self, content: bytes = b"hello") -> list[str]:
        """[name of the server, address that it saw, content]."""
        if self.kind == socket.SOCK_STREAM:
            self.sock.sendall(struct.pack("!I", len(content)) + content)
            (size,) = struct.unpack("!I", exactly(self.sock, 4))
            answer = exactly(self.sock, size)
        else:
            self.sock.send(content)
            answer = self.sock.recv(65535)
        name, seen, rest = answer.decode().split("|", 2)
        return [name, seen, rest]

    def close(self) -> None:
        self.sock.close()

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def ask(kernel: Kernel, address: str, port: int, kind: int, content: bytes = b"hello") -> list[str]:
    """One question on a connection of its own."""
    with Connection(kernel, address, port, kind) as connection:
        return connection.ask(content)
