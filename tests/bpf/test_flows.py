# SPDX-License-Identifier: Apache-2.0
"""Flows of workloads whose network is ours: an entry at either end, and its packets."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import msgspec
import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import (
    ICMPv6EchoRequest,
    ICMPv6ND_NA,
    IPv6,
)
from scapy.packet import Raw

from bpf.maps.ct import CtEntry, CtFlag, CtKey, Direction
from tests.bpf.flow_world import (
    FAMILIES,
    GATEWAY,
    HOST,
    KINDS,
    LOOPBACK,
    OUTSIDE,
    SERVICE,
    WORLD,
    Fate,
    FlowNode,
    answered,
    error,
    fragments,
    ip,
    key,
    packet,
)

pytestmark = [pytest.mark.root, pytest.mark.timeout(120)]

PORT, SERVED = 40000, 80


@pytest.fixture(scope="module")
def made() -> Iterator[FlowNode]:
    with ExitStack() as stack:
        yield FlowNode(stack)


@pytest.fixture(scope="module")
def legacy() -> Iterator[FlowNode]:
    with ExitStack() as stack:
        yield FlowNode(stack, {"host_legacy_routing": b"\1"})


@pytest.fixture(params=["direct", "legacy"])
def node(request: pytest.FixtureRequest, made: FlowNode, legacy: FlowNode) -> FlowNode:
    """Delivered by the sender's program, or by the stack."""
    chosen = made if request.param == "direct" else legacy
    chosen.clear()
    return chosen


@KINDS
@FAMILIES
def test_a_flow_between_workloads_has_an_entry_at_either_end(
    node: FlowNode, family: int, kind: str
) -> None:
    one, two = node.one.addresses[family], node.two.addresses[family]
    assert node.sends(node.one, packet(kind, one, PORT, two, SERVED))[0] is Fate.DELIVERED
    entries = node.entries()
    opened = key(kind, one, PORT, two, SERVED, Direction.EGRESS)
    reached = key(kind, one, PORT, two, SERVED, Direction.INGRESS)
    assert entries.keys() == {opened, reached}
    assert made_of(entries[opened]) == (node.two.identity, 1, node.one.ifindex)
    assert made_of(entries[reached]) == (node.one.identity, 1, node.two.ifindex)
    assert not any(answered(entry) for entry in entries.values())

    back = packet(kind, two, SERVED, one, PORT, "SA", answer=True)
    assert node.sends(node.two, back)[0] is Fate.DELIVERED
    entries = node.entries()
    assert entries.keys() == {opened, reached}
    assert all(answered(entry) for entry in entries.values())


def made_of(entry: CtEntry) -> tuple[int, int, int]:
    return entry.remote_identity, entry.policy_generation, entry.ifindex


PEERS = pytest.mark.parametrize(
    ("peer", "identity"), [(GATEWAY, HOST), (OUTSIDE, WORLD)], ids=["node", "world"]
)


@PEERS
@KINDS
@FAMILIES
def test_a_flow_to_another_place_has_one_entry(
    node: FlowNode, family: int, kind: str, peer: dict[int, str], identity: int
) -> None:
    one = node.one.addresses[family]
    assert node.sends(node.one, packet(kind, one, PORT, peer[family], SERVED))[0] is Fate.LEFT
    ((held, entry),) = node.entries().items()
    assert held == key(kind, one, PORT, peer[family], SERVED, Direction.EGRESS)
    assert made_of(entry) == (identity, 1, node.one.ifindex)
    back = packet(kind, peer[family], SERVED, one, PORT, "SA", answer=True)
    assert node.arrives(node.one, back)[0] is Fate.DELIVERED
    ((_, entry),) = node.entries().items()
    assert answered(entry)


@PEERS
@KINDS
@FAMILIES
def test_a_flow_from_another_place_has_one_entry(
    node: FlowNode, family: int, kind: str, peer: dict[int, str], identity: int
) -> None:
    one = node.one.addresses[family]
    asked = packet(kind, peer[family], PORT, one, SERVED)
    assert node.arrives(node.one, asked)[0] is Fate.DELIVERED
    ((held, entry),) = node.entries().items()
    assert held == key(kind, peer[family], PORT, one, SERVED, Direction.INGRESS)
    assert made_of(entry) == (identity, 1, node.one.ifindex)
    back = packet(kind, one, SERVED, peer[family], PORT, "SA", answer=True)
    assert node.sends(node.one, back)[0] is Fate.LEFT
    ((_, entry),) = node.entries().items()
    assert answered(entry)


@pytest.mark.parametrize("kind", ["tcp", "udp", "sctp"])
@FAMILIES
def test_a_flow_through_a_service_is_tracked_with_its_backend(
    node: FlowNode, family: int, kind: str
) -> None:
    one, two = node.one.addresses[family], node.two.addresses[family]
    node.serve(family, kind, two)
    asked = packet(kind, one, PORT, SERVICE[family], 80)
    fate, out = node.sends(node.one, asked)
    assert (fate, out.dst) == (Fate.DELIVERED, two)
    entries = node.entries()
    opened = key(kind, one, PORT, two, 8080, Direction.EGRESS)
    reached = key(kind, one, PORT, two, 8080, Direction.INGRESS)
    frontend = key(kind, one, PORT, SERVICE[family], 80, Direction.SERVICE)
    assert entries.keys() == {opened, reached, frontend}
    assert made_of(entries[opened])[:2] == (node.two.identity, 1)
    assert made_of(entries[reached])[:2] == (node.one.identity, 1)
    assert made_of(entries[frontend])[:2] == (0, 0)
    back = packet(kind, two, 8080, one, PORT, "SA")
    fate, out = node.sends(node.two, back)
    assert (fate, out.src) == (Fate.DELIVERED, SERVICE[family])
    entries = node.entries()
    assert answered(entries[opened])
    assert answered(entries[reached])


@pytest.mark.parametrize("kind", ["tcp", "udp"])
@FAMILIES
def test_a_workload_that_reaches_itself_has_both_entries(
    node: FlowNode, family: int, kind: str
) -> None:
    one = node.one.addresses[family]
    node.serve(family, kind, one)
    fate, out = node.sends(node.one, packet(kind, one, PORT, SERVICE[family], 80))
    assert (fate, out.src, out.dst) == (Fate.DELIVERED, LOOPBACK[family], one)
    opened = key(kind, LOOPBACK[family], PORT, one, 8080, Direction.EGRESS)
    reached = key(kind, LOOPBACK[family], PORT, one, 8080, Direction.INGRESS)
    fate, out = node.sends(node.one, packet(kind, one, 8080, LOOPBACK[family], PORT, "SA"))
    assert (fate, out.src, out.dst) == (Fate.DELIVERED, SERVICE[family], one)
    entries = node.entries()
    assert entries.keys() == {
        opened,
        reached,
        key(kind, one, PORT, SERVICE[family], 80, Direction.SERVICE),
    }
    for entry in (entries[opened], entries[reached]):
        assert answered(entry)
        assert made_of(entry) == (node.one.identity, 1, node.one.ifindex)


@FAMILIES
def test_a_connection_is_open_at_both_ends_when_it_is_acknowledged(
    node: FlowNode, family: int
) -> None:
    one, two = node.one.addresses[family], node.two.addresses[family]
    node.sends(node.one, packet("tcp", one, PORT, two, SERVED))
    node.sends(node.two, packet("tcp", two, SERVED, one, PORT, "SA"))
    node.sends(node.one, packet("tcp", one, PORT, two, SERVED, "A"))
    opened, reached = node.entries().values()
    assert {opened.expires_s - opened.created_s, reached.expires_s - reached.created_s} <= {
        8000,
        8001,
    }
    node.sends(node.two, packet("tcp", two, SERVED, one, PORT, "R"))
    for entry in node.entries().values():
        assert CtFlag(entry.flags) & CtFlag.REPLY_CLOSING


@FAMILIES
def test_a_syn_answers_nobody(node: FlowNode, family: int) -> None:
    """Neither end takes it for one, whoever opened the flow before."""
    one, two = node.one.addresses[family], node.two.addresses[family]
    node.sends(node.one, packet("tcp", one, PORT, two, SERVED))
    node.sends(node.two, packet("tcp", two, SERVED, one, PORT, "S"))
    entries = node.entries()
    assert not any(answered(entry) for entry in entries.values())
    assert entries.keys() == {
        key("tcp", *ends, direction)
        for ends in ((one, PORT, two, SERVED), (two, SERVED, one, PORT))
        for direction in (Direction.EGRESS, Direction.INGRESS)
    }


@FAMILIES
def test_tcp_in_its_middle_opens_a_flow_of_its_own_direction(node: FlowNode, family: int) -> None:
    """Also what was an answer before an upgrade from programs that had no entries."""
    one, two = node.one.addresses[family], node.two.addresses[family]
    assert node.sends(node.two, packet("tcp", two, SERVED, one, PORT, "A"))[0] is Fate.DELIVERED
    entries = node.entries()
    assert entries.keys() == {
        key("tcp", two, SERVED, one, PORT, direction)
        for direction in (Direction.EGRESS, Direction.INGRESS)
    }
    assert all(entry.flags & CtFlag.NON_SYN for entry in entries.values())
    assert node.sends(node.one, packet("tcp", one, PORT, two, SERVED, "A"))[0] is Fate.DELIVERED
    entries = node.entries()
    assert len(entries) == 2
    assert all(answered(entry) for entry in entries.values())


@FAMILIES
def test_a_datagram_answers_no_flow_that_has_expired(node: FlowNode, family: int) -> None:
    one, two = node.one.addresses[family], node.two.addresses[family]
    node.sends(node.one, packet("udp", one, PORT, two, SERVED))
    for held, entry in node.entries().items():
        node.edit(held, msgspec.structs.replace(entry, expires_s=1))
    node.sends(node.two, packet("udp", two, SERVED, one, PORT))
    opened = key("udp", two, SERVED, one, PORT, Direction.EGRESS)
    reached = key("udp", two, SERVED, one, PORT, Direction.INGRESS)
    assert node.entries().keys() >= {opened, reached}


@FAMILIES
def test_a_datagram_of_its_own_leaves_its_tuple_to_a_service(node: FlowNode, family: int) -> None:
    """The last one who spoke has it, and is answered by the service."""
    one, two = node.one.addresses[family], node.two.addresses[family]
    node.serve(family, "udp", two)
    node.sends(node.one, packet("udp", one, PORT, two, 8080))
    fate, out = node.sends(node.one, packet("udp", one, PORT, SERVICE[family], 80))
    assert (fate, out.dst, out[UDP].sport) == (Fate.DELIVERED, two, PORT)
    assert node.sends(node.two, packet("udp", two, 8080, one, PORT))[1].src == SERVICE[family]
    node.sends(node.one, packet("udp", one, PORT, two, 8080))
    assert node.sends(node.two, packet("udp", two, 8080, one, PORT))[1].src == two


@FAMILIES
def test_parts_of_a_datagram_belong_to_one_flow(node: FlowNode, family: int) -> None:
    one, two = node.one.addresses[family], node.two.addresses[family]
    for part in fragments(one, PORT, two, SERVED):
        assert node.sends(node.one, part)[0] is Fate.DELIVERED
    assert node.entries().keys() == {
        key("udp", one, PORT, two, SERVED, direction)
        for direction in (Direction.EGRESS, Direction.INGRESS)
    }


@FAMILIES
def test_a_part_whose_ports_are_unknown_makes_no_entry(node: FlowNode, family: int) -> None:
    one, two = node.one.addresses[family], node.two.addresses[family]
    assert node.sends(node.one, fragments(one, PORT, two, SERVED)[-1])[0] is Fate.DELIVERED
    assert not node.entries()


@FAMILIES
def test_an_error_changes_no_flow_and_opens_none(node: FlowNode, family: int) -> None:
    one, two = node.one.addresses[family], node.two.addresses[family]
    sent = packet("udp", one, PORT, two, SERVED)
    assert node.sends(node.two, error(two, one, sent))[0] is Fate.DELIVERED
    assert not node.entries()
    node.sends(node.one, sent)
    before = node.entries()
    assert node.sends(node.two, error(two, one, sent))[0] is Fate.DELIVERED
    assert node.entries() == before


def test_addresses_of_a_link_are_those_of_its_own_workload(node: FlowNode) -> None:
    """Two workloads may choose the same one: the later one has a flow of its own."""
    for pod in node.pods.values():
        sent = packet("udp", "fe80::11", PORT, "fe80::1", 53)
        assert node.sends(pod, sent)[0] is Fate.LEFT
        ((_, entry),) = node.entries().items()
        assert made_of(entry) == (HOST, 1, pod.ifindex)


@FAMILIES
def test_other_protocols_pass_without_an_entry(node: FlowNode, family: int) -> None:
    one, two = node.one.addresses[family], node.two.addresses[family]
    sent = IPv6(src=one, dst=two, nh=47) if family == 6 else IP(src=one, dst=two, proto=47)
    assert node.sends(node.one, sent / Raw(b"gre"))[0] is Fate.DELIVERED
    assert node.arrives(node.one, ip(two, one) / ICMPv6ND_NA())[0] is Fate.DELIVERED
    assert not node.entries()


@FAMILIES
def test_a_flow_that_began_before_it_was_judged_is_judged_by_its_next_packet(
    node: FlowNode, family: int
) -> None:
    """Entries of an earlier version say nothing of identities."""
    one, two = node.one.addresses[family], node.two.addresses[family]
    node.sends(node.one, packet("tcp", one, PORT, two, SERVED))
    for held, entry in node.entries().items():
        node.edit(held, msgspec.structs.replace(entry, remote_identity=0, policy_generation=0))
    assert node.sends(node.one, packet("tcp", one, PORT, two, SERVED, "A"))[0] is Fate.DELIVERED
    assert {made_of(entry)[:2] for entry in node.entries().values()} == {
        (node.one.identity, 1),
        (node.two.identity, 1),
    }


def test_echo_of_both_families_counts_as_one_flow_each_identifier(made: FlowNode) -> None:
    made.clear()
    one, two = made.one.addresses[6], made.two.addresses[6]
    for identifier in (1, 2, 1):
        made.sends(made.one, ip(one, two) / ICMPv6EchoRequest(id=identifier))
    opened: set[CtKey] = {held for held in made.entries() if held.direction == Direction.EGRESS}
    assert {held.source_port for held in opened} == {1, 2}
