# SPDX-License-Identifier: Apache-2.0
"""Packets that pass, as the readers of events see them: points, aggregation, who, in what flow."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import NamedTuple

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw

from bpf.events import (
    FLOW_STATES,
    TRACE_POINTS,
    Direction,
    Event,
    EventFlag,
    EventKind,
    MonitorLevel,
)
from tests.bpf.datapath_world import Datapath, loaded
from tests.bpf.event_world import (
    ELSEWHERE,
    LOOPBACK,
    MAC_LOOPBACK,
    NEIGHBOR,
    ON,
    OWNER,
    WORLD,
    ends,
    listening,
    node_device,
    peopled,
    pod_device,
)
from tests.bpf.host_world import CLIENT, NODE, POD, Node, frame
from tests.bpf.host_world import request as asked
from tests.bpf.lxc_world import (
    CLIENT_PORT,
    V4,
    V6,
    Family,
    behind_key,
    connections,
    edit,
    packet,
    web,
)

pytestmark = [pytest.mark.root, pytest.mark.timeout(60)]

FAR = "198.51.100.7"
OUTSIDE = (400, 0)
#: Longer than any test.
FOR_EVER = (1 << 30).to_bytes(4, "little")


def traces(level: MonitorLevel, **constants: bytes) -> dict[str, bytes]:
    number = int(level).to_bytes(4, "little")
    return {"trace_notifications": b"\1", "monitor_aggregation": number, **constants}


@pytest.fixture(scope="module")
def every() -> Iterator[Datapath]:
    """A pod's device whose programs report all packets."""
    with pod_device(traces(MonitorLevel.NONE)) as made:
        yield made


@pytest.fixture(scope="module")
def some(every: Datapath) -> Iterator[Datapath]:
    """The same with aggregation, on the same maps."""
    # One interval is longer than any test.
    constants = {
        **ON,
        **traces(MonitorLevel.MEDIUM, monitor_interval_s=(1 << 30).to_bytes(4, "little")),
    }
    with loaded(["lxc"], constants, shared=every) as made:
        yield peopled(made)


class Seen(NamedTuple):
    """What a trace says beside its packet."""

    point: str
    state: str
    ifindex: int = 0
    reply: bool = False


def seen(event: Event) -> Seen:
    return Seen(
        TRACE_POINTS[event.observation_point],
        FLOW_STATES[event.flow_state],
        event.ifindex,
        bool(event.flags & EventFlag.REPLY),
    )


def run(datapath: Datapath, *packets: Packet, program: str = "from_pod") -> list[Event]:
    with listening(datapath, EventKind.TRACE) as heard:
        for sent in packets:
            datapath.program(program).run(bytes(sent))
        return heard.drain()


def tcp(flags: str, dst: str = V4.backend) -> Packet:
    made = packet("tcp", V4.pod, CLIENT_PORT, dst, 8080, flags=flags)
    made.dst = MAC_LOOPBACK
    return made


def answer(flags: str, src: str = V4.backend) -> Packet:
    return packet("tcp", src, 8080, V4.pod, CLIENT_PORT, flags=flags, turned=True)


#: Of a protocol without flows.
GRE = Ether(bytes(tcp("S"))[:14]) / IP(src=V4.pod, dst=FAR, proto=47) / Raw(b"gre")
FROM = Seen("from-endpoint", "unknown", LOOPBACK)


def test_packet_to_another_pod_is_seen_where_it_enters_and_leaves(every: Datapath) -> None:
    every.clear()
    entered, delivered = run(every, tcp("S"))
    assert (seen(entered), seen(delivered)) == (FROM, Seen("to-endpoint", "new", ELSEWHERE))
    assert ends(entered) == ends(delivered) == (OWNER, NEIGHBOR)
    assert (entered.direction, delivered.direction) == (Direction.EGRESS, Direction.INGRESS)
    assert (entered.reason, entered.file, entered.line) == (0, 0, 0)
    assert entered.data == bytes(tcp("S"))


@pytest.mark.parametrize("family", [V4, V6], ids=["v4", "v6"])
def test_packet_to_the_world_goes_to_the_stack(every: Datapath, family: Family) -> None:
    every.clear()
    sent = packet("udp", family.pod, 1, family.router, 2)
    entered, left = run(every, sent)
    assert (seen(entered), seen(left)) == (FROM, Seen("to-stack", "new"))
    assert ends(left) == (OWNER, WORLD)


def test_packet_without_a_flow_is_seen_too(every: Datapath) -> None:
    assert [seen(event) for event in run(every, GRE)] == [FROM, Seen("to-stack", "unknown")]


def test_packet_to_a_service_names_the_backend(every: Datapath) -> None:
    every.clear()
    web(every, V4)
    sent = packet("tcp", V4.pod, CLIENT_PORT, V4.service, 80)
    sent.dst = MAC_LOOPBACK
    entered, delivered = run(every, sent)
    assert seen(delivered) == Seen("to-endpoint", "new", ELSEWHERE)
    assert (ends(entered), ends(delivered)) == ((OWNER, WORLD), (OWNER, NEIGHBOR))
    back = packet("tcp", V4.backend, 8080, V4.pod, CLIENT_PORT, flags="SA", turned=True)
    (reply,) = run(every, back, program="to_pod")
    assert seen(reply) == Seen("to-endpoint", "reply", LOOPBACK, reply=True)
    # The service is the source by now; whose packet it is says the backend.
    assert Ether(reply.data)[IP].src == V4.service
    assert reply.original_source == ipaddress.ip_address(V4.backend).packed.ljust(16, b"\0")
    assert ends(reply) == (NEIGHBOR, OWNER)


def test_pod_that_reaches_itself_is_who_gets_it(every: Datapath) -> None:
    every.clear()
    every.service(V4.service, 80, socket.IPPROTO_TCP, [(V4.pod, 8080)], rev_nat=1)
    _, turned = run(every, packet("tcp", V4.pod, CLIENT_PORT, V4.service, 80))
    assert seen(turned) == Seen("to-endpoint", "new", LOOPBACK)
    assert ends(turned) == (OWNER, OWNER)


def test_aggregation_has_what_opens_changes_and_closes_a_flow(some: Datapath) -> None:
    some.clear()
    told: list[str] = []

    def tell(program: str, *packets: Packet) -> None:
        for sent in packets:
            found = [seen(event) for event in run(some, sent, program=program)]
            told.append(" ".join(f"{one.point} {one.state}" for one in found))

    tell("from_pod", tcp("S"), tcp("S"))
    tell("to_pod", answer("SA"), answer("SA"))
    tell("from_pod", tcp("A"), tcp("PA"), tcp("A"))
    tell("to_pod", answer("A"), answer("PA"))
    tell("from_pod", tcp("FA"), tcp("FA"))
    tell("to_pod", answer("FA"), answer("RA"))
    assert told == [
        *("to-endpoint new", ""),
        *("to-endpoint reply", ""),
        *("", "", ""),
        *("", ""),
        *("to-endpoint established", ""),
        *("to-endpoint reply", "to-endpoint reply"),
    ]


def test_datagrams_are_told_once_each_way(some: Datapath) -> None:
    some.clear()
    web(some, V4, "udp")
    question = packet("udp", V4.pod, CLIENT_PORT, V4.service, 80)
    answered = packet("udp", V4.backend, 8080, V4.pod, CLIENT_PORT, turned=True)
    assert len(run(some, question, question, question)) == 1
    assert len(run(some, answered, answered, program="to_pod")) == 1


def test_flow_in_use_is_told_again_after_an_interval(some: Datapath) -> None:
    some.clear()
    constants = {**ON, **traces(MonitorLevel.MEDIUM, monitor_interval_s=(5).to_bytes(4, "little"))}
    with loaded(["lxc"], constants, shared=some) as made:
        assert len(run(made, tcp("S"))) == 1
        made.program("from_pod").run(bytes(tcp("A")))
        key = behind_key(V4, "tcp")
        entry = connections(made, V4, "tcp")[key]
        edit(made, V4, "tcp", key, expires_s=entry.expires_s - 6)
        (event,) = run(made, tcp("A"))
        assert seen(event).state == "established"
        assert run(some, tcp("A")) == []


def test_error_about_a_flow_is_related_and_always_told(some: Datapath) -> None:
    some.clear()
    web(some, V4, "udp")
    run(some, packet("udp", V4.pod, CLIENT_PORT, V4.service, 80))
    quoted = IP(src=V4.pod, dst=V4.backend) / UDP(sport=CLIENT_PORT, dport=8080)
    error = Ether() / IP(src=V4.backend, dst=V4.pod) / ICMP(type=3, code=3) / quoted
    first, second = run(some, error, error, program="to_pod")
    assert seen(first) == Seen("to-endpoint", "related", LOOPBACK, reply=True)
    assert seen(second) == seen(first)


@pytest.mark.parametrize(
    ("level", "points"),
    [
        (MonitorLevel.NONE, ["from-endpoint", "to-stack"]),
        (MonitorLevel.LOWEST, ["to-stack"]),
        (MonitorLevel.LOW, ["to-stack"]),
        (MonitorLevel.MEDIUM, []),
        (MonitorLevel.MAXIMUM, []),
    ],
)
def test_levels_leave_out_more_and_more(
    every: Datapath, level: MonitorLevel, points: list[str]
) -> None:
    with loaded(["lxc"], {**ON, **traces(level)}, shared=every) as made:
        assert [seen(event).point for event in run(made, GRE)] == points


def test_traces_that_are_off_say_nothing(every: Datapath) -> None:
    with loaded(["lxc"], ON, shared=every) as made:
        assert run(made, tcp("S")) == []
        sizes = [one.program("from_pod").info().verified_instructions for one in (made, every)]
    assert sizes[0] < sizes[1]


def test_record_has_as_many_bytes_of_a_packet_as_are_asked_for(every: Datapath) -> None:
    constants = {
        **ON,
        **traces(MonitorLevel.LOW),
        "event_payload_bytes": (60).to_bytes(4, "little"),
    }
    long = tcp("S") / Raw(bytes(300))
    with loaded(["lxc"], constants, shared=every) as made:
        (event,) = run(made, long)
    assert (len(event.data), event.original_length) == (60, len(long))


# -- a device of the node


@pytest.fixture(scope="module")
def tc() -> Iterator[Node]:
    with node_device(traces(MonitorLevel.LOW)) as made:
        yield made


@pytest.fixture(scope="module")
def xdp() -> Iterator[Node]:
    with node_device(traces(MonitorLevel.LOW), "xdp") as made:
        yield made


def run_node(node: Node, *packets: Packet, program: str = "from_netdev") -> list[Event]:
    with listening(node.datapath, EventKind.TRACE) as heard:
        for sent in packets:
            node.run_part(sent, program)
        return heard.drain()


@pytest.mark.parametrize("hook", ["tc", "xdp"])
def test_request_that_is_forwarded_tells_its_client(
    hook: str, request: pytest.FixtureRequest
) -> None:
    node = request.getfixturevalue(hook)
    node.serve(4, socket.IPPROTO_TCP)
    (event,) = run_node(node, asked(4, TCP))
    assert seen(event) == Seen("to-network", "new", node.ifindex)
    assert Ether(event.data)[IP].src == NODE[4]
    assert event.original_source == ipaddress.ip_address(CLIENT[4]).packed.ljust(16, b"\0")
    assert event.source_identity == OUTSIDE[0]
    assert (event.mark, event.flow_hash) == (0, 0) or node.hook == "tc"


@pytest.fixture(scope="module")
def outer(tc: Node) -> Iterator[Callable[[MonitorLevel], Node]]:
    """The node's device by tc at another level, and with masquerading."""
    masquerading = {"masquerade4": b"\1", "masquerade6": b"\1"}
    with ExitStack() as stack:

        def at(level: MonitorLevel) -> Node:
            constants = {**ON, **masquerading, **traces(level)}
            made = stack.enter_context(loaded(["host"], constants, shared=tc.datapath))
            return tc._replace(datapath=made)

        yield at


def test_points_of_the_nodes_device(outer: Callable[[MonitorLevel], Node]) -> None:
    node = outer(MonitorLevel.NONE)
    node.datapath.clear()
    entered, passed = run_node(node, frame(CLIENT[4], NODE[4], UDP(sport=1, dport=9)))
    assert seen(entered) == Seen("from-network", "unknown", node.ifindex)
    assert seen(passed) == Seen("to-stack", "unknown")
    assert ends(passed) == (OUTSIDE, WORLD)
    assert (entered.direction, passed.direction) == (Direction.INGRESS, Direction.INGRESS)


def test_what_a_pod_sends_to_the_world_is_its_own(outer: Callable[[MonitorLevel], Node]) -> None:
    node = outer(MonitorLevel.MEDIUM)
    node.datapath.clear()
    sent = frame(POD[4], FAR, UDP(sport=40001, dport=53))
    (event,) = run_node(node, sent, sent, program="to_netdev")
    assert seen(event) == Seen("to-network", "new", node.ifindex)
    assert event.original_source == ipaddress.ip_address(POD[4]).packed.ljust(16, b"\0")
    assert ends(event) == (NEIGHBOR, WORLD)
    assert event.flow_hash != 0
