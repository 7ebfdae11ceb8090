# SPDX-License-Identifier: Apache-2.0
"""Random packets between workloads and the world: the programs know the flows that a model knows.

The model has flows and verdicts, and no packet formats, maps or hooks: what `bpf/lib/flow.h` says
in its head, for workloads that use no service. Policies change under way, and so do identities.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scapy.packet import Packet

from bpf.maps.ct import VERDICT_DENIED, CtKey, Direction
from tests.bpf.flow_world import (
    BOTH,
    EGRESS,
    INGRESS,
    OUTSIDE,
    WORLD,
    Fate,
    FlowNode,
    Policies,
    answered,
    key,
    packet,
    policies_of,
)

pytestmark = [pytest.mark.root, pytest.mark.timeout(120)]

PORTS = (1000, 2000)
OUT, IN = Direction.EGRESS, Direction.INGRESS


class Way(NamedTuple):
    """Who sends what to whom, at which ports."""

    kind: str
    source: str
    sport: int
    destination: str
    dport: int

    def back(self) -> Way:
        return Way(self.kind, self.destination, self.dport, self.source, self.sport)


@dataclass
class Flow:
    """One end's entry. ``verdict``: identity, generation, refused."""

    verdict: tuple[int, int, bool] | None = None
    answered: bool = False
    opener: set[str] = field(default_factory=set)
    other: set[str] = field(default_factory=set)

    @property
    def closing(self) -> bool:
        return bool((self.opener | self.other) & set("FR"))

    @property
    def over(self) -> bool:
        return "R" in self.opener | self.other or "F" in self.opener & self.other

    @property
    def never_allowed(self) -> bool:
        return self.verdict is not None and self.verdict[2] and not self.answered


class Model:
    """What a node knows of flows."""

    def __init__(self) -> None:
        self.flows: dict[tuple[Direction, Way], Flow] = {}
        self.identities = {"one": 311, "two": 312, "outside": WORLD}
        self.refused = 0

    def _judge(self, flow: Flow, direction: Direction, remote: str) -> bool:
        current = (self.identities[remote], Policies.generation(self.refused))
        if flow.verdict is None or flow.verdict[:2] != current:
            flow.verdict = (*current, bool(self.refused & 1 << direction))
        return not flow.verdict[2]

    def _forward(self, way: Way, flags: str, direction: Direction, remote: str) -> bool:
        flow = self.flows.get((direction, way))
        if flow is not None and not (flags == "S" and flow.closing):
            allowed = self._judge(flow, direction, remote)
            if allowed and direction == IN:
                flow.opener |= set(flags)
            return allowed
        made = Flow(opener=set(flags))
        if not self._judge(made, direction, remote):
            return False
        self.flows[direction, way] = made
        return True

    def _answer(self, way: Way, flags: str, direction: Direction, remote: str) -> bool | None:
        """Whether it is allowed, if it answers a flow of this direction; None if it does not."""
        flow = self.flows.get((direction, way.back()))
        if flow is None or flags == "S" or flow.never_allowed:
            return None
        allowed = self._judge(flow, direction, remote)
        if allowed:
            flow.answered = True
            flow.other |= set(flags)
        return allowed

    def _balance(self, way: Way, flags: str) -> Flow | None:
        """What load balancing does with what leaves: it notes known flows and opens TCP."""
        flow = self.flows.get((OUT, way))
        if flow is not None and not (flags == "S" and flow.closing):
            flow.opener |= set(flags)
            return flow
        if flags == "S":
            self.flows[OUT, way] = Flow(opener=set(flags))
        return None

    def leaves(self, way: Way, flags: str) -> bool:
        known = self._balance(way, flags)
        remote = way.destination
        allowed = (self.identities[remote], Policies.generation(self.refused), False)
        if known is not None and known.verdict == allowed:
            return True
        answer = self._answer(way, flags, IN, remote)
        return self._forward(way, flags, OUT, remote) if answer is None else answer

    def reaches(self, way: Way, flags: str) -> bool:
        remote = way.source
        opened = self.flows.get((OUT, way.back()))
        if flags == "S" and opened is not None and opened.over:
            del self.flows[OUT, way.back()]
        answer = self._answer(way, flags, OUT, remote)
        return self._forward(way, flags, IN, remote) if answer is None else answer

    def packet(self, way: Way, flags: str) -> bool:
        """Whether it comes through."""
        if way.source != "outside" and not self.leaves(way, flags):
            return False
        return way.destination == "outside" or self.reaches(way, flags)


@pytest.fixture(scope="module", params=["direct", "legacy"])
def policies(request: pytest.FixtureRequest) -> Iterator[Policies]:
    with ExitStack() as stack:
        yield policies_of(stack, legacy=request.param == "legacy")


def address(node: FlowNode, name: str, family: int) -> str:
    return OUTSIDE[family] if name == "outside" else node.pods[name].addresses[family]


def run(node: FlowNode, way: Way, flags: str, family: int) -> bool:
    source = address(node, way.source, family)
    destination = address(node, way.destination, family)
    sent: Packet = packet(way.kind, source, way.sport, destination, way.dport, flags)
    if way.source == "outside":
        fate, _ = node.arrives(node.pods[way.destination], sent)
    else:
        fate, _ = node.sends(node.pods[way.source], sent)
    return fate is not Fate.REFUSED


def expected(node: FlowNode, model: Model, family: int) -> dict[CtKey, tuple[object, ...]]:
    found: dict[CtKey, tuple[object, ...]] = {}
    for (direction, way), flow in model.flows.items():
        ends = (address(node, way.source, family), address(node, way.destination, family))
        made = key(way.kind, ends[0], way.sport, ends[1], way.dport, direction)
        identity, generation, refused = flow.verdict or (0, 0, False)
        found[made] = (flow.answered, identity, generation, refused)
    return found


def known(node: FlowNode) -> dict[CtKey, tuple[object, ...]]:
    return {
        held: (
            answered(entry),
            entry.remote_identity,
            entry.generation,
            bool(entry.policy_generation & VERDICT_DENIED),
        )
        for held, entry in node.entries().items()
    }


ENDS = st.sampled_from(
    [(a, b) for a in ("one", "two", "outside") for b in ("one", "two", "outside") if a != b]
)
PACKETS = st.builds(
    lambda kind, ends, sport, dport, flags: (Way(kind, ends[0], sport, ends[1], dport), flags),
    st.sampled_from(["tcp", "tcp", "udp"]),
    ENDS,
    st.sampled_from(PORTS),
    st.sampled_from(PORTS),
    st.sampled_from(["S", "S", "SA", "A", "A", "FA", "R"]),
)
CHANGES = st.one_of(
    st.tuples(st.just("policy"), st.sampled_from([0, 0, EGRESS, INGRESS, BOTH])),
    st.tuples(st.just("identity"), st.sampled_from([312, 777])),
)
STEPS = st.lists(st.one_of(PACKETS, PACKETS, PACKETS, PACKETS, CHANGES), max_size=40)


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(steps=STEPS, family=st.sampled_from([4, 6]))
def test_programs_know_the_flows_of_the_model(
    policies: Policies, steps: list[tuple[object, object]], family: int
) -> None:
    node, model = policies.node, Model()
    node.clear()
    node.write(node.two)
    policies.refuse(0)
    for what, how in steps:
        if what == "policy":
            assert isinstance(how, int)
            model.refused = how
            policies.refuse(how)
        elif what == "identity":
            assert isinstance(how, int)
            model.identities["two"] = how
            node.write(node.two._replace(identity=how))
        else:
            assert isinstance(what, Way)
            assert isinstance(how, str)
            flags = how if what.kind == "tcp" else ""
            assert run(node, what, how, family) == model.packet(what, flags), (what, how)
    assert known(node) == expected(node, model, family)
