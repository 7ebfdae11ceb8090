# SPDX-License-Identifier: Apache-2.0
"""Random changes, compared after each with a recomputation that knows no incremental step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from bpf.maps.lb_numbers import FrontendType
from cilia.loadbalancer.options import LoadBalancerOptions
from cilia.loadbalancer.services.writer import KEEP, Keep, ServiceChange
from cilia.loadbalancer.this_node import ZONE_LABEL, LocalNode
from tables.addressing import L3n4Addr
from tables.loadbalancer.backends import Backend, BackendState
from tables.loadbalancer.frontends import FrontendParams
from tables.loadbalancer.services import Service, TrafficDistribution, TrafficPolicy
from tables.sources import PRIORITY, Source
from tests.cilia.loadbalancer.world import World, name_of

NAMES = ["a", "b", "c", "d"]
NODE = LocalNode("here", {ZONE_LABEL: "z1"})
CONFIG = LoadBalancerOptions()


class Step(msgspec.Struct):
    name: str
    service: dict[str, Any] | Keep | None
    frontends: list[FrontendParams]
    backends: list[Backend] | Keep
    source: Source


RANK = list(FrontendType)


class Model:
    """What the tables ought to hold, kept in the plainest way."""

    def __init__(self) -> None:
        self.asked: dict[str, tuple[Service, list[FrontendParams]]] = {}
        self.owners: dict[L3n4Addr, str] = {}
        self.since: dict[tuple[L3n4Addr, str], int] = {}
        self.backends: dict[tuple[str, Source], list[Backend]] = {}

    def apply(self, step: Step, svc: Service | Keep | None) -> None:
        if step.backends is not KEEP:
            self.backends[step.name, step.source] = step.backends
        if svc is None:
            self.asked.pop(step.name, None)
        elif svc is not KEEP:
            self.asked[step.name] = (svc, step.frontends)
        self._settle()

    def _settle(self) -> None:
        asking: dict[L3n4Addr, list[str]] = {}
        for name, (_, frontends) in self.asked.items():
            for params in frontends:
                asking.setdefault(params.address, []).append(name)
        owners = {address: self._first(address, names) for address, names in asking.items()}
        waiting = [(a, n) for a, names in asking.items() for n in names if owners[a] != n]
        self.since = {pair: self.since.get(pair, self._tick()) for pair in waiting}
        self.owners = owners

    def _tick(self) -> int:
        return max(self.since.values(), default=0) + 1

    def _first(self, address: L3n4Addr, names: list[str]) -> str:
        """Return who gets an address: the most entitled, the oldest; then whoever has it, unless
        ages are known to be equal.
        """

        def standing(name: str) -> tuple[int, float]:
            service, frontends = self.asked[name]
            [type_] = [params.type for params in frontends if params.address == address]
            return RANK.index(type_), service.created_at or float("inf")

        best = min(map(standing, names))
        equal = sorted(name for name in names if standing(name) == best)
        if best[1] == float("inf"):
            owner = self.owners.get(address)
            if owner in equal:
                return str(owner)
            return min(equal, key=lambda name: (self.since.get((address, name), 0), name))
        return equal[0]

    # -- what follows

    def frontends(self) -> dict[L3n4Addr, tuple[str, FrontendType, list[Backend]]]:
        return {
            params.address: (name, params.type, self._selected(name, svc, params))
            for name, (svc, frontends) in self.asked.items()
            for params in frontends
            if self.owners[params.address] == name
        }

    def _selected(self, name: str, svc: Service, params: FrontendParams) -> list[Backend]:
        best: dict[L3n4Addr, Backend] = {}
        for source in sorted(Source, key=PRIORITY.__getitem__, reverse=True):
            for be in self.backends.get((name, source), []):
                if fits(params, be):
                    best[be.address] = be
        chosen = [best[addr] for addr in sorted(best)]
        internal = params.address.scope == 1
        policy = "Cluster" if internal else svc.ext_traffic_policy
        if params.type == "ClusterIP":
            policy = svc.int_traffic_policy
        if policy == "Local":
            return [be for be in chosen if be.node_name in ("", "here")]
        ready = [be for be in chosen if be.state is BackendState.ACTIVE]
        near: list[Backend] = []
        if svc.traffic_distribution == "PreferSameNode":
            near = [be for be in ready if be.node_name == "here"]
        if svc.traffic_distribution and not near and all(be.for_zones for be in ready):
            near = [be for be in ready if "z1" in be.for_zones]
        return [be for be in chosen if not near or be not in ready or be in near]


def fits(params: FrontendParams, be: Backend) -> bool:
    return (
        be.address.protocol == params.address.protocol
        and be.address.is_ipv6 == params.address.is_ipv6
        and (not params.port_name or not be.port_names or params.port_name in be.port_names)
    )


FRONTENDS = [
    FrontendParams(L3n4Addr.parse(address), type_, port_name, 80)
    for address, type_, port_name in [
        ("10.96.0.1:80/TCP", FrontendType.CLUSTER_IP, ""),
        ("10.96.0.2:80/TCP", FrontendType.CLUSTER_IP, "http"),
        ("0.0.0.0:30080/TCP", FrontendType.NODE_PORT, "http"),
        ("0.0.0.0:30080/TCP/i", FrontendType.NODE_PORT, "http"),
        ("172.16.0.1:53/UDP", FrontendType.LOAD_BALANCER, "dns"),
        ("[fd00::1]:80/TCP", FrontendType.EXTERNAL_IPS, ""),
    ]
]


RETYPED = [None, FrontendType.CLUSTER_IP, FrontendType.LOAD_BALANCER, FrontendType.EXTERNAL_IPS]


def retyped(params: FrontendParams, type_: FrontendType | None) -> FrontendParams:
    """An address may be a ClusterIP to one service and an external IP to another."""
    return params if type_ is None else msgspec.structs.replace(params, type=type_)


policies = st.sampled_from(list(TrafficPolicy))
services = st.fixed_dictionaries(
    {
        "ext_traffic_policy": policies,
        "int_traffic_policy": policies,
        "traffic_distribution": st.sampled_from(list(TrafficDistribution)),
        "affinity_timeout_s": st.sampled_from([0, 42]),
        "created_at": st.sampled_from([0, 0, 1, 2]),
    }
)


@st.composite
def backends(draw: st.DrawFn, name: str, source: Source) -> list[Backend]:
    addresses = ["10.1.0.1:80/TCP", "10.1.0.2:80/TCP", "10.1.0.3:53/UDP", "[fd00::2]:80/TCP"]
    return [
        Backend(
            name_of(name),
            L3n4Addr.parse(address),
            source,
            draw(st.sampled_from(list(BackendState)[:5])),
            draw(st.sampled_from([(), ("http",), ("dns", "http")])),
            node_name=draw(st.sampled_from(["", "here", "there"])),
            for_zones=draw(st.sampled_from([(), ("z1",), ("z2",), ("z1", "z2")])),
        )
        for address in draw(st.lists(st.sampled_from(addresses), unique=True))
    ]


@st.composite
def steps(draw: st.DrawFn) -> Step:
    name = draw(st.sampled_from(NAMES))
    source = draw(st.sampled_from([Source.K8S, Source.API]))
    frontends = st.builds(retyped, st.sampled_from(FRONTENDS), st.sampled_from(RETYPED))
    wanted = draw(st.lists(frontends, unique_by=lambda p: p.address, max_size=4))
    return Step(
        name,
        # Which of two sources' services is served: test_writer.py.
        draw(st.one_of(services, st.none(), st.just(KEEP))) if source is Source.K8S else KEEP,
        sorted(wanted, key=lambda p: p.address),
        draw(st.one_of(st.just(KEEP), backends(name, source))),
        source,
    )


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(steps(), min_size=1, max_size=3), max_size=12))
def test_tables_are_what_a_recomputation_gives(batches: Sequence[Sequence[Step]]) -> None:
    world, model = World(CONFIG, NODE), Model()
    for batch in batches:
        changes = []
        for step in batch:
            svc = step.service
            row = Service(name_of(step.name), Source.K8S, **svc) if isinstance(svc, dict) else svc
            model.apply(step, row)
            changes.append(
                ServiceChange(name_of(step.name), row, step.frontends, step.backends, step.source)
            )
        world.apply(*changes)
        compare(world, model)
        # The last word on each service said again changes nothing.
        before = world.revisions()
        last = {(change.name, change.source): change for change in changes}
        if len({name for name, _ in last}) == len(changes):
            world.apply(*changes)
            assert world.revisions() == before


def compare(world: World, model: Model) -> None:
    txn, t = world.db.read_txn(), world.tables
    assert {svc.name.name: svc for svc in t.services.all(txn)} == {
        name: svc for name, (svc, _) in model.asked.items()
    }
    assert {
        fe.address: (fe.service_name.name, fe.type, list(fe.backends))
        for fe in t.frontends.all(txn)
    } == model.frontends()
    for fe in t.frontends.all(txn):
        assert fe.service == model.asked[fe.service_name.name][0]
    assert sorted(t.backends.all(txn), key=repr) == sorted(
        (be for rows in model.backends.values() for be in rows), key=repr
    )
    assert {
        (claim.address, claim.service.name.name): (claim.owner.name, claim.service)
        for claim in t.claims.all(txn)
    } == {
        (address, name): (model.owners[address], model.asked[name][0])
        for address, name in model.since
    }
    assert len(world.problems) == len(model.since)
