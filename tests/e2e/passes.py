# SPDX-License-Identifier: Apache-2.0
"""Everybody asks for everything: one agent on a node, clients around it, and a table of passes.

The namespaces are those of ``nodes``; the agent runs in that of node1, with another pod, which is
a client alone. node2 has no agent: it is a router with a pod, so that replies only come back if
node1 translated the source. ``python -m tests.e2e.passes`` prints the table.
"""

from __future__ import annotations

import os
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from errno import errorcode
from pathlib import Path
from typing import NamedTuple

from cilia.linux.cgroup import find_cgroup2
from cilia.linux.netns import NetNS
from tests.e2e.manifests import endpoint_slice
from tests.e2e.nodes import (
    NODE_BITS,
    POD_GATEWAY,
    POD_RANGE,
    SERVICES,
    Connection,
    Nodes,
    Server,
    ask,
    client_address,
    node_address,
    pair,
    pod_address,
    two_nodes,
)
from tests.e2e.world import Inside, World
from tests.kernel import Kernel

FAMILIES = (4, 6)
KINDS = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}
#: Number of the pod that is a client alone, among the pods' ranges.
CLIENT_POD = 3
#: By the node of their only backend.
PLACES = {"local": 1, "remote": 2}
HOST_PORT = 8088
PORT = 80
TARGET_PORT = 8080
DROPPED = "dropped"
#: What is dropped is not waited for as long as an answer.
ANSWER_S, SILENCE_S = 3.0, 0.5

SERVICE = """\
apiVersion: v1
kind: Service
metadata: {{name: {name}, namespace: test}}
spec:
  type: LoadBalancer
  clusterIP: "{cluster[4]}"
  clusterIPs: ["{cluster[4]}", "{cluster[6]}"]
  externalIPs: ["{external[4]}", "{external[6]}"]
  ipFamilies: [IPv4, IPv6]
  ports:
    - {{name: tcp, protocol: TCP, port: 80, targetPort: 8080, nodePort: {node_port}}}
    - {{name: udp, protocol: UDP, port: 80, targetPort: 8080, nodePort: {node_port}}}
status:
  loadBalancer: {{ingress: [{{ip: "{balancer[4]}"}}, {{ip: "{balancer[6]}"}}]}}
"""

POD = """\
apiVersion: v1
kind: Pod
metadata: {{name: web, namespace: test}}
spec:
  nodeName: node1
  containers:
    - name: web
      ports:
        - {{containerPort: 8080, protocol: TCP, hostPort: {port}}}
        - {{containerPort: 8080, protocol: UDP, hostPort: {port}}}
status:
  phase: Running
  podIPs: [{{ip: "{v4}"}}, {{ip: "{v6}"}}]
  conditions: [{{type: Ready, status: "True"}}]
"""

Asking = Callable[[str, int, socket.SocketKind, float], list[str]]


def service_address(last: int) -> dict[int, str]:
    """One address a family within the ranges that lead nowhere."""
    return {4: SERVICES[4].replace("0/24", str(last)), 6: SERVICES[6].replace("/64", str(last))}


class Service(NamedTuple):
    """One Service with every kind of frontend; ``number`` is in all of its addresses."""

    name: str
    number: int

    @property
    def node_port(self) -> int:
        return 30080 + self.number

    def frontend(self, kind: str, family: int) -> tuple[str, int]:
        """Address and port for a kind of frontend."""
        on_node = {"NodePort": self.node_port, "HostPort": HOST_PORT}
        if kind in on_node:
            return node_address(1, family), on_node[kind]
        return self._addresses()[kind][family], PORT

    def manifest(self, backends: Mapping[int, Sequence[str]]) -> str:
        """Also its slices, one a family."""
        kinds = self._addresses()
        text = SERVICE.format(
            name=self.name,
            cluster=kinds["ClusterIP"],
            external=kinds["ExternalIP"],
            balancer=kinds["LoadBalancer"],
            node_port=self.node_port,
        )
        slices = (
            endpoint_slice(self.name, addresses).replace(f"{self.name}-1", f"{self.name}-{family}")
            for family, addresses in backends.items()
        )
        return "---\n".join([text, *slices])

    def _addresses(self) -> dict[str, dict[int, str]]:
        tens = {"ClusterIP": 1, "LoadBalancer": 2, "ExternalIP": 3}
        return {kind: service_address(10 * ten + self.number) for kind, ten in tens.items()}


LOCAL, REMOTE = Service("local", 1), Service("remote", 2)
#: For tests that take its backends away.
MOVING = Service("moving", 3)
FRONTENDS = ("ClusterIP", "NodePort", "LoadBalancer", "ExternalIP", "HostPort")


class Cell(NamedTuple):
    """A pass: who asks, for what, and where the backend is."""

    client: str
    frontend: str
    family: int
    proto: str
    place: str


class Asked(World):
    """The agent in the namespace of node1, and everybody who asks."""

    def __init__(
        self, directory: Path, cgroup: Path, nodes: Nodes, client_pod: Kernel, inside: Inside
    ) -> None:
        """``inside`` is a process of the node."""
        super().__init__(directory, cgroup.name, cgroup, inside)
        self.nodes, self.client_pod = nodes, client_pod
        self.options: tuple[str, ...] | None = None
        self.inside_pod: Inside | None = None

    def entering(self) -> list[str]:
        return ["nsenter", f"--net={self.nodes.node[1].netns.path}"]

    def command(self, *extra: str) -> list[str]:
        return [*super().command(), "--node-name=node1", "--devices=eth0", *extra]

    def running(self, *options: str) -> None:
        """An agent with these options has reconciled everything."""
        if self.options != options:
            if self.options is not None:
                self.kill_agent()
            self.start_agent(*options)
            self.options = options
        self.eventually(self.ready, 30)

    def clients(self) -> dict[str, Asking]:
        """Who asks, and how: sockets in the cgroup are translated, of others the packets are."""
        assert self.inside_pod is not None

        def by_packets(kernel: Kernel) -> Asking:
            def asking(
                address: str, port: int, kind: socket.SocketKind, timeout_s: float
            ) -> list[str]:
                with Connection(kernel, address, port, kind, timeout_s=timeout_s) as connection:
                    return connection.ask()

            return asking

        def by_sockets(inside: Inside) -> Asking:
            def asking(
                address: str, port: int, kind: socket.SocketKind, timeout_s: float
            ) -> list[str]:
                answer = inside.framed(address, port, int(kind), timeout_s)
                if isinstance(answer, dict):
                    raise OSError(answer["errno"], answer["error"])
                return list(answer)

            return asking

        return {
            "outside": by_packets(self.nodes.client),
            "pod packets": by_packets(self.client_pod),
            "pod sockets": by_sockets(self.inside_pod),
            "host sockets": by_sockets(self.inside),
        }


def cells() -> Iterator[Cell]:
    """All that there are. A HostPort is where its pod is."""
    for frontend in FRONTENDS:
        for family in FAMILIES:
            for proto in KINDS:
                for client in ("outside", "pod packets", "pod sockets", "host sockets"):
                    for place in PLACES if frontend != "HostPort" else ("local",):
                        yield Cell(client, frontend, family, proto, place)


def expectations(*, external_cluster_ip: bool = False) -> dict[Cell, str]:
    """What each cell must show: the source that the backend sees, or `DROPPED`."""
    expected = {cell: _source(cell) for cell in cells()}
    if not external_cluster_ip:
        for cell in expected:
            if (cell.client, cell.frontend) == ("outside", "ClusterIP"):
                expected[cell] = DROPPED
    return expected


def _source(cell: Cell) -> str:
    """Address of the client, or of the node that has to get the replies."""
    local = cell.place == "local"
    if cell.client == "outside" and local:
        return client_address(cell.family)
    if cell.client.startswith("pod"):
        return pod_address(CLIENT_POD, cell.family)
    if cell.client == "host sockets" and local:
        return POD_GATEWAY[cell.family].format(1)
    return node_address(1, cell.family)


def passes(asked: Asked, expected: Mapping[Cell, str]) -> dict[Cell, str]:
    """Ask for everything."""
    clients = asked.clients()
    return {cell: _show(clients[cell.client], cell, expected[cell]) for cell in expected}


def _show(asking: Asking, cell: Cell, expected: str) -> str:
    """The source that the backend saw, or why there was no answer."""
    service = LOCAL if cell.place == "local" else REMOTE
    address, port = service.frontend(cell.frontend, cell.family)
    timeout_s = SILENCE_S if expected == DROPPED else ANSWER_S
    # A datagram may get lost: its question is asked twice.
    for _ in range(2 if cell.proto == "udp" and expected != DROPPED else 1):
        try:
            name, source, content = asking(address, port, KINDS[cell.proto], timeout_s)
        except TimeoutError:
            continue
        except OSError as error:
            return errorcode.get(error.errno or 0, str(error))
        right = (name, content) == (cell.place, "hello")
        return source if right else f"{name} answered {content}"
    return DROPPED


def table(found: Mapping[Cell, str], expected: Mapping[Cell, str]) -> str:
    """A row a frontend, a column a client and place; what is not as expected is in capitals."""
    columns = list(dict.fromkeys((cell.client, cell.place) for cell in found))
    rows = dict.fromkeys((cell.frontend, cell.family, cell.proto) for cell in found)
    lines = [["frontend", *(f"{client}, {place}" for client, place in columns)]]
    for frontend, family, proto in rows:
        line = (Cell(client, frontend, family, proto, place) for client, place in columns)
        marks = [_mark(found[cell], expected[cell]) if cell in found else "-" for cell in line]
        lines.append([f"{frontend} IPv{family} {proto}", *marks])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def _mark(found: str, expected: str) -> str:
    if found != expected:
        return f"FAILED: {found}"
    return found if found == DROPPED else "ok"


class Traffic:
    """Questions of an outside client without a pause: on connections of their own, and on open
    ones.
    """

    def __init__(self, kernel: Kernel, targets: Sequence[tuple[str, int]]) -> None:
        self._kernel, self._targets = kernel, targets
        self._stopping = threading.Event()
        self.answers = 0
        self.failures: list[str] = []
        self._open = [
            Connection(kernel, *target, kind) for target in targets for kind in KINDS.values()
        ]
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        questions: list[tuple[str, Callable[[], object]]] = [
            (f"open {connection.sock.type.name}", connection.ask) for connection in self._open
        ]
        for address, port in self._targets:
            for name, kind in KINDS.items():
                new = partial_ask(self._kernel, address, port, kind)
                questions.append((f"new {name} to {address}", new))
        while not self._stopping.is_set():
            for name, question in questions:
                try:
                    question()
                    self.answers += 1
                except OSError as error:
                    self.failures.append(f"{name}: {error!r}")

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join()
        for connection in self._open:
            connection.close()


def partial_ask(kernel: Kernel, address: str, port: int, kind: int) -> Callable[[], object]:
    return lambda: ask(kernel, address, port, kind)


def backends(node: int) -> dict[int, list[str]]:
    """The pod of a node, a family."""
    return {family: [pod_address(node, family)] for family in FAMILIES}


@contextmanager
def asked_world(directory: Path, name: str, *, bridged: bool = False) -> Iterator[Asked]:
    """Servers, clients and manifests; no agent yet. All of it is removed at the end.

    `bridged`: as for `two_nodes`.
    """
    cgroup_root = find_cgroup2()
    assert cgroup_root is not None, "no cgroup2 hierarchy is mounted"
    cgroup = cgroup_root / f"cilia-test-{name}-{os.getpid()}"
    with ExitStack() as stack:
        nodes = stack.enter_context(two_nodes(bridged=bridged))
        client_pod = Kernel(stack.enter_context(NetNS.new()))
        plug_pod(nodes, 1, client_pod, CLIENT_POD)
        for place, number in PLACES.items():
            for family in FAMILIES:
                for kind in KINDS.values():
                    address = pod_address(number, family)
                    server = Server(nodes.pod[number], place, address, TARGET_PORT, kind)
                    stack.callback(server.close)
        cgroup.mkdir()
        stack.callback(cgroup.rmdir)
        inside = Inside(nodes.node[1].netns.path, cgroup)
        stack.callback(inside.close)
        made = Asked(directory, cgroup, nodes, client_pod, inside)
        made.inside_pod = Inside(client_pod.netns.path, cgroup)
        stack.callback(made.inside_pod.close)
        stack.callback(made.close)
        for service, node in ((LOCAL, 1), (REMOTE, 2), (MOVING, 1)):
            made.write(f"{service.name}.yaml", service.manifest(backends(node)))
        v4, v6 = (pod_address(1, family) for family in FAMILIES)
        made.write("pod.yaml", POD.format(port=HOST_PORT, v4=v4, v6=v6))
        yield made


def plug_pod(nodes: Nodes, host: int, pod: Kernel, number: int) -> None:
    """A second pod of a node; its checksums are left to the device, unlike those of the others."""
    node = nodes.node[host]
    pair(node, "lxc1", pod, "eth0")
    for family in FAMILIES:
        bits, nodad = NODE_BITS[family], " nodad" if family == 6 else ""
        gateway = POD_GATEWAY[family].format(number)
        node.ip(f"addr add {gateway}/{bits} dev lxc1{nodad}")
        pod.ip(f"addr add {pod_address(number, family)}/{bits} dev eth0{nodad}")
        pod.ip(f"-{family} route add default via {gateway}")
        way = f"{POD_RANGE[family].format(number)} via {node_address(host, family)}"
        nodes.node[3 - host].ip(f"-{family} route add {way}")


def main() -> None:
    """Print the table."""
    with tempfile.TemporaryDirectory() as directory, asked_world(Path(directory), "passes") as w:
        w.running()
        expected = expectations()
        print(table(passes(w, expected), expected))


if __name__ == "__main__":
    main()
