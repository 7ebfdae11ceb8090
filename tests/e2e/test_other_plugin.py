# SPDX-License-Identifier: Apache-2.0
"""A node that moves to the pod network of cilia: pods of the plugin before keep their Services."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Ether
from scapy.packet import Raw

from cilia.linux.netns import NetNS
from tests.e2e.manifests import endpoint_slice, service
from tests.e2e.nodes import Connection, Server, ask, forward, pair
from tests.e2e.pods import FAMILIES, PodNode, pod_node
from tests.kernel import Kernel

pytestmark = [pytest.mark.root, pytest.mark.timeout(120)]

TCP, UDP_KIND = socket.SOCK_STREAM, socket.SOCK_DGRAM
GATEWAY = {4: "10.209.0.1", 6: "fd00:209::1"}
OLD = {4: "10.209.0.10", 6: "fd00:209::10"}
BACKEND = {4: "10.209.0.11", 6: "fd00:209::11"}
BITS = {4: 32, 6: 128}
SERVICE = {4: "10.203.0.60", 6: "fd00:203::60"}


@pytest.fixture
def node(tmp_path: Path) -> Iterator[PodNode]:
    with pod_node(tmp_path, "moving") as made:
        yield made


def old_pod(node: Kernel, stack: ExitStack, device: str, addresses: dict[int, str]) -> Kernel:
    """Make a pod as another plugin does: a device with a route to it, and a gateway on it."""
    pod = Kernel(stack.enter_context(NetNS.new()))
    pod.ip("link set lo up")
    pair(node, device, pod, "eth0")
    for family in FAMILIES:
        nodad = " nodad" if family == 6 else ""
        node.ip(f"addr add {GATEWAY[family]}/{BITS[family]} dev {device}{nodad}")
        node.ip(f"-{family} route add {addresses[family]} dev {device}")
        pod.ip(f"addr add {addresses[family]}/{BITS[family]} dev eth0{nodad}")
        pod.ip(f"-{family} route add {GATEWAY[family]} dev eth0")
        pod.ip(f"-{family} route add default via {GATEWAY[family]} dev eth0")
    return pod


def programs(node: PodNode) -> dict[tuple[str, str], str]:
    """The program of each hook of pods' devices."""
    return {
        (row["target"], row["hook"]): Path(row["program"]).name
        for row in node.rows("attachments")
        if row["target"].startswith(("veth", "lxc")) and row["status"]["kind"] == "done"
    }


def test_pods_of_the_plugin_before_keep_their_services(node: PodNode) -> None:
    w = node.world
    with ExitStack() as stack:
        forward(node.node)
        old = old_pod(node.node, stack, "veth1", OLD)
        backend = old_pod(node.node, stack, "veth2", BACKEND)
        for family in FAMILIES:
            name = f"web{family}"
            text = service(name, SERVICE[family]) + "---\n"
            w.write(f"{name}.yaml", text + endpoint_slice(name, [BACKEND[family]]))
            for kind in (TCP, UDP_KIND):
                stack.callback(Server(backend, "old", BACKEND[family], 8080, kind).close)
        w.start_agent("--node-name=node-one")
        w.eventually(w.ready, 30.0)
        w.eventually(lambda: programs(node).get(("veth1", "ingress")) == "from_pod")
        opened = [
            Connection(old, SERVICE[f], 80, kind) for f in FAMILIES for kind in (TCP, UDP_KIND)
        ]
        for connection in opened:
            stack.callback(connection.close)
        assert [connection.ask()[0] for connection in opened] == ["old"] * 4

        w.kill_agent()
        assert [connection.ask()[0] for connection in opened] == ["old"] * 4
        node.start()
        assert [connection.ask()[0] for connection in opened] == ["old"] * 4
        w.eventually(lambda: programs(node).get(("veth1", "ingress")) == "from_other_pod")
        assert [connection.ask()[0] for connection in opened] == ["old"] * 4

        new = node.add("one")
        (row,) = node.rows("endpoints")
        found = programs(node)
        assert found[(row["Device"], "ingress")] == "from_pod"
        assert sum(target == row["Device"] for target, _ in found) == 2
        for family in FAMILIES:
            for client in (old, new):
                assert ask(client, SERVICE[family], 80, TCP)[0] == "old"
        only_in_its_own_name(node.node, old, new.address(4))
        moved_backend(node, old, stack)


def moved_backend(node: PodNode, old: Kernel, stack: ExitStack) -> None:
    """Pods of both plugins reach a Service whose backend was made anew."""
    new = node.pods["one"]
    for family in FAMILIES:
        name = f"web{family}"
        stack.callback(Server(new, "new", new.address(family), 8080, TCP).close)
        text = service(name, SERVICE[family]) + "---\n"
        node.world.write(f"{name}.yaml", text + endpoint_slice(name, [new.address(family)]))
        for client in (old, new):
            node.world.eventually(lambda c=client, f=family: served_by(c, f) == "new")  # type: ignore[misc]


def served_by(client: Kernel, family: int) -> str:
    try:
        return ask(client, SERVICE[family], 80, TCP)[0]
    except OSError as error:
        return str(error)


def only_in_its_own_name(node: Kernel, old: Kernel, other: str) -> None:
    """A pod of the other plugin sends nothing in the name of one of ours."""
    listener = node.netns.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sender = old.netns.socket(socket.AF_PACKET, socket.SOCK_RAW)
    with listener, sender:
        listener.bind((GATEWAY[4], 0))
        listener.settimeout(3)
        sender.bind(("eth0", 0))
        port = listener.getsockname()[1]
        mac = sender.getsockname()[4].hex(":")
        for source, content in ((other, b"forged"), (OLD[4], b"honest")):
            frame = Ether(src=mac, dst="ff:ff:ff:ff:ff:ff") / IP(src=source, dst=GATEWAY[4])
            sender.send(bytes(frame / UDP(sport=1, dport=port) / Raw(content)))
        assert listener.recvfrom(10) == (b"honest", (OLD[4], 1))
