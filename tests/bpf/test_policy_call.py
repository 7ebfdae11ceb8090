# SPDX-License-Identifier: Apache-2.0
"""Each flow of a workload of ours passes one place that can refuse it: no way leads around it.

Programs with a constant of tests refuse a direction. What they then let through has gone around.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import msgspec
import pytest
from scapy.layers.inet import ICMP, IP
from scapy.layers.inet6 import (
    ICMPv6ND_NA,
    ICMPv6ND_NS,
    ICMPv6ND_RS,
    ICMPv6Unknown,
    IPv6,
)
from scapy.layers.l2 import ARP, Ether
from scapy.packet import Packet, Raw

from bpf.maps.ct import VERDICT_DENIED, CtEntry, Direction
from tests.bpf.flow_world import (
    BOTH,
    DENIED,
    EGRESS,
    FAMILIES,
    GATEWAY,
    INGRESS,
    ITSELF,
    KINDS,
    LOOPBACK,
    OUTSIDE,
    SERVICE,
    Fate,
    Policies,
    error,
    fragments,
    ip,
    packet,
    policies_of,
)

pytestmark = [pytest.mark.root, pytest.mark.timeout(120)]

PORT, SERVED = 40000, 80


@pytest.fixture(scope="module")
def direct() -> Iterator[Policies]:
    with ExitStack() as stack:
        yield policies_of(stack, legacy=False)


@pytest.fixture(scope="module")
def legacy() -> Iterator[Policies]:
    with ExitStack() as stack:
        yield policies_of(stack, legacy=True)


@pytest.fixture(params=["direct", "legacy"])
def policies(request: pytest.FixtureRequest, direct: Policies, legacy: Policies) -> Policies:
    chosen = direct if request.param == "direct" else legacy
    chosen.node.clear()
    chosen.refuse(0)
    return chosen


def fates(
    policies: Policies, sent: Packet, *, arrives: bool = False, backend: str = "two"
) -> list[bool]:
    """Whether the packet of a new flow is let through if nothing, egress, ingress is refused.

    It is sent by the first workload, or comes to it. ``backend``: of the service.
    """
    found = []
    node = policies.node
    for directions in (0, EGRESS, INGRESS):
        node.datapath.clear()
        if sent.dst in SERVICE.values():
            family = 6 if ":" in sent.dst else 4
            node.serve(family, _kind(sent), node.pods[backend].addresses[family])
        policies.refuse(directions)
        before = node.refused_reasons().get(DENIED, 0)
        run = node.arrives if arrives else node.sends
        passes = run(node.one, sent)[0] is not Fate.REFUSED
        assert node.refused_reasons().get(DENIED, 0) - before == (not passes)
        found.append(passes)
    return found


def _kind(sent: Packet) -> str:
    return {6: "tcp", 17: "udp", 132: "sctp"}[sent.nh if sent.name == "IPv6" else sent.proto]


BOTH_ENDS, SENDER, RECEIVER = [True, False, False], [True, False, True], [True, True, False]


@KINDS
@FAMILIES
def test_both_ends_of_a_flow_between_workloads_are_asked(
    policies: Policies, family: int, kind: str
) -> None:
    one, two = (pod.addresses[family] for pod in policies.node.pods.values())
    assert fates(policies, packet(kind, one, PORT, two, SERVED)) == BOTH_ENDS


@pytest.mark.parametrize("peer", [GATEWAY, OUTSIDE], ids=["node", "world"])
@KINDS
@FAMILIES
def test_the_workload_is_asked_about_flows_with_other_places(
    policies: Policies, family: int, kind: str, peer: dict[int, str]
) -> None:
    one = policies.node.one.addresses[family]
    assert fates(policies, packet(kind, one, PORT, peer[family], SERVED)) == SENDER
    asked = packet(kind, peer[family], PORT, one, SERVED)
    assert fates(policies, asked, arrives=True) == RECEIVER


@pytest.mark.parametrize("backend", ["one", "two"], ids=["itself", "another"])
@pytest.mark.parametrize("kind", ["tcp", "udp"])
@FAMILIES
def test_both_ends_of_a_flow_through_a_service_are_asked(
    policies: Policies, family: int, kind: str, backend: str
) -> None:
    one = policies.node.one.addresses[family]
    sent = packet(kind, one, PORT, SERVICE[family], 80)
    assert fates(policies, sent, backend=backend) == BOTH_ENDS


@FAMILIES
def test_a_flow_of_a_workload_with_itself_is_told_apart(policies: Policies, family: int) -> None:
    """Also its answers, and from flows with others of the same identity."""
    node = policies.node
    one, two = node.one.addresses[family], node.two.addresses[family]
    node.serve(family, "udp", one)
    asked = packet("udp", one, PORT, SERVICE[family], 80)
    answer = packet("udp", one, 8080, LOOPBACK[family], PORT)
    for refused in (asked, answer):
        policies.refuse(0)
        assert node.sends(node.one, asked)[0] is Fate.DELIVERED
        policies.refuse(ITSELF)
        assert node.sends(node.one, refused)[0] is Fate.REFUSED
    node.write(node.two._replace(identity=node.one.identity))
    try:
        assert node.sends(node.one, packet("udp", one, PORT, two, SERVED))[0] is Fate.DELIVERED
        assert node.arrives(node.one, packet("udp", two, PORT, one, SERVED))[0] is Fate.DELIVERED
    finally:
        node.write(node.two)


@FAMILIES
def test_parts_of_datagrams_do_not_go_around(policies: Policies, family: int) -> None:
    one, two = (pod.addresses[family] for pod in policies.node.pods.values())
    first, *_, last = fragments(one, PORT, two, SERVED)
    assert fates(policies, first) == BOTH_ENDS
    assert fates(policies, last) == BOTH_ENDS


@FAMILIES
def test_errors_about_no_flow_do_not_go_around(policies: Policies, family: int) -> None:
    one, two = (pod.addresses[family] for pod in policies.node.pods.values())
    for quoted in (
        packet("udp", two, PORT, one, SERVED),
        packet("udp", two, PORT, OUTSIDE[family], SERVED),
        packet("udp", one, PORT, two, SERVED),
    ):
        assert fates(policies, error(one, two, quoted)) == BOTH_ENDS


@FAMILIES
def test_other_protocols_do_not_go_around(policies: Policies, family: int) -> None:
    one, two = (pod.addresses[family] for pod in policies.node.pods.values())
    sent = IPv6(src=one, dst=two, nh=47) if family == 6 else IP(src=one, dst=two, proto=47)
    assert fates(policies, sent / Raw(b"gre")) == BOTH_ENDS
    message = ICMPv6Unknown(type=139, msgbody=b"?" * 12) if family == 6 else ICMP(type=13)
    assert fates(policies, ip(one, two) / message) == BOTH_ENDS


def test_neighbour_discovery_to_another_workload_does_not_go_around(policies: Policies) -> None:
    """Its types are let through on the link alone."""
    one, two = (pod.addresses[6] for pod in policies.node.pods.values())
    for hops in (64, 255):
        sent = IPv6(src=one, dst=two, hlim=hops) / ICMPv6ND_NA(tgt=one)
        assert fates(policies, sent) == BOTH_ENDS
    away = IPv6(src=one, dst=OUTSIDE[6], hlim=255) / ICMPv6ND_NA(tgt=one)
    assert fates(policies, away) == SENDER


def test_what_a_link_needs_is_asked_nobody(policies: Policies) -> None:
    node = policies.node
    one = node.one.addresses[6]
    policies.refuse(BOTH)
    for sent in (
        IPv6(src="fe80::11", dst="fe80::1", hlim=255) / ICMPv6ND_NS(tgt="fe80::1"),
        IPv6(src=one, dst=GATEWAY[6], hlim=255) / ICMPv6ND_NA(tgt=one),
        IPv6(src="::", dst="ff02::2", hlim=255) / ICMPv6ND_RS(),
    ):
        assert node.sends(node.one, sent)[0] is not Fate.REFUSED
        sent.hlim = 64
        assert node.sends(node.one, sent)[0] is Fate.REFUSED
    asked = IPv6(src="fe80::1", dst="ff02::1:ff00:11", hlim=255) / ICMPv6ND_NS(tgt=one)
    assert node.arrives(node.one, asked)[0] is Fate.DELIVERED
    arp = Ether(src=node.one.mac, dst="ff:ff:ff:ff:ff:ff") / ARP(
        hwsrc=node.one.mac, psrc=node.one.addresses[4], pdst=node.one.addresses[4]
    )
    assert node.run("from_pod", node.one, bytes(arp))[0] != 2


# -- flows that are known


def open_flow(policies: Policies, family: int, kind: str = "udp") -> tuple[Packet, Packet]:
    """A flow between both that was answered: its next packet each way."""
    node = policies.node
    one, two = node.one.addresses[family], node.two.addresses[family]
    sent = packet(kind, one, PORT, two, SERVED)
    back = packet(kind, two, SERVED, one, PORT, "SA", answer=True)
    assert node.sends(node.one, sent)[0] is Fate.DELIVERED
    assert node.sends(node.two, back)[0] is Fate.DELIVERED
    return packet(kind, one, PORT, two, SERVED, "A"), packet(
        kind, two, SERVED, one, PORT, "A", answer=True
    )


@pytest.mark.parametrize("first", ["opener", "other"])
@pytest.mark.parametrize("refused", [EGRESS, INGRESS], ids=["egress", "ingress"])
@KINDS
@FAMILIES
def test_a_flow_is_judged_anew_by_the_next_generation(
    policies: Policies, family: int, kind: str, refused: int, first: str
) -> None:
    """Whoever speaks first: a server that only sends is cut, too."""
    node = policies.node
    ways = list(zip((node.one, node.two), open_flow(policies, family, kind), strict=True))
    if first == "other":
        ways.reverse()
    policies.refuse(refused)
    for pod, sent in ways:
        assert node.sends(pod, sent)[0] is Fate.REFUSED
    policies.refuse(0)
    for pod, sent in ways:
        assert node.sends(pod, sent)[0] is Fate.DELIVERED


def verdicts(policies: Policies) -> dict[Direction, CtEntry]:
    return {Direction(held.direction): entry for held, entry in policies.node.entries().items()}


@FAMILIES
def test_a_refusal_marks_the_entry_and_deletes_none(policies: Policies, family: int) -> None:
    sent, _ = open_flow(policies, family)
    policies.refuse(INGRESS)
    policies.node.sends(policies.node.one, sent)
    found = verdicts(policies)
    generation = Policies.generation(INGRESS)
    assert found[Direction.EGRESS].policy_generation == generation
    assert found[Direction.INGRESS].policy_generation == generation | VERDICT_DENIED


@FAMILIES
def test_a_refused_flow_opens_no_way_back(policies: Policies, family: int) -> None:
    """What was never answered is no flow whose answers would pass: of a service it has an entry."""
    node = policies.node
    one, two = node.one.addresses[family], node.two.addresses[family]
    policies.refuse(EGRESS)
    assert node.sends(node.one, packet("tcp", one, PORT, two, SERVED))[0] is Fate.REFUSED
    policies.refuse(INGRESS)
    back = packet("tcp", two, SERVED, one, PORT, "SA")
    assert node.sends(node.two, back)[0] is Fate.REFUSED


@FAMILIES
def test_a_flow_is_judged_anew_when_the_identity_of_the_other_end_changes(
    policies: Policies, family: int
) -> None:
    node = policies.node
    sent, back = open_flow(policies, family)
    other = node.two._replace(identity=777)
    node.write(other)
    try:
        node.sends(node.one, sent)
        assert verdicts(policies)[Direction.EGRESS].remote_identity == 777
        node.write(node.two._replace(identity=778))
        node.sends(node.two, back)
        assert verdicts(policies)[Direction.EGRESS].remote_identity == 778
    finally:
        node.write(node.two)


@FAMILIES
def test_errors_of_an_allowed_flow_pass_whatever_else_is_refused(
    policies: Policies, family: int
) -> None:
    """An error travels like an answer: neither end would let it open a flow."""
    node = policies.node
    one, two = node.one.addresses[family], node.two.addresses[family]
    sent, back = open_flow(policies, family)
    policies.refuse(BOTH)
    for held, entry in node.entries().items():
        node.edit(held, _judged(entry, Policies.generation(BOTH)))
    assert node.sends(node.two, error(two, one, sent))[0] is Fate.DELIVERED
    assert node.sends(node.one, error(one, two, back))[0] is Fate.DELIVERED
    router = error(OUTSIDE[family], one, sent)
    assert node.arrives(node.one, router)[0] is Fate.DELIVERED
    foreign = error(two, one, packet("udp", one, PORT + 1, two, SERVED))
    assert node.sends(node.two, foreign)[0] is Fate.REFUSED


def _judged(entry: CtEntry, generation: int) -> CtEntry:
    return msgspec.structs.replace(entry, policy_generation=generation)


@FAMILIES
def test_errors_of_a_stale_flow_are_judged_with_it(policies: Policies, family: int) -> None:
    node = policies.node
    one, two = node.one.addresses[family], node.two.addresses[family]
    sent, _ = open_flow(policies, family)
    for refused in (EGRESS, INGRESS):
        policies.refuse(refused)
        assert node.sends(node.two, error(two, one, sent))[0] is Fate.REFUSED


@pytest.mark.parametrize("opener", ["two", "world"])
@FAMILIES
def test_an_error_of_a_workload_about_the_flow_of_another_is_its_own(
    policies: Policies, family: int, opener: str
) -> None:
    """It may quote what it likes: its egress is asked."""
    node = policies.node
    one, two = node.one.addresses[family], node.two.addresses[family]
    there = packet("udp", two, PORT, OUTSIDE[family], SERVED)
    here = packet("udp", OUTSIDE[family], SERVED, two, PORT)
    if opener == "two":
        node.sends(node.two, there)
    else:
        node.arrives(node.two, here)
    policies.refuse(EGRESS)
    for held, entry in node.entries().items():
        node.edit(held, _judged(entry, Policies.generation(EGRESS)))
    assert node.sends(node.two, error(two, OUTSIDE[family], here))[0] is Fate.LEFT
    assert node.sends(node.one, error(one, OUTSIDE[family], here))[0] is Fate.REFUSED
    assert node.sends(node.one, error(one, two, there))[0] is Fate.REFUSED


@FAMILIES
def test_a_workload_of_another_plugin_is_not_asked(policies: Policies, family: int) -> None:
    node = policies.node
    policies.refuse(BOTH)
    stranger = node.one._replace(ifindex=1)
    sent = packet("udp", OUTSIDE[family], PORT, OUTSIDE[family], SERVED)
    assert node.arrives(stranger, sent)[0] is Fate.DELIVERED
