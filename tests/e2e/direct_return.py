# SPDX-License-Identifier: Apache-2.0
"""Two agents in mode dsr, and everybody who may ask for a Service whose backend is on node2.

The stage is that of ``passes`` with an agent on node2 too, and a second pod there. The agents read
the same Node objects and Services; nothing writes into their maps.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

from cilia.linux.cgroup import find_cgroup2
from cilia.linux.netns import NetNS
from tests.e2e import inside
from tests.e2e.manifests import node
from tests.e2e.nodes import (
    POD_GATEWAY,
    SERVICES,
    client_address,
    node_address,
    pod_address,
)
from tests.e2e.passes import (
    CLIENT_POD,
    FAMILIES,
    KINDS,
    REMOTE,
    Asked,
    asked_world,
    plug_pod,
)
from tests.e2e.world import Inside, World
from tests.kernel import Kernel

#: Number of the second pod of node2.
OTHER_POD = 4
FRONTENDS = ("NodePort", "LoadBalancer", "ExternalIP")
#: Where a client is; the backend is the pod of node2. Packets: those of a process whose sockets no
#: program translates.
CLIENTS = (
    "outside",
    "host 1, sockets",
    "host 1, packets",
    "pod 1, sockets",
    "pod 1, packets",
    "host 2, sockets",
    "host 2, packets",
    "other pod 2, sockets",
    "other pod 2, packets",
    "backend, sockets",
    "backend, packets",
)
#: Source of what a pod sends to itself through a Service.
LOOPBACK = {4: "169.254.42.1", 6: "fd63:696c:6961::1"}
#: A cell that is not answered fails in this time. The backend may still be closing the connection
#: that a client's port had through the other node: TCP then opens the next one a second later.
ANSWER_S = 2.5
#: Each cell has ports of its own, so that none is helped or hindered by another one.
FIRST_PORT = 20000

Asking = Callable[[int, list[list[object]], int, float, bool], list[str]]


class Cell(NamedTuple):
    """Who asks for what, and the nodes that are asked one after the other."""

    client: str
    frontend: str
    family: int
    proto: str
    asked: tuple[int, ...]

    def __str__(self) -> str:
        nodes = " then ".join(f"node{number}" for number in self.asked)
        return f"{self.client}: {self.frontend} IPv{self.family} {self.proto} of {nodes}"


def cells(frontend: str, family: int, proto: str) -> Iterator[Cell]:
    """Both orders of the nodes.

    What the host sends to itself is seen by programs of sockets alone.
    """
    for client in CLIENTS:
        if client.startswith("host") and client.endswith("packets"):
            if frontend == "NodePort":
                yield Cell(client, frontend, family, proto, (3 - int(client[5]),))
            continue
        yield Cell(client, frontend, family, proto, (1, 2))
        yield Cell(client, frontend, family, proto, (2, 1))


class Second(World):
    """The agent in the namespace of node2, on the manifests of the first."""

    def __init__(self, first: Asked, directory: Path, cgroup: Path, inside: Inside) -> None:
        super().__init__(directory, cgroup.name, cgroup, inside)
        self._netns = first.nodes.node[2].netns.path
        self.source = first.source

    def entering(self) -> list[str]:
        return ["nsenter", f"--net={self._netns}"]

    def command(self, *extra: str) -> list[str]:
        return [*super().command(), "--node-name=node2", "--devices=eth0", *extra]


class Direct(NamedTuple):
    """Both agents and the clients."""

    first: Asked
    second: Second
    other_pod: Kernel
    #: By the place of a process in the cgroup of its node.
    inside: dict[str, Inside]

    @property
    def agents(self) -> tuple[World, World]:
        return self.first, self.second

    def start(self, *options: str) -> None:
        for each in self.agents:
            each.start_agent(*options)
        for each in self.agents:
            each.eventually(each.ready, 30)
            each.eventually(partial(knows_nodes, each))

    def kill(self) -> None:
        """End the agents at once; what they put in force is cleaned up by `close`."""
        for each in self.agents:
            if each.agents:
                each.kill_agent()

    def drops(self, reason: str) -> int:
        """Packets that the programs of node2 refused for this reason."""
        root = f"--bpf-root={self.second.bpf_root}"
        done = self.second.cilia("bpf", "metrics", "list", root, "-o", "json")
        assert done.returncode == 0, done.stderr
        return sum(row["packets"] for row in json.loads(done.stdout) if row["reason"] == reason)

    def refused(self) -> Iterator[str]:
        """What the programs of each node count."""
        for each in self.agents:
            yield each.cilia("bpf", "metrics", "list", f"--bpf-root={each.bpf_root}").stdout

    def asking(self, client: str) -> Asking:
        """How a client asks: see `inside.series`."""
        if client in self.inside:
            asking: Asking = self.inside[client].series
            return asking
        netns = self._by_packets(client).netns
        return lambda *args: netns.run(partial(inside.series, *args))

    def in_turn(self, client: str, port: int, targets: list[list[object]]) -> list[str]:
        """Datagrams of a client by packets: see `inside.in_turn`."""
        netns = self._by_packets(client).netns
        return netns.run(partial(inside.in_turn, port, targets, ANSWER_S))

    def _by_packets(self, client: str) -> Kernel:
        nodes = self.first.nodes
        return {
            "outside": nodes.client,
            "host 1, packets": nodes.node[1],
            "pod 1, packets": self.first.client_pod,
            "host 2, packets": nodes.node[2],
            "other pod 2, packets": self.other_pod,
            "backend, packets": nodes.pod[2],
        }[client]

    def answers(self, cell: Cell, port: int) -> list[str]:
        """What each question of a cell was answered.

        A connection ends by a reset where the client would wait before it may use its port for the
        same peer again, and for one order of the nodes.
        """
        asking, kind = self.asking(cell.client), KINDS[cell.proto]
        address, at = REMOTE.frontend(cell.frontend, cell.family)
        by_node = cell.frontend == "NodePort"
        reset = cell.asked[0] == 2 or not by_node or cell.client.endswith("sockets")
        found = []
        for number in cell.asked:
            if by_node:
                address = node_address(number, cell.family)
            elif cell.client == "outside":
                self.route(cell.family, number)
            found += asking(port, [[address, at]], int(kind), ANSWER_S, reset)
        return found

    def route(self, family: int, number: int) -> None:
        """The client outside reaches Services' addresses by this node."""
        way = f"{SERVICES[family]} via {node_address(number, family)}"
        self.first.nodes.client.ip(f"-{family} route replace {way}")


def knows_nodes(each: World) -> bool:
    """The datapath has the addresses of both nodes."""
    rows = each.get("/statedb/dump")["tables"]["cluster-nodes"]
    done = [row for row in rows if row["status"]["kind"] == "done"]
    return len(done) == 2 * len(FAMILIES)


def expected(cell: Cell, direct: Collection[str] = tuple(KINDS)) -> list[str]:
    """Who answers each question, and the client that it sees: the client itself, unless that is a
    node, which the node that is asked stands for, or its protocol is not `direct`.
    """
    family = cell.family
    seen = {
        "outside": client_address(family),
        "host 1": node_address(1, family),
        "host 2": POD_GATEWAY[family].format(2),
        "pod 1": pod_address(CLIENT_POD, family),
        "other pod 2": pod_address(OTHER_POD, family),
        "backend": pod_address(2, family),
    }[cell.client.partition(",")[0]]
    if cell.client == "backend, packets":
        seen = LOOPBACK[family]
    if cell.client == "host 2, packets":
        seen = node_address(1, family)
    by = {1: seen, 2: seen}
    if cell.client == "outside" and cell.proto not in direct:
        by[1] = node_address(1, family)
    return [f"{REMOTE.name} {by[number]}" for number in cell.asked]


@contextmanager
def direct_world(directory: Path, name: str) -> Iterator[Direct]:
    """The stage; no agent yet. All of it is removed at the end."""
    root = find_cgroup2()
    assert root is not None
    cgroup = root / f"cilia-test-{name}2-{os.getpid()}"
    for part in ("first", "second"):
        (directory / part).mkdir()
    with ExitStack() as stack:
        first = stack.enter_context(asked_world(directory / "first", name))
        nodes = first.nodes
        other_pod = Kernel(stack.enter_context(NetNS.new()))
        plug_pod(nodes, 2, other_pod, OTHER_POD)
        cgroup.mkdir()
        stack.callback(cgroup.rmdir)
        places = {
            "host 2, sockets": nodes.node[2],
            "other pod 2, sockets": other_pod,
            "backend, sockets": nodes.pod[2],
        }
        processes = {place: Inside(str(at.netns.path), cgroup) for place, at in places.items()}
        for process in processes.values():
            stack.callback(process.close)
        second = Second(first, directory / "second", cgroup, processes["host 2, sockets"])
        stack.callback(second.close)
        assert first.inside_pod is not None
        processes |= {"host 1, sockets": first.inside, "pod 1, sockets": first.inside_pod}
        for number in nodes.node:
            write_node(first, number)
        made = Direct(first, second, other_pod, processes)
        stack.callback(made.kill)
        yield made


def write_node(first: Asked, number: int, more: Sequence[str] = ()) -> None:
    addresses = [node_address(number, family) for family in FAMILIES]
    first.write(f"node{number}.yaml", node(f"node{number}", [*addresses, *more]))
