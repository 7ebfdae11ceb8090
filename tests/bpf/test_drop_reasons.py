# SPDX-License-Identifier: Apache-2.0
"""Every drop reason, made to happen by a packet, as the readers of events see it.

A row says who drops, what is there, the packet, the number that the clients of flows know, and who
is told to be behind source and destination.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any, NamedTuple

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP, fragment
from scapy.layers.inet6 import ICMPv6ND_RA, IPv6, IPv6ExtHdrDestOpt
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw

from bpf import reasons
from bpf.compile import SOURCE_DIR
from bpf.events import CAPTURE_BYTES, Direction, Event, EventKind
from bpf.maps import endpoints, lb
from bpf.maps.lb_numbers import ServiceFlag
from bpf.maps.map import Map
from bpf.maps.types import MapType
from tests.bpf.datapath_world import Datapath, loaded, packed
from tests.bpf.event_world import (
    LOOPBACK,
    MAC_LOOPBACK,
    NEIGHBOR,
    NOBODY,
    ON,
    OWNER,
    WORLD,
    Ends,
    ends,
    listening,
    node_device,
    owner,
    pod_device,
)
from tests.bpf.host_world import (
    BACKEND,
    CLIENT,
    MAC_CLIENT,
    MAC_NODE,
    NODE,
    POD,
    PORT,
    Node,
    frame,
)
from tests.bpf.lxc_world import CLIENT_PORT, V4, web
from tests.bpf.packets import MAC_NODE_ONE, MAC_POD_ONE
from tests.bpf.test_direct_return import inside, naming

pytestmark = [pytest.mark.root, pytest.mark.timeout(60)]

TCP_PROTO, UDP_PROTO = socket.IPPROTO_TCP, socket.IPPROTO_UDP
FAR = "198.51.100.7"
#: Behind the name of a program: its node takes IP in IP; its maps of flows have room for one.
IPIP, FULL = " of ipip", " of full maps"
#: Its policy denies what leaves, or what reaches, the workloads.
NO_EGRESS, NO_INGRESS = " without egress", " without ingress"
#: The client of the node's device, by the ipcache.
OUTSIDE = (400, 0)


def eth(source: str = MAC_POD_ONE) -> Packet:
    return Ether(src=source, dst=MAC_NODE_ONE)


def of_pod(transport: Packet | None = None, dst: str = V4.service, **fields: Any) -> Packet:
    made = TCP(sport=CLIENT_PORT, dport=80, flags="S") if transport is None else transport
    return eth() / IP(src=V4.pod, dst=dst, **fields) / made


def of_client(dport: int = PORT, **fields: Any) -> Packet:
    return frame(CLIENT[4], NODE[4], TCP(sport=40000, dport=dport, flags="S"), **fields)


class Row(NamedTuple):
    """Who drops: `from_pod`, `to_pod` (a pod's device), `from_netdev`, `to_netdev` (a node's)."""

    program: str
    packet: Packet | bytes
    flow_number: int
    ends: Ends
    prepare: Callable[[Any], object] = id
    direction: Direction = Direction.EGRESS


def late_fragment(head: Packet) -> Packet:
    """The second part of a datagram."""
    return eth() / fragment(IP(src=V4.pod, dst=V4.service) / head / Raw(bytes(2000)), 800)[1]


def wildcard(datapath: Datapath) -> None:
    """The row that stands for every other port of the service's address."""
    key = lb.encode_service_key(packed(V4.service), 0, 0, 0)
    value = lb.ServiceValue(flags=ServiceFlag.NON_ROUTABLE)
    datapath.lb.of(packed(V4.service)).service.update(key, lb.encode_service(value))


def without_backend(datapath: Datapath) -> None:
    datapath.service(V4.service, 80, TCP_PROTO, [], rev_nat=1)


def of_another_service(datapath: Datapath) -> None:
    """A connection to the backend through a service, which is still open."""
    web(datapath, V4)
    datapath.program("from_pod").run(bytes(of_pod()))


def nobodys_device(datapath: Datapath) -> None:
    datapath.maps[endpoints.NAME].delete(endpoints.encode_key(LOOPBACK))


def served(flags: int = 0, backend: str = BACKEND[4]) -> Callable[[Node], None]:
    return lambda node: node.serve(4, TCP_PROTO, backend, flags)


def no_address(node: Node) -> None:
    node.serve(4, TCP_PROTO)
    node.datapath.netdev(node.ifindex, None, None)


def no_route(node: Node) -> None:
    node.namespace.run("route", "replace", "unreachable", "10.244.9.0/24")
    node.serve(4, TCP_PROTO, "10.244.9.1")


def serve_directly(node: Node) -> None:
    node.serve(4, UDP_PROTO, POD[4], ServiceFlag.DSR)


def from_pod(reason: int, packet: Packet | bytes, to: tuple[int, int], **fields: Any) -> Row:
    return Row("from_pod", packet, reason, (OWNER, to), **fields)


def from_netdev(
    reason: int,
    packet: Packet | bytes,
    prepare: Callable[[Node], object] = id,
    to: tuple[int, int] = WORLD,
) -> Row:
    return Row("from_netdev", packet, reason, (OUTSIDE, to), prepare, Direction.INGRESS)


def to_netdev(reason: int, packet: Packet | bytes, prepare: Callable[[Node], object] = id) -> Row:
    return Row("to_netdev", packet, reason, (NEIGHBOR, WORLD), prepare)


#: A head of four words, which is one too few.
NO_HEAD = bytes(of_pod())[:14] + b"\x44" + bytes(of_pod())[15:]
EXTENSIONS = IPv6(src="fd00:1::11", dst="2001:db8::7")
for _ in range(7):
    EXTENSIONS = EXTENSIONS / IPv6ExtHdrDestOpt()
UDP_CUT_SHORT = (
    bytes(eth() / IP(src=V4.pod, dst=V4.service, len=24, proto=17))
    + bytes(UDP(sport=CLIENT_PORT, dport=80))[:4]
)
ABOUT_NOTHING = ICMP(type=3, code=3) / IP(src=FAR, dst=POD[4]) / UDP(sport=80, dport=1001)
TO_NEIGHBOR = Ether(src=MAC_POD_ONE, dst=MAC_LOOPBACK) / IP(src=V4.pod, dst=V4.backend) / UDP()
FROM_WORLD = Ether(src=MAC_NODE_ONE, dst=MAC_POD_ONE) / IP(src=FAR, dst=V4.pod) / UDP()
NODE_ETHER = Ether(src=MAC_CLIENT, dst=MAC_NODE)
ONE_HOP = NODE_ETHER / IP(src=CLIENT[4], dst=NODE[4], ttl=1) / TCP(dport=PORT)

ROWS: dict[str, Row] = {
    "INVALID_PACKET": from_pod(134, NO_HEAD, WORLD),
    "NO_BACKEND": from_pod(158, of_pod(), WORLD, prepare=without_backend),
    "NO_SERVICE": from_pod(158, of_pod(), WORLD, prepare=wildcard),
    "FRAG_NOT_FOUND": from_pod(175, late_fragment(UDP(dport=80)), WORLD, prepare=wildcard),
    "INVALID_EXTHDR": from_pod(156, eth() / EXTENSIONS / UDP(), WORLD),
    "CSUM_L4": from_pod(154, UDP_CUT_SHORT, WORLD, prepare=lambda pod: web(pod, V4, "udp")),
    "CT_COLLISION": from_pod(
        155,
        of_pod(TCP(sport=CLIENT_PORT, dport=8080, flags="PA"), V4.backend),
        NEIGHBOR,
        prepare=of_another_service,
    ),
    "LOOPBACK_ONLY": from_pod(
        158, of_pod(), WORLD, prepare=lambda pod: web(pod, V4, flags=ServiceFlag.LOOPBACK)
    ),
    "INVALID_SOURCE": from_pod(132, eth() / IP(src="10.0.1.99", dst=V4.backend) / UDP(), NEIGHBOR),
    "INVALID_SOURCE_MAC": from_pod(
        130, eth("02:00:00:00:00:99") / IP(src=V4.pod, dst=V4.backend) / UDP(), NEIGHBOR
    ),
    "UNKNOWN_L3": from_pod(139, Ether(src=MAC_POD_ONE, type=0x88CC) / Raw(b"lldp"), NOBODY),
    "ENDPOINT_NOT_READY": Row(
        "from_pod", of_pod(dst=V4.backend), 203, (OWNER, NEIGHBOR), nobodys_device
    ),
    "NODE_LOOPBACK": from_pod(169, of_pod(dst="127.0.0.1"), WORLD),
    "FORBIDDEN_ICMP6": from_pod(
        176, eth() / IPv6(src="fe80::11", dst="ff02::1", hlim=255) / ICMPv6ND_RA(), WORLD
    ),
    "NO_ROUTE": from_netdev(169, of_client(), no_route),
    "FRAG_NEEDED": from_netdev(136, of_client(payload=bytes(1600)), served()),
    "NO_SOURCE": from_netdev(167, of_client(), no_address),
    "NOT_IN_SRC_RANGE": from_netdev(177, of_client(), served(ServiceFlag.SOURCE_RANGE)),
    "IS_CLUSTER_IP": from_netdev(174, of_client(), served(ServiceFlag.NON_ROUTABLE)),
    "TTL_EXCEEDED": from_netdev(196, ONE_HOP, served()),
    "UNKNOWN_FRONTEND": from_netdev(
        158, naming(frame(CLIENT[4], POD[4], UDP(dport=8080)), 4, FAR, PORT), to=NEIGHBOR
    ),
    "NOT_FROM_NODE": Row(
        f"from_netdev{IPIP}",
        inside(4, NODE[4], PORT, UDP, source=FAR),
        172,
        (WORLD, NEIGHBOR),
        serve_directly,
        Direction.INGRESS,
    ),
    "NAT_NO_MAPPING": to_netdev(167, frame(POD[4], FAR, ABOUT_NOTHING)),
    "NAT_PROTOCOL": to_netdev(168, NODE_ETHER / IP(src=POD[4], dst=FAR, proto=47)),
    "MAP_FULL": to_netdev(155, frame(POD[4], FAR, UDP(sport=40001, dport=80)))._replace(
        program=f"to_netdev{FULL}"
    ),
    "CT_CREATE_FAILED": from_pod(155, of_pod(), WORLD, prepare=lambda pod: web(pod, V4))._replace(
        program=f"from_pod{FULL}"
    ),
}

#: A pod's egress is refused at its device, its ingress at the sender's device or by the stack.
DENIED: dict[str, Row] = {
    "egress": from_pod(133, TO_NEIGHBOR, NEIGHBOR)._replace(program=f"from_pod{NO_EGRESS}"),
    "ingress": from_pod(133, TO_NEIGHBOR, NEIGHBOR, direction=Direction.INGRESS)._replace(
        program=f"from_pod{NO_INGRESS}"
    ),
    "ingress by the stack": Row(
        f"to_pod{NO_INGRESS}", FROM_WORLD, 133, (WORLD, OWNER), direction=Direction.INGRESS
    ),
}

#: A helper of the kernel fails that never does in a parsed packet; see tests/bpf/test_packet.py.
NEVER = {"CSUM_L3", "WRITE_ERROR"}


@pytest.fixture(scope="module")
def worlds() -> Iterator[dict[str, Datapath | Node]]:
    """Who drops, by the program that a row names."""
    masquerading = {"masquerade4": b"\1", "masquerade6": b"\1"}
    with ExitStack() as stack:
        pod = stack.enter_context(pod_device())
        node = stack.enter_context(node_device(masquerading))

        def host(datapath: Datapath, **constants: bytes) -> Node:
            values = {**ON, **masquerading, "nodeport_dsr": b"\1", **constants}
            return node._replace(
                datapath=stack.enter_context(loaded(["host"], values, shared=datapath))
            )

        full_nat = with_room_for_one(stack, node.datapath, "cilia_snat4")
        full_ct = with_room_for_one(stack, pod, "cilia_ct4_tcp")
        yield {
            "from_pod": pod,
            **{
                f"{program}{which}": denying
                for which, direction in ((NO_EGRESS, 0), (NO_INGRESS, 1))
                for denying in [refusing(stack, pod, direction)]
                for program in ("from_pod", "to_pod")
            },
            "from_netdev": node,
            "to_netdev": node,
            f"from_netdev{IPIP}": host(node.datapath, nodeport_dispatch=b"\1"),
            f"from_pod{FULL}": stack.enter_context(loaded(["lxc"], ON, shared=full_ct)),
            f"to_netdev{FULL}": host(full_nat),
        }


def refusing(stack: ExitStack, pod: Datapath, direction: int) -> Datapath:
    """The pod's device with a policy that refuses a direction."""
    constants = {**ON, "policy_refused_directions": bytes([1 << direction])}
    return stack.enter_context(loaded(["lxc"], constants, shared=pod))


def with_room_for_one(stack: ExitStack, datapath: Datapath, name: str) -> Datapath:
    """The maps of a datapath, one of them full at once: the real ones evict what is old."""
    real = datapath.maps[name]
    sizes = real.key_size, real.value_size
    full = stack.enter_context(Map.create(MapType.HASH, name, *sizes, 1))
    return Datapath(datapath.lb, {**datapath.maps, name: full}, [])


def drop(world: Datapath | Node, row: Row) -> list[Event]:
    """Make a row happen; the drops that were told."""
    datapath = world.datapath if isinstance(world, Node) else world
    datapath.clear()
    if isinstance(world, Node):
        world.datapath.netdev(world.ifindex, NODE[4], NODE[6])
    else:
        owner(world)
    row.prepare(world)
    program = row.program.partition(" ")[0]
    with listening(datapath, EventKind.DROP) as heard:
        if isinstance(world, Node):
            world.run_part(row.packet, program)
        else:
            world.program(program).run(bytes(row.packet))
        return heard.drain()


@pytest.mark.parametrize("name", ROWS)
def test_drop_tells_why_where_and_who(worlds: dict[str, Datapath | Node], name: str) -> None:
    check(worlds, ROWS[name], name)


@pytest.mark.parametrize("name", DENIED)
def test_denial_tells_both_ends(worlds: dict[str, Datapath | Node], name: str) -> None:
    check(worlds, DENIED[name], "POLICY_DENIED")


def check(worlds: dict[str, Datapath | Node], row: Row, name: str) -> None:
    (event,) = drop(worlds[row.program], row)
    reason = reasons.reasons()[event.reason]
    assert (reason.name, reason.flow_number) == (name, row.flow_number)
    assert ends(event) == row.ends
    assert (event.direction, event.observation_point) == (row.direction, 0)
    assert event.original_length == len(event.data) or len(event.data) == CAPTURE_BYTES
    assert f"DROP_{name}" in source_lines(reasons.file_label(event.file), event.line)


def source_lines(name: str, line: int) -> str:
    """The line that a record names and the one before: a condition may have two values."""
    (path,) = [path for path in SOURCE_DIR.rglob("*.[hc]") if path.name == name]
    return "".join(path.read_text().splitlines()[line - 2 : line])


def test_each_reason_has_a_row_or_never_happens() -> None:
    known = {reason.name for number, reason in reasons.reasons().items() if number}
    assert known == ROWS.keys() | NEVER | {"POLICY_DENIED"}
    assert not ROWS.keys() & NEVER
