# SPDX-License-Identifier: Apache-2.0
"""Direct return in all shapes: an agent on each of two nodes, that writes its own maps alone."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from itertools import count

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6
from scapy.packet import Raw

from tests.e2e.direct_return import (
    ANSWER_S,
    FIRST_PORT,
    FRONTENDS,
    OTHER_POD,
    Direct,
    cells,
    direct_world,
    expected,
)
from tests.e2e.nodes import (
    POD_RANGE,
    Connection,
    Server,
    client_address,
    node_address,
    pod_address,
)
from tests.e2e.passes import FAMILIES, KINDS, LOCAL, REMOTE, TARGET_PORT, Service
from tests.e2e.world import World
from tests.expected_failure import must_work
from tests.kernel import Kernel

pytestmark = [pytest.mark.root, pytest.mark.timeout(90)]

OPTIONS = {
    "opt": ("--bpf-lb-mode=dsr", "--bpf-lb-dsr-dispatch=opt"),
    "ipip": ("--bpf-lb-mode=dsr", "--bpf-lb-dsr-dispatch=ipip"),
    "hybrid": ("--bpf-lb-mode=hybrid",),
}
PORTS = count(FIRST_PORT)
#: The least that IPv6 allows, a common overlay's, and that of the nodes.
MTUS = (1280, 1450, 1500)
HEADERS = {4: 28, 6: 48}
#: A frontend that nobody has.
STRANGER = {4: "203.0.113.250", 6: "fd00:203::fa"}


@pytest.fixture(scope="module", params=OPTIONS)
def w(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Direct]:
    mode = request.param
    with direct_world(tmp_path_factory.mktemp(mode), f"dsr{mode}") as made:
        made.start(*OPTIONS[mode])
        yield made


@pytest.fixture
def direct(request: pytest.FixtureRequest) -> tuple[str, ...]:
    """Protocols that are returned directly."""
    return ("tcp",) if request.node.callspec.params["w"] == "hybrid" else tuple(KINDS)


@pytest.mark.parametrize("proto", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("frontend", FRONTENDS)
def test_everybody_is_answered_by_each_node_that_a_port_asks(
    w: Direct, direct: tuple[str, ...], frontend: str, family: int, proto: str
) -> None:
    failed = [
        f"{cell}: {answers}"
        for cell in cells(frontend, family, proto)
        if (answers := w.answers(cell, next(PORTS))) != expected(cell, direct)
    ]
    assert not failed, "\n".join([*failed, *w.refused()])


@pytest.mark.parametrize("client", ["outside", "pod 1, packets", "other pod 2, packets"])
@pytest.mark.parametrize("family", FAMILIES)
def test_datagrams_of_one_port_are_answered_by_each_node_in_turn(
    w: Direct, client: str, family: int
) -> None:
    targets = [[node_address(number, family), REMOTE.node_port] for number in (2, 1)]
    answers = w.in_turn(client, next(PORTS), targets)
    assert [answer.split()[0] for answer in answers] == [REMOTE.name] * 4


# -- what outsiders send


@pytest.fixture
def pods_by_node2(w: Direct) -> Iterator[None]:
    """The client outside has a way to the pods of node2."""
    ways = [(f, f"{POD_RANGE[f].format(2)} via {node_address(2, f)}") for f in FAMILIES]
    for family, way in ways:
        w.first.nodes.client.ip(f"-{family} route replace {way}")
    yield
    for family, way in ways:
        w.first.nodes.client.ip(f"-{family} route del {way}")


def bound(kernel: Kernel, stack: ExitStack, family: int) -> socket.socket:
    """The client's socket; what it hears is what it was sent."""
    kind = socket.AF_INET6 if family == 6 else socket.AF_INET
    made = stack.enter_context(kernel.netns.socket(kind, socket.SOCK_DGRAM))
    made.bind((client_address(family), next(PORTS)))
    made.settimeout(ANSWER_S)
    return made


def heard(client: socket.socket) -> str:
    """The address of the next datagram, or nothing."""
    try:
        return str(client.recvfrom(2048)[1][0])
    except BlockingIOError:
        return ""


def send_inside(kernel: Kernel, stack: ExitStack, client: socket.socket, family: int) -> None:
    """Send the client's question to the load balancer's address inside a packet to the pod."""
    address, port = REMOTE.frontend("LoadBalancer", family)
    network, kind, proto = {
        4: (IP, socket.AF_INET, socket.IPPROTO_IPIP),
        6: (IPv6, socket.AF_INET6, socket.IPPROTO_IPV6),
    }[family]
    source, sport = client.getsockname()[:2]
    inner = network(src=source, dst=address) / UDP(sport=sport, dport=port) / Raw(b"hello")
    raw = stack.enter_context(kernel.netns.socket(kind, socket.SOCK_RAW, proto))
    raw.sendto(bytes(inner), (pod_address(2, family), 0))


def name_frontend(client: socket.socket, family: int, address: str) -> None:
    """What the client sends from now on brings a frontend in an option."""
    if family == 4:
        option = b"\x9a\x08" + (53).to_bytes(2, "little") + socket.inet_aton(address)[::-1]
        client.setsockopt(socket.IPPROTO_IP, socket.IP_OPTIONS, option)
        return
    packed = socket.inet_pton(socket.AF_INET6, address)
    header = bytes([0, 2, 0x1B, 20]) + packed + (53).to_bytes(2, "big") + bytes(2)
    client.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_DSTOPTS, header)


def silence(w: Direct, client: socket.socket, reason: str, before: int) -> None:
    """The packet was refused for the reason, and nothing was answered."""
    w.second.eventually(lambda: w.drops(reason) == before + 1)
    client.setblocking(False)
    assert heard(client) == ""


@pytest.mark.usefixtures("pods_by_node2")
@pytest.mark.parametrize("w", ["ipip"], indirect=True, scope="module")
@pytest.mark.parametrize("family", FAMILIES)
def test_packet_in_another_is_taken_from_nodes_alone(w: Direct, family: int) -> None:
    nodes = w.first.nodes
    w.route(family, 2)
    with ExitStack() as stack:
        with must_work():
            client = bound(nodes.client, stack, family)
            send_inside(nodes.node[1], stack, client, family)
            assert heard(client) == REMOTE.frontend("LoadBalancer", family)[0]
        client, before = bound(nodes.client, stack, family), w.drops("not from node")
        send_inside(nodes.client, stack, client, family)
        silence(w, client, "not from node", before)


@pytest.mark.usefixtures("pods_by_node2")
@pytest.mark.parametrize("w", ["opt"], indirect=True, scope="module")
@pytest.mark.parametrize("family", FAMILIES)
def test_nobody_is_answered_in_the_name_of_a_stranger(w: Direct, family: int) -> None:
    pod = (pod_address(2, family), TARGET_PORT)
    with ExitStack() as stack:
        client = bound(w.first.nodes.client, stack, family)
        with must_work():
            client.sendto(b"hello", pod)
            assert heard(client) == pod[0]
        before = w.drops("unknown frontend")
        name_frontend(client, family, STRANGER[family])
        client.sendto(b"hello", pod)
        silence(w, client, "unknown frontend", before)


# -- pods' devices that are narrower than those between nodes


@pytest.fixture(params=MTUS)
def mtu(request: pytest.FixtureRequest, w: Direct) -> Iterator[int]:
    """The MTU of both pods' devices."""
    set_mtu(w, request.param)
    yield request.param
    set_mtu(w, 1500)


def set_mtu(w: Direct, mtu: int) -> None:
    nodes = w.first.nodes
    for number in (1, 2):
        nodes.node[number].ip(f"link set lxc0 mtu {mtu}")
        nodes.pod[number].ip(f"link set eth0 mtu {mtu}")


def told_once(kernel: Kernel, address: str, port: int, size: int) -> str:
    """The answer to a datagram; its sender may be told once that it has to cut it."""
    with Connection(kernel, address, port, socket.SOCK_DGRAM, timeout_s=1) as connection:
        for _ in range(2):
            try:
                return connection.ask(b"z" * size)[2]
            except OSError as told:
                error = told
    raise error


@pytest.mark.parametrize("target", [LOCAL, REMOTE], ids=["local", "remote"])
@pytest.mark.parametrize("family", FAMILIES)
def test_datagrams_of_every_length_arrive(
    w: Direct, mtu: int, family: int, target: Service
) -> None:
    client = w.first.nodes.client
    client.ip(f"-{family} route flush cache")
    address, port = target.frontend("NodePort", family)
    for whole in (1180, 1256, 1280, mtu - 41, mtu - 24, mtu, mtu + 1, 1500, 1501, 6000):
        size = whole - HEADERS[family]
        assert told_once(client, address, port, size) == "z" * size, whole


@pytest.mark.parametrize("target", [LOCAL, REMOTE], ids=["local", "remote"])
@pytest.mark.parametrize("family", FAMILIES)
def test_uploads_go_on(w: Direct, mtu: int, family: int, target: Service) -> None:
    address, port = target.frontend("NodePort", family)
    with Connection(w.first.nodes.client, address, port, socket.SOCK_STREAM) as connection:
        assert connection.ask(b"z" * 200_000)[2] == "z" * 200_000


# -- backends that leave

MOVED = """\
apiVersion: v1
kind: Service
metadata: {{name: moved, namespace: test}}
spec:
  clusterIP: {cluster}
  clusterIPs: ["{cluster}"]
  ipFamilies: [IPv{family}]
  externalIPs: ["{external}"]
  ports: [{{name: tcp, protocol: TCP, port: 80, targetPort: {port}}}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: moved-1, namespace: test, labels: {{kubernetes.io/service-name: moved}}}}
addressType: IPv{family}
ports: [{{name: tcp, protocol: TCP, port: {port}}}]
endpoints: [{{addresses: ["{backend}"]}}]
"""
CLUSTER = {4: "203.0.113.120", 6: "fd00:203::120"}
EXTERNAL = {4: "203.0.113.121", 6: "fd00:203::121"}


def serve_by(w: Direct, family: int, backend: str) -> None:
    """A Service of its own has this backend, on both nodes."""
    fields = {"cluster": CLUSTER[family], "external": EXTERNAL[family], "backend": backend}
    w.first.write("moved.yaml", MOVED.format(family=family, port=TARGET_PORT, **fields))
    for each in w.agents:
        each.eventually(partial(leads_to, each, EXTERNAL[family], backend))


def leads_to(each: World, external: str, backend: str) -> bool:
    """A backend is all that is in force behind an address."""
    rows = each.get("/statedb/dump")["tables"]["frontends"]
    (row,) = [row for row in rows if external in row["Address"]] or [None]
    is_done = row is not None and row["Status"]["kind"] == "done"
    return is_done and [be["Address"] for be in row["Backends"]] == [at(backend, TARGET_PORT)]


def at(address: str, port: int) -> str:
    return f"[{address}]:{port}/TCP" if ":" in address else f"{address}:{port}/TCP"


@pytest.mark.parametrize("family", FAMILIES)
def test_a_connection_whose_backend_left_is_reset(w: Direct, family: int) -> None:
    """The pod that gets it instead knows nothing of it, and must say so in the frontend's name."""
    w.route(family, 1)
    leaving = pod_address(OTHER_POD, family)
    with ExitStack() as stack:
        server = Server(w.other_pod, "leaving", leaving, TARGET_PORT, socket.SOCK_STREAM)
        stack.callback(server.close)
        serve_by(w, family, leaving)
        stack.callback((w.first.manifests / "moved.yaml").unlink)
        client = (w.first.nodes.client, EXTERNAL[family], 80, socket.SOCK_STREAM)
        connection = stack.enter_context(Connection(*client))
        with must_work():
            assert connection.ask()[0] == "leaving"
        serve_by(w, family, pod_address(2, family))
        with pytest.raises(ConnectionResetError):
            connection.ask()
