# SPDX-License-Identifier: Apache-2.0
"""Flows of real pods: entries at either end, flows without them, and programs that refuse."""

from __future__ import annotations

import itertools
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from ipaddress import ip_address
from pathlib import Path
from typing import NamedTuple

import pytest

from bpf import compile as bpf_compile
from bpf.errors import NotFound
from bpf.link import Link
from bpf.maps import ct
from bpf.maps.ct import CtEntry, CtFlag, CtKey, Direction
from bpf.maps.map import Map
from bpf.object import Object
from bpf.program import Program
from tests.e2e.manifests import endpoint_slice, service
from tests.e2e.nodes import Connection, Server, ask
from tests.e2e.pods import FAMILIES, PodNode, pod_node
from tests.kernel import Kernel

pytestmark = [pytest.mark.root, pytest.mark.timeout(120)]

TCP, UDP = socket.SOCK_STREAM, socket.SOCK_DGRAM
GATEWAY = {4: "10.207.0.1", 6: "fd00:207::1"}
SERVICE = {4: "10.203.0.60", 6: "fd00:203::60"}
BACKEND_PORT = 8080
HOST = 1
EGRESS, INGRESS = 1 << Direction.EGRESS, 1 << Direction.INGRESS
ports = itertools.count(9500)


class Flows:
    """A node with two pods, each behind a Service, and what its programs know."""

    def __init__(self, node: PodNode, *, legacy: bool) -> None:
        self.node = node
        self._legacy = legacy
        self._pins = node.world.bpf_root / node.world.namespace
        node.start(*(["--enable-host-legacy-routing"] if legacy else []))
        for name in ("one", "two"):
            node.add(name)
            for family in FAMILIES:
                backend = node.pods[name].address(family)
                text = service(f"{name}{family}", self.frontend(name, family))
                text += "---\n" + endpoint_slice(f"{name}{family}", [backend])
                node.world.write(f"{name}{family}.yaml", text)

    @staticmethod
    def frontend(name: str, family: int) -> str:
        return str(ip_address(SERVICE[family]) + (name == "two"))

    def _maps(self) -> Iterator[Map]:
        for name in ct.CT_MAPS:
            with Map.open_pinned(self._pins / "maps" / name) as opened:
                yield opened

    def entries(self) -> dict[CtKey, CtEntry]:
        return {key: entry for raw in self._maps() for key, entry in ct.connections(raw)}

    def forget(self) -> None:
        """Delete the entries that an agent of before tracking would not have."""
        for raw in self._maps():
            for key, entry in list(ct.connections(raw)):
                if not entry.rev_nat:
                    raw.delete(ct.encode_key(key))

    def refuse(self, generation: int, directions: int) -> None:
        """Replace the programs of the pods by ones that refuse these directions."""
        constants = {
            "pod_network": b"\1",
            "host_legacy_routing": bytes([self._legacy]),
            "policy_generation": generation.to_bytes(4, "little"),
            "policy_refused_directions": bytes([directions]),
        }
        with ExitStack() as stack:
            obj = stack.enter_context(Object.open("lxc", bpf_compile.load_object("lxc")))
            for definition in obj.map_definitions():
                try:
                    held = Map.open_pinned(self._pins / "maps" / definition.name)
                except NotFound:
                    continue
                obj.set_max_entries(definition.name, stack.enter_context(held).max_entries)
                obj.reuse(definition.name, held)
            for name, value in constants.items():
                obj.set_constant(name, value)
            obj.load()
            programs = {made.name: stack.enter_context(made) for made in obj.programs()}
            replaced = sum(self._replace(path, programs) for path in self._links())
        assert replaced == 2 * len(self.node.pods)

    def _links(self) -> list[Path]:
        return list((self._pins / "attachments").iterdir())

    @staticmethod
    def _replace(path: Path, programs: dict[str, Program]) -> bool:
        with Link.open_pinned(path) as link, Program.by_id(link.info().program_id) as program:
            name = program.info().name
            if name in programs:
                link.update(programs[name])
            return name in programs


@pytest.fixture(scope="module", params=[False, True], ids=["direct", "legacy"])
def flows(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Flows]:
    with pod_node(tmp_path_factory.mktemp("flows"), "flows") as made:
        yield Flows(made, legacy=request.param)


def identities(node: PodNode) -> dict[str, int]:
    """Of the pods, by their addresses."""
    rows = node.rows("ipcache")
    return {row["Prefix"].partition("/")[0]: int(row["Identity"]) for row in rows}


class Way(NamedTuple):
    """Who asks whom, at which address and port. Behind a Service the server's are others."""

    name: str
    client: Kernel
    server: Kernel
    address: str
    served: str
    port: int = 0


def ways(flows: Flows, family: int) -> Iterator[Way]:
    """Every kind of way that leads from or to a pod on one node."""
    one, two, host = flows.node.pods["one"], flows.node.pods["two"], flows.node.node
    own, other = one.address(family), two.address(family)
    yield Way("pod to pod", one, two, other, other)
    yield Way("node to pod", host, one, own, own)
    yield Way("pod to node", one, host, GATEWAY[family], GATEWAY[family])
    yield Way("pod to service", one, two, flows.frontend("two", family), other, 80)
    yield Way("pod to itself", one, one, flows.frontend("one", family), own, 80)


@pytest.mark.parametrize("family", FAMILIES)
def test_entries_of_a_flow_name_the_other_end(flows: Flows, family: int) -> None:
    one, two = flows.node.pods["one"], flows.node.pods["two"]
    identity = identities(flows.node)
    with ExitStack() as stack:
        port = next(ports)
        address = two.address(family)
        stack.callback(Server(two, "two", address, port, TCP).close)
        assert ask(one, address, port, TCP)[0] == "two"
        assert ask(flows.node.node, address, port, TCP)[0] == "two"
    pod = ip_address(one.address(family)).packed
    found = {
        (key.source == pod, key.direction): entry.remote_identity
        for key, entry in flows.entries().items()
        if key.destination_port == port
    }
    assert found == {
        (True, Direction.EGRESS): identity[two.address(family)],
        (True, Direction.INGRESS): identity[one.address(family)],
        (False, Direction.INGRESS): HOST,
    }


@pytest.mark.parametrize("family", FAMILIES)
def test_flows_go_on_that_have_no_entry(flows: Flows, family: int) -> None:
    """They began with programs that made none; whoever speaks first opens one."""
    with ExitStack() as stack:
        opened = []
        for way in ways(flows, family):
            for kind in (TCP, UDP):
                port = BACKEND_PORT if way.port else next(ports)
                stack.callback(Server(way.server, way.name, way.served, port, kind).close)
                flows.node.world.eventually(lambda a=way, p=port, k=kind: answers(a, p, k))  # type: ignore[misc]
                connection = Connection(way.client, way.address, way.port or port, kind)
                stack.callback(connection.close)
                opened.append((way, connection))
        assert [way.name for way, it in opened if it.ask()[0] != way.name] == []
        flows.forget()
        assert [way.name for way, it in opened if it.ask()[0] != way.name] == []
    tcp = [entry for key, entry in flows.entries().items() if key.proto == socket.IPPROTO_TCP]
    assert any(entry.flags & CtFlag.NON_SYN for entry in tcp)


def answers(way: Way, port: int, kind: int) -> bool:
    """Whether the way leads to its server; a Service needs a moment."""
    try:
        with Connection(way.client, way.address, way.port or port, kind, timeout_s=0.3) as it:
            return it.ask()[0] == way.name
    except OSError:
        return False


@pytest.mark.parametrize(
    ("refused", "passing"),
    [(EGRESS, {"node to pod"}), (INGRESS, {"pod to node"})],
    ids=["egress", "ingress"],
)
def test_no_way_leads_around_the_verdict(flows: Flows, refused: int, passing: set[str]) -> None:
    """Programs that refuse a direction, on the maps of the agent, which is dead."""
    if flows.node.world.agents[-1].poll() is None:
        flows.node.world.kill_agent()
    with ExitStack() as stack:
        sockets = []
        for way in (way for family in FAMILIES for way in ways(flows, family)):
            port = BACKEND_PORT if way.port else next(ports)
            server = bound(stack, way.server, way.served, port)
            client = bound(stack, way.client, "::" if ":" in way.served else "0.0.0.0", 0)
            sockets.append((way, client, server, (way.address, way.port or port)))
        flows.refuse(10 * refused, refused)
        for _, client, _, target in sockets:
            client.sendto(b"refused", target)
        flows.refuse(10 * refused + 1, 0)
        for way, client, server, target in sockets:
            client.sendto(b"allowed", target)
            came = server.recv(100) == b"refused"
            assert (way.name, came) == (way.name, way.name in passing)


def bound(stack: ExitStack, kernel: Kernel, address: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    sock = stack.enter_context(kernel.netns.socket(family, UDP))
    sock.settimeout(3)
    sock.bind((address, port))
    return sock
