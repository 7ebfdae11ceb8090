# SPDX-License-Identifier: Apache-2.0
"""Frames of a VLAN that arrive at a device, or leave by it, are none of the device's own."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Dot1Q, Ether
from scapy.packet import Packet, Raw

from bpf.link import AttachType
from bpf.maps import ct
from bpf.object import Object
from tests.bpf.datapath_world import drops, loaded
from tests.bpf.sources import build
from tests.e2e.nodeport import AttachedDatapath, attach, node_datapath
from tests.e2e.nodes import (
    Connection,
    Nodes,
    Server,
    client_address,
    node_address,
    pod_address,
    two_nodes,
)
from tests.kernel import Kernel

pytestmark = [pytest.mark.root, pytest.mark.timeout(60)]

PORT, VLAN = 30080, 100
#: Of linux/if_packet.h, and linux/if_ether.h.
SOL_PACKET, PACKET_AUXDATA, TP_STATUS_VLAN_VALID, ETH_P_ALL = 263, 8, 0x10, 3
FAMILIES = pytest.mark.parametrize("family", [4, 6], ids=["v4", "v6"])
#: By the pod that is the backend: of the node that is asked, or of the other one.
PLACES = pytest.mark.parametrize("place", [1, 2], ids=["local", "remote"])

#: Tags what leaves, as the device of a VLAN does before the frame comes to the one below it.
TAG = """
SEC("tc") int tag(struct __sk_buff *skb)
{
    return bpf_skb_vlan_push(skb, bpf_htons(0x8100), 100) ? 2 : -1;
}
"""


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    with two_nodes() as made:
        yield made


def serve(
    nodes: Nodes, datapath: AttachedDatapath, stack: ExitStack, family: int, pod: int
) -> None:
    backend = pod_address(pod, family)
    stack.callback(Server(nodes.pod[pod], f"pod{pod}", backend, 8080, socket.SOCK_DGRAM).close)
    frontend = node_address(1, family)
    datapath.service(frontend, PORT, socket.IPPROTO_UDP, [(backend, 8080)], rev_nat=7)


def mac(kernel: Kernel) -> str:
    """Of eth0."""
    fields = kernel.ip("-o link show dev eth0").split()
    return fields[fields.index("link/ether") + 1]


def question(nodes: Nodes, family: int, port: int, vlan: int) -> Packet:
    """A client's datagram to the node port of node1, with a tag."""
    network = IPv6 if family == 6 else IP
    return (
        Ether(src=mac(nodes.client), dst=mac(nodes.node[1]))
        / Dot1Q(vlan=vlan, prio=3)
        / network(src=client_address(family), dst=node_address(1, family))
        / UDP(sport=port, dport=PORT)
        / Raw(b"hello")
    )


def send(kernel: Kernel, stack: ExitStack, frame: Packet) -> None:
    raw = stack.enter_context(kernel.netns.socket(socket.AF_PACKET, socket.SOCK_RAW))
    raw.bind(("eth0", 0))
    raw.send(bytes(frame))


def client_ports(datapath: AttachedDatapath, family: int) -> set[int]:
    """Of the flows to the frontend."""
    entries = dict(ct.connections(datapath.maps[f"cilia_ct{family}_any"]))
    return {key.source_port for key in entries if key.direction == ct.Direction.SERVICE}


@PLACES
@FAMILIES
def test_frame_of_a_vlan_is_no_request(nodes: Nodes, family: int, place: int) -> None:
    """It is over when a question that was sent behind it was answered."""
    with node_datapath(nodes, 1) as datapath, ExitStack() as stack:
        serve(nodes, datapath, stack, family, place)
        connection = Connection(nodes.client, node_address(1, family), PORT, socket.SOCK_DGRAM)
        client = stack.enter_context(connection)
        assert client.ask()[0] == f"pod{place}"
        send(nodes.client, stack, question(nodes, family, 40001, VLAN))
        assert client.ask()[0] == f"pod{place}"
        assert client_ports(datapath, family) == {client.sock.getsockname()[1]}
        assert not drops(datapath)


@PLACES
@FAMILIES
def test_priority_alone_is_no_vlan(nodes: Nodes, family: int, place: int) -> None:
    """It does not travel on: another node would get a tag that nobody on its way asked for."""
    kind = socket.AF_INET6 if family == 6 else socket.AF_INET
    with node_datapath(nodes, 1) as datapath, ExitStack() as stack:
        serve(nodes, datapath, stack, family, place)
        connection = Connection(nodes.client, node_address(1, family), PORT, socket.SOCK_DGRAM)
        assert stack.enter_context(connection).ask()[0] == f"pod{place}"  # neighbours are known
        client = stack.enter_context(nodes.client.netns.socket(kind, socket.SOCK_DGRAM))
        client.bind((client_address(family), 40002))
        client.settimeout(3)
        wire = stack.enter_context(capture(nodes.node[2]))
        send(nodes.client, stack, question(nodes, family, 40002, 0))
        assert client.recv(100).startswith(f"pod{place}|".encode())
        assert place == 1 or not is_tagged(wire, b"hello")


def capture(kernel: Kernel) -> socket.socket:
    """Everything that passes eth0; what is read says if it had a tag."""
    made = kernel.netns.socket(socket.AF_PACKET, socket.SOCK_RAW)
    made.bind(("eth0", ETH_P_ALL))
    made.setsockopt(SOL_PACKET, PACKET_AUXDATA, 1)
    made.settimeout(5)
    return made


def is_tagged(wire: socket.socket, content: bytes) -> bool:
    """Of the next frame with this content."""
    while True:
        frame, told, _, _ = wire.recvmsg(2048, 256)
        if content in frame:
            ((_, _, auxiliary),) = told
            return bool(int.from_bytes(auxiliary[:4], "little") & TP_STATUS_VLAN_VALID)


@FAMILIES
def test_frame_that_leaves_for_a_vlan_is_no_reply(nodes: Nodes, family: int) -> None:
    with ExitStack() as stack:
        obj = stack.enter_context(Object.open("tag", build(TAG)))
        obj.load()
        tag = stack.enter_context(obj.program("tag"))
        datapath = stack.enter_context(node_datapath(nodes, 1))
        serve(nodes, datapath, stack, family, 1)
        connection = Connection(nodes.client, node_address(1, family), PORT, socket.SOCK_DGRAM)
        client = stack.enter_context(connection)
        assert client.ask()[0] == "pod1"
        _, leaves = datapath.links
        leaves.detach()
        stack.enter_context(attach(nodes.node[1], "eth0", tag, AttachType.TCX_EGRESS))
        again = stack.enter_context(loaded(["host"], shared=datapath))
        program = again.program("to_netdev")
        stack.enter_context(attach(nodes.node[1], "eth0", program, AttachType.TCX_EGRESS))
        wire = stack.enter_context(capture(nodes.client))
        client.sock.send(b"hello")
        assert source_of_answer(wire, family) == pod_address(1, family)


def source_of_answer(wire: socket.socket, family: int) -> str:
    """The source of the first datagram with the pod's name that arrives."""
    while True:
        raw = wire.recv(2048)
        if b"pod1|" in raw:
            packet = Ether(raw)
            return str(packet[IPv6 if family == 6 else IP].src)
