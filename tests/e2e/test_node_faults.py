# SPDX-License-Identifier: Apache-2.0
"""Addresses of nodes and mounts of an agent's own: what a real agent makes of them."""

from __future__ import annotations

import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.e2e.manifests import endpoint_slice, node, served
from tests.e2e.nodes import Server, node_address, pod_address
from tests.e2e.passes import FAMILIES, KINDS, LOCAL, Asked, asked_world
from tests.e2e.world import POD_V4, World, world
from tests.expected_failure import must_work

pytestmark = [pytest.mark.root, pytest.mark.timeout(90)]

ANSWER_S = 1.0
#: In this time a change of addresses is in force.
WATCHED_S = 1.5
#: A program of node2 that is no backend.
OTHER, OTHER_PORT = "other", 6443
INSIDE = ("host sockets", "pod sockets", "pod packets")

INGRESS = """\
apiVersion: v1
kind: Service
metadata: {{name: ingress, namespace: test}}
spec:
  type: LoadBalancer
  clusterIP: 203.0.113.110
  clusterIPs: [203.0.113.110, "fd00:203::110"]
  ipFamilies: [IPv4, IPv6]
  ports: [{{name: tcp, protocol: TCP, port: 80, targetPort: 8080, nodePort: 30180}}]
status:
  loadBalancer: {{ingress: [{addresses}]}}
"""


@pytest.fixture(scope="module")
def w(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Asked]:
    with asked_world(tmp_path_factory.mktemp("nodes"), "nodefaults") as made:
        for number in (1, 2):
            addresses = [node_address(number, family) for family in FAMILIES]
            made.write(f"node{number}.yaml", node(f"node{number}", addresses))
        made.running()
        yield made


@pytest.fixture(scope="module")
def ingress(w: Asked) -> Iterator[None]:
    """A Service whose status has the addresses of both nodes, and other servers of node2."""
    with ExitStack() as stack:
        for kind in KINDS.values():
            for family in FAMILIES:
                address = node_address(2, family)
                server = Server(w.nodes.node[2], OTHER, address, OTHER_PORT, kind)
                stack.callback(server.close)
        with must_work():
            for client in INSIDE:
                for family in FAMILIES:
                    asking = w.clients()[client]
                    asking(node_address(2, family), OTHER_PORT, socket.SOCK_STREAM, ANSWER_S)
        every = [node_address(number, family) for number in (1, 2) for family in FAMILIES]
        addresses = ", ".join(f'{{ip: "{address}"}}' for address in every)
        slices = endpoint_slice("ingress", [pod_address(1, 4)])
        w.write("ingress.yaml", INGRESS.format(addresses=addresses) + "---\n" + slices)
        w.eventually(lambda: frontends_done(w, every))
        w.eventually(w.ready)
        yield
        (w.manifests / "ingress.yaml").unlink()


def frontends_done(w: Asked, addresses: list[str]) -> bool:
    """The Service's port is in force at all of these."""
    rows = w.get("/statedb/dump")["tables"]["frontends"]
    done = {row["Address"] for row in rows if row["Status"]["kind"] == "done"}
    return done >= {f"[{a}]:80/TCP" if ":" in a else f"{a}:80/TCP" for a in addresses}


@pytest.mark.usefixtures("ingress")
@pytest.mark.parametrize("client", INSIDE)
@pytest.mark.parametrize("proto", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_other_ports_of_a_node_answer_when_its_address_is_a_load_balancers(
    w: Asked, client: str, proto: str, family: int
) -> None:
    answer = w.clients()[client](node_address(2, family), OTHER_PORT, KINDS[proto], ANSWER_S)
    assert answer[0] == OTHER


@pytest.fixture
def second_address(w: Asked) -> Iterator[str]:
    """An address of node1's device that sorts before the node's own."""
    address = "10.9.8.7"
    with must_work():
        w.clients()["outside"](*LOCAL.frontend("HostPort", 4), socket.SOCK_DGRAM, ANSWER_S)
    w.nodes.node[1].ip(f"addr add {address}/24 dev eth0")
    w.eventually(lambda: address in addresses_of(w))
    yield address
    w.nodes.node[1].ip(f"addr del {address}/24 dev eth0")
    w.eventually(lambda: address not in addresses_of(w))


def addresses_of(w: Asked) -> str:
    return str(w.get("/statedb/dump")["tables"]["node-addresses"])


@pytest.mark.usefixtures("second_address")
@pytest.mark.parametrize("client", ["outside", "host sockets"])
@pytest.mark.parametrize("frontend", ["NodePort", "HostPort"])
def test_ports_stay_at_the_nodes_address_when_its_device_gets_a_second(
    w: Asked, client: str, frontend: str
) -> None:
    asking, (address, port) = w.clients()[client], LOCAL.frontend(frontend, 4)
    end = time.monotonic() + WATCHED_S
    while time.monotonic() < end:
        assert asking(address, port, socket.SOCK_DGRAM, ANSWER_S)[0] == LOCAL.name


@pytest.mark.usefixtures("second_address")
def test_a_node_object_that_is_unread_at_a_start_changes_no_address(w: Asked) -> None:
    """Nothing tells what the file said: somebody emptied the state directory."""
    before = in_use(w)
    own = (w.manifests / "node1.yaml").read_text()
    w.kill_agent()
    shutil.rmtree(w.state_dir / "manifests")
    w.write("node1.yaml", "{")
    w.start_agent()
    try:
        w.eventually(lambda: "node1.yaml is not read" in w.cilia("status").stdout)
        w.eventually(lambda: bool(in_use(w)))
        assert in_use(w) == before
        for client in ("outside", "host sockets"):
            asking, (address, port) = w.clients()[client], LOCAL.frontend("NodePort", 4)
            assert asking(address, port, socket.SOCK_DGRAM, ANSWER_S)[0] == LOCAL.name
    finally:
        w.write("node1.yaml", own)
    w.eventually(w.ready)
    assert in_use(w) == before


def in_use(w: Asked) -> list[str]:
    """What translated packets leave with, and where node ports are."""
    tables = w.get("/statedb/dump")["tables"]
    sources = [f"{row['name']} {row['ipv4']} {row['ipv6']}" for row in tables["netdevs"]]
    served = [row["addr"] for row in tables["node-addresses"] if row["nodeport"]]
    return [*sources, *sorted(served)] if sources and served else []


@pytest.fixture
def apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """A world whose agent has a mount namespace of its own; it runs, or has refused to."""
    with world(tmp_path, "apart") as made:
        entering = ["unshare", "--mount", "--propagation=private", *made.entering()]
        monkeypatch.setattr(made, "entering", lambda: entering)
        made.inside.serve("pod", POD_V4[0], 8080)
        made.write("echo.yaml", served("echo", "10.203.0.10", POD_V4[:1]))
        agent = made.start_agent()
        with must_work():
            made.eventually(lambda: made.ready() or agent.poll() is not None)
            if agent.poll() is None:
                assert made.inside.tcp("10.203.0.10", 80)["answer"] == "pod"
        yield made


def test_what_an_agent_says_to_stay_in_force_stays(apart: World) -> None:
    agent, log = apart.agents[-1], apart.directory / "agent.log"
    agent.terminate()
    apart.eventually(lambda: "stay in force" in log.read_text() or agent.poll() is not None)
    agent.kill()
    agent.wait()
    end = time.monotonic() + WATCHED_S  # the kernel removes a mount after its last process
    while "stay in force" in log.read_text() and time.monotonic() < end:
        assert apart.inside.tcp("10.203.0.10", 80).get("answer") == "pod"
    assert log.read_text().count("mount namespace of this process") == 2, "at the start and the end"
