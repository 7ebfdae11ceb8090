# SPDX-License-Identifier: Apache-2.0
"""What pods send to the world, through the router of `outside`."""

from __future__ import annotations

import itertools
import json
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from scapy.layers.inet import ICMP
from scapy.layers.inet6 import ICMPv6EchoRequest
from scapy.packet import Raw

from cilia.linux.netns import NetNS
from tests.e2e.manifests import endpoint_slice, service
from tests.e2e.nodes import Connection, Server, ask
from tests.e2e.outside import FAR, NARROW_MTU, NODE, PODS, SPARED, SPARED_PREFIX, wire
from tests.e2e.pods import FAMILIES, Pod, PodNode, pod_node
from tests.kernel import Kernel

pytestmark = [pytest.mark.root, pytest.mark.timeout(120)]

TCP, UDP = socket.SOCK_STREAM, socket.SOCK_DGRAM
KINDS = pytest.mark.parametrize("kind", [TCP, UDP], ids=["tcp", "udp"])
EACH_FAMILY = pytest.mark.parametrize("family", FAMILIES)
SERVICE = {4: "10.203.0.50", 6: "fd00:203::50"}
IP_MTU_DISCOVER, IP_PMTUDISC_DO = 10, 2
ports = itertools.count(9000)


class Stage(NamedTuple):
    node: PodNode
    router: Kernel
    far: Kernel
    file: Path

    @property
    def pod(self) -> Pod:
        return self.node.pods["one"]

    def serve(self, stack: ExitStack, address: str, kind: int, kernel: Kernel | None = None) -> int:
        port = next(ports)
        stack.callback(Server(kernel or self.far, "far", address, port, kind).close)
        return port

    def translations(self) -> list[dict[str, Any]]:
        done = self.node.world.cilia(
            "bpf", "nat", "list", "-o", "json", f"--bpf-root={self.node.world.bpf_root}"
        )
        assert done.returncode == 0, done.stderr
        rows: list[dict[str, Any]] = json.loads(done.stdout)
        return rows


def excluded(prefixes: dict[int, str]) -> str:
    return f"nonMasqueradeCIDRs: [{', '.join(map(json.dumps, prefixes.values()))}]\n"


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    directory = tmp_path_factory.mktemp("masquerade")
    with ExitStack() as stack:
        node = stack.enter_context(pod_node(directory, "masq"))
        router, far = (Kernel(stack.enter_context(NetNS.new())) for _ in range(2))
        wire(node.node, router, far)
        file = directory / "ip-masq-agent"
        file.write_text(excluded(SPARED_PREFIX))
        start(node, file)
        node.add("one")
        yield Stage(node, router, far, file)


def start(node: PodNode, file: Path) -> None:
    node.start("--enable-ip-masq-agent", f"--ip-masq-agent-config-path={file}")


@EACH_FAMILY
@KINDS
def test_the_world_sees_the_node(stage: Stage, family: int, kind: int) -> None:
    with ExitStack() as stack:
        port = stage.serve(stack, FAR[family], kind)
        assert ask(stage.pod, FAR[family], port, kind)[:2] == ["far", NODE[family]]


@EACH_FAMILY
@KINDS
def test_a_prefix_of_the_file_sees_the_pod_until_the_file_changes(
    stage: Stage, family: int, kind: int
) -> None:
    with ExitStack() as stack:
        port = stage.serve(stack, SPARED[family], kind)

        def seen() -> str:
            with suppress(ConnectionResetError):  # the change came in its middle
                return ask(stage.pod, SPARED[family], port, kind)[1]
            return ""

        stack.callback(stage.file.write_text, excluded(SPARED_PREFIX))
        stage.node.world.eventually(lambda: seen() == stage.pod.address(family))
        stage.file.write_text(excluded({}))
        stage.node.world.eventually(lambda: seen() == NODE[family])
        stage.file.write_text("nonMasqueradeCIDRs: [")
        stage.node.world.eventually(lambda: "ip-masq-agent" in degraded(stage))
        assert seen() == NODE[family]
        stage.file.write_text(excluded(SPARED_PREFIX))
        stage.node.world.eventually(lambda: seen() == stage.pod.address(family))


def degraded(stage: Stage) -> str:
    return str(stage.node.world.get("/status")["degraded"])


@EACH_FAMILY
def test_long_datagrams_and_their_answers_come_in_fragments(stage: Stage, family: int) -> None:
    with ExitStack() as stack:
        port = stage.serve(stack, FAR[family], UDP)
        content = bytes(range(33, 125)) * 50
        hear_of_narrow_link(stage, family)
        answer = ask(stage.pod, FAR[family], port, UDP, content)
        assert answer == ["far", NODE[family], content.decode()]


def hear_of_narrow_link(stage: Stage, family: int) -> None:
    """Of IPv6 the sender alone cuts packets, when it knows the size."""
    kind = socket.AF_INET6 if family == 6 else socket.AF_INET
    with stage.pod.netns.socket(kind, UDP) as sock:
        while f"mtu {NARROW_MTU}" not in stage.pod.ip(f"-{family} route get {FAR[family]}"):
            with suppress(OSError):  # the error about the one before
                sock.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_DO)
                sock.sendto(bytes(1400), (FAR[family], 9))


@EACH_FAMILY
@pytest.mark.parametrize("size", [10, 4000])
def test_a_ping_comes_back(stage: Stage, family: int, size: int) -> None:
    kind, proto, echo = {
        4: (socket.AF_INET, socket.IPPROTO_ICMP, ICMP(type=8, id=77)),
        6: (socket.AF_INET6, socket.IPPROTO_ICMPV6, ICMPv6EchoRequest(id=77)),
    }[family]
    content = bytes(size)
    hear_of_narrow_link(stage, family)
    sock = stage.pod.netns.run(lambda: socket.socket(kind, socket.SOCK_RAW, proto))
    with sock:
        sock.settimeout(3)
        sock.sendto(bytes(echo / Raw(content)), (FAR[family], 0))
        while True:
            data, sender = sock.recvfrom(65535)
            data = data[20:] if family == 4 else data
            if data[0] in (0, 129):
                break
    assert sender[0] == FAR[family]
    assert (int.from_bytes(data[4:6]), data[8:]) == (77, content)


@EACH_FAMILY
def test_a_pod_hears_of_a_narrow_link_in_the_world(stage: Stage, family: int) -> None:
    """A router that cannot forward says so about a packet of the node."""
    with ExitStack() as stack:
        port = stage.serve(stack, FAR[family], TCP)
        content = b"x" * 100_000
        # Wider packets get nowhere: the router drops them.
        assert ask(stage.pod, FAR[family], port, TCP, content)[2] == content.decode()


@EACH_FAMILY
@KINDS
def test_a_service_may_have_its_backend_in_the_world(stage: Stage, family: int, kind: int) -> None:
    with ExitStack() as stack:
        stack.callback(Server(stage.far, "far", FAR[family], 8080, kind).close)
        name = f"away{family}"
        text = service(name, SERVICE[family]) + "---\n" + endpoint_slice(name, [FAR[family]])
        stage.node.world.write(f"{name}.yaml", text)
        stage.node.world.eventually(lambda: served(stage, family, kind))


def served(stage: Stage, family: int, kind: int) -> bool:
    try:
        with Connection(stage.pod, SERVICE[family], 80, kind, timeout_s=0.3) as connection:
            return connection.ask()[:2] == ["far", NODE[family]]
    except OSError:
        return False


@EACH_FAMILY
@KINDS
def test_a_pod_answers_for_itself_where_the_world_asks_it(
    stage: Stage, family: int, kind: int
) -> None:
    address = stage.pod.address(family)
    with ExitStack() as stack:
        port = stage.serve(stack, address, kind, stage.pod)
        with Connection(stage.far, address, port, kind) as connection:
            assert connection.ask()[:2] == ["far", FAR[family]]


@EACH_FAMILY
@KINDS
def test_the_nodes_own_sockets_go_on(stage: Stage, family: int, kind: int) -> None:
    with ExitStack() as stack:
        port = stage.serve(stack, FAR[family], kind)
        assert ask(stage.node.node, FAR[family], port, kind)[:2] == ["far", NODE[family]]


def test_flows_outlive_a_kill_and_begin_without_an_agent(stage: Stage) -> None:
    with ExitStack() as stack:
        opened: list[Connection] = []

        def open_all() -> None:
            for family, kind in itertools.product(FAMILIES, (TCP, UDP)):
                port = stage.serve(stack, FAR[family], kind)
                opened.append(Connection(stage.pod, FAR[family], port, kind))
                stack.callback(opened[-1].close)

        def all_seen() -> bool:
            return [connection.ask()[1] for connection in opened] == [
                *(NODE[family] for family, _ in itertools.product(FAMILIES, (TCP, UDP))),
            ] * (len(opened) // 4)

        open_all()
        assert all_seen()
        stage.node.world.agents[-1].send_signal(signal.SIGKILL)
        stage.node.world.agents[-1].wait()
        assert all_seen()
        open_all()
        assert all_seen()
        start(stage.node, stage.file)
        assert all_seen()
        stage.node.world.eventually(lambda: bool(stage.node.world.get("/status")["healthy"]))


@EACH_FAMILY
def test_replies_to_a_pod_that_is_gone_reach_nobody(stage: Stage, family: int) -> None:
    pod = stage.node.add(f"gone{family}")
    address = pod.address(family)
    kind = socket.AF_INET6 if family == 6 else socket.AF_INET
    with (
        stage.far.netns.socket(kind, UDP) as server,
        pod.netns.socket(kind, UDP) as client,
    ):
        server.bind((FAR[family], 0))
        server.settimeout(3)
        client.sendto(b"asked", (FAR[family], server.getsockname()[1]))
        _, sender = server.recvfrom(10)
        assert sender[0] == NODE[family]
        client.close()
        stage.node.delete(f"gone{family}")
        stage.node.world.eventually(lambda: ended(stage, address))
        # The node's own stack refuses what comes back.
        server.connect(sender)
        stage.node.world.eventually(lambda: refuses(server))


def ended(stage: Stage, address: str) -> bool:
    rows = [
        row for row in stage.translations() if address in f"{row['source']} {row['translated']}"
    ]
    return {(row["direction"], "ended" in row["flags"]) for row in rows} == {("in", True)}


def refuses(server: socket.socket) -> bool:
    try:
        server.send(b"late")
        time.sleep(0.01)
        server.send(b"late")
    except ConnectionRefusedError:
        return True
    return False


def test_commands_show_what_is_masqueraded(stage: Stage) -> None:
    with ExitStack() as stack:
        port = stage.serve(stack, FAR[4], TCP)
        ask(stage.pod, FAR[4], port, TCP)
        (row,) = [
            row
            for row in stage.translations()
            if row["direction"] == "out" and row["destination"] == f"{FAR[4]}:{port}"
        ]
    assert row["owner"] == "masquerade"
    assert row["translated"].startswith(f"source {NODE[4]}:")
    root = f"--bpf-root={stage.node.world.bpf_root}"
    shown = stage.node.world.cilia("bpf", "ipmasq", "list", root).stdout
    for prefix in (*PODS.values(), *SPARED_PREFIX.values(), "169.254.0.0/16", "fe80::/10"):
        assert prefix in shown
    rows = {str(row["prefix"]): row["reason"] for row in stage.node.rows("masquerade-exclusions")}
    assert rows[PODS[4]] == "pods of node node-one"
    assert rows[SPARED_PREFIX[6]] == "ip-masq-agent"
