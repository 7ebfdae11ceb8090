# SPDX-License-Identifier: Apache-2.0
"""Who answers, against Kubernetes' rules: random Services and slices, through to the slots.

A state is made from its number alone. One that differs is made smaller, by leaving out what does
not matter, before it is shown. `CILIA_RULES_STATES=100000` tries so many, from number
`CILIA_RULES_FIRST` on.
"""

from __future__ import annotations

import ipaddress
import os
import random
from collections.abc import Iterator
from typing import Any, TypeVar

import msgspec
import pytest

from bpf.maps.lb_numbers import ServiceFlag
from cilia.k8s import objects as k8s
from cilia.k8s.objects import decode
from cilia.loadbalancer.options import LoadBalancerOptions
from cilia.loadbalancer.services.conversion import convert_service
from cilia.loadbalancer.services.endpoints import convert_slice, merge_slices
from cilia.loadbalancer.services.selection import in_order, select_backends
from cilia.loadbalancer.this_node import ZONE_LABEL, LocalNode
from reconcilers.loadbalancer import frontend_entries as layout
from reconcilers.loadbalancer.frontend_details import serving_backends, wants_maglev
from statedb.status import pending
from tables.addressing import IP, ServiceName
from tables.loadbalancer.backends import Backend
from tables.loadbalancer.frontends import Frontend, FrontendParams
from tests.cilia.k8s.forms import slice_form
from tests.cilia.loadbalancer.services import kubernetes_rules as rules
from tests.cilia.loadbalancer.services.kubernetes_rules import Endpoint, Kind, Place, Service

STATES = int(os.environ.get("CILIA_RULES_STATES", "300"))
FIRST = int(os.environ.get("CILIA_RULES_FIRST", "0"))
T = TypeVar("T", bound=msgspec.Struct)

CONFIG = LoadBalancerOptions(bpf_lb_algorithm="maglev")
NAME = ServiceName("test/echo")
PREFIXES = {"IPv4": "10.1.0.", "IPv6": "fd00:1::"}
CLIENTS = {"IPv4": ("10.0.0.9", "192.0.2.9"), "IPv6": ("2001:db8::9", "fd00:9::9")}
RANGES = ("10.0.0.0/8", "192.0.2.9/32", "2001:db8::/32")


class State(msgspec.Struct, frozen=True):
    service: Service
    # Endpoints of each slice, by the family of the slice.
    slices: tuple[tuple[str, tuple[Endpoint, ...]], ...]
    place: Place


def state(number: int) -> State:
    """The state of this number."""
    rng = random.Random(number)
    maybe = (None, True, True, False)
    service = Service(
        rng.choice(("Cluster", "Local")),
        rng.choice(("Cluster", "Local")),
        rng.choice((None, "PreferClose", "PreferSameZone", "PreferSameNode", "PreferSameNode")),
        tuple(rng.sample(RANGES, rng.choice((0, 0, 1, 2)))),
        rng.random() < 0.3,
    )
    hinted = rng.random()  # most endpoints have hints, or few: all of them must be met often

    def endpoint(family: str) -> Endpoint:
        zones = rng.sample("abc", rng.choice((1, 1, 2))) if rng.random() < hinted else ()
        nodes = rng.sample(("here", "there", "yonder"), 1) if rng.random() < hinted else ()
        return Endpoint(
            f"{PREFIXES[family]}{rng.randint(1, 6)}",
            rng.choice(maybe),
            rng.choice(maybe),
            rng.choice(maybe),
            rng.choice((None, "here", "there", "yonder")),
            tuple(zones),
            tuple(nodes) if rng.random() < 0.7 else (),
        )

    slices = []
    for _ in range(rng.choice((0, 1, 1, 2, 3))):
        family = rng.choice(("IPv4", "IPv6"))
        chosen = {e.ip: e for e in (endpoint(family) for _ in range(rng.randint(0, 5)))}
        slices.append((family, tuple(chosen.values())))
    return State(service, tuple(slices), Place("here", rng.choice(("", "a", "b"))))


def conditions(e: Endpoint) -> dict[str, bool]:
    said = {"ready": e.ready, "serving": e.serving, "terminating": e.terminating}
    return {name: value for name, value in said.items() if value is not None}


def backends_of(st: State) -> list[Backend]:
    """What ours reads from the slices."""
    slices = []
    for number, (family, endpoints) in enumerate(st.slices):
        obj = decode(
            slice_form(
                name=f"echo-{number}",
                addressType=family,
                endpoints=[
                    {
                        "addresses": [e.ip],
                        "conditions": conditions(e),
                        "hints": {
                            "forZones": [{"name": zone} for zone in e.zones],
                            "forNodes": [{"name": node} for node in e.nodes],
                        },
                        **({"nodeName": e.node} if e.node else {}),
                    }
                    for e in endpoints
                ],
            )
        )
        assert isinstance(obj, k8s.EndpointSlice)
        slices.append(convert_slice(obj, NAME, CONFIG).backends)
    return in_order(merge_slices(slices))


def service_form(service: Service) -> dict[str, Any]:
    spec: dict[str, Any] = {
        "type": "LoadBalancer",
        "clusterIPs": ["10.96.0.1", "fd00:96::1"],
        "ipFamilies": ["IPv4", "IPv6"],
        "externalIPs": ["198.51.100.1", "2001:db8:5::1"],
        "externalTrafficPolicy": service.external,
        "internalTrafficPolicy": service.internal,
        "sessionAffinity": "ClientIP" if service.affinity else "None",
        "loadBalancerSourceRanges": list(service.ranges),
        "ports": [{"port": 80, "protocol": "TCP", "nodePort": 30080}],
    }
    if service.distribution:
        spec["trafficDistribution"] = service.distribution
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "echo", "namespace": "test"},
        "spec": spec,
        "status": {"loadBalancer": {"ingress": [{"ip": "172.16.0.1"}, {"ip": "2001:db8:7::1"}]}},
    }


def frontends_of(st: State) -> dict[tuple[Kind, str, int], Frontend]:
    """Ours, by kind, family and scope."""
    node = LocalNode(st.place.node, {ZONE_LABEL: st.place.zone} if st.place.zone else {})
    obj = decode(service_form(st.service))
    assert isinstance(obj, k8s.Service)
    converted = convert_service(obj, CONFIG, node)
    svc = converted.service
    assert svc is not None
    candidates, found = backends_of(st), {}

    def row(params: FrontendParams) -> Frontend:
        chosen = select_backends(
            params.address, params.type, params.port_name, svc, candidates, node, CONFIG
        )
        return Frontend(
            params.address, params.type, NAME, "", 80, svc, chosen, chosen, None, pending()
        )

    for params in converted.frontends:
        family = "IPv6" if params.address.is_ipv6 else "IPv4"
        found[Kind(params.type.value), family, params.address.scope] = row(params)
    return found


def differences(st: State) -> Iterator[str]:
    """What ours does otherwise than Kubernetes."""
    frontends = frontends_of(st)
    for kind in Kind:
        for family in PREFIXES:
            for inside in (False, True):
                fe = frontends[kind, family, 0]
                flags = layout.master_flags(fe, fe.address, CONFIG)
                if inside and flags & ServiceFlag.TWO_SCOPES:
                    fe = frontends[kind, family, 1]
                yield from compared(st, kind, family, inside, fe)


def compared(st: State, kind: Kind, family: str, inside: bool, fe: Frontend) -> Iterator[str]:
    where = f"{kind}, {family}, {'inside' if inside else 'outside'}"
    endpoints = [e for of, found in st.slices if of == family for e in found]
    right = rules.answering(st.service, endpoints, kind, st.place, inside=inside)
    choice = layout.choose(fe)
    ours = {str(be.address.ip) for be in choice.shown[: choice.used]}
    if ours != right:
        yield f"{where}: {sorted(ours)} get connections, not {sorted(right)}"
    # Affinity and Maglev tables hold those that get connections, and no others.
    held = {str(be.address.ip) for be in serving_backends(choice)}
    if held != right and (st.service.affinity or wants_maglev(fe, fe.address, CONFIG)):
        yield f"{where}: {sorted(held)} can be stayed with, not {sorted(right)}"
    node = IP.parse(CLIENTS[family][0])
    flags = layout.master_flags(fe, fe.address, CONFIG, [node])
    checked = flags & (ServiceFlag.SOURCE_INSIDE if inside else ServiceFlag.SOURCE_RANGE)
    for client in CLIENTS[family]:
        ranges = fe.service.source_ranges
        ours_lets = not checked or any(ipaddress.ip_address(client) in prefix for prefix in ranges)
        if ours_lets != rules.admits(st.service, kind, client):
            yield f"{where}: {client} is {'' if ours_lets else 'not '}let in"
    if inside and rules.admits(st.service, kind, str(node)) is bool(
        flags & ServiceFlag.SOURCE_NOT_NODE
    ):
        yield f"{where}: the node with {node} is let in, or not"


def smaller(st: State) -> Iterator[State]:
    """States with one thing less."""
    for i, (family, endpoints) in enumerate(st.slices):
        before, after = st.slices[:i], st.slices[i + 1 :]
        yield msgspec.structs.replace(st, slices=before + after)
        for j, e in enumerate(endpoints):
            simpler = [(), *((x,) for x in plainer(e))]
            for instead in simpler:
                changed = (family, (*endpoints[:j], *instead, *endpoints[j + 1 :]))
                yield msgspec.structs.replace(st, slices=(*before, changed, *after))
    for service in plainer(st.service):
        yield msgspec.structs.replace(st, service=service)


def plainer(thing: T) -> Iterator[T]:
    plain = {f.name: f.default for f in msgspec.structs.fields(thing) if not f.required}
    for name, default in plain.items():
        if getattr(thing, name) != default:
            yield msgspec.structs.replace(thing, **{name: default})


def smallest(st: State) -> State:
    """Shrink a state that differs until nothing can be left out."""
    while True:
        less = next((s for s in smaller(st) if next(differences(s), None)), None)
        if less is None:
            return st
        st = less


def test_backends_are_chosen_by_kubernetes_rules() -> None:
    for number in range(FIRST, FIRST + STATES):
        if next(differences(state(number)), None):
            least = smallest(state(number))
            pytest.fail(f"state {number}: {next(differences(least))}\n{least}")


def test_random_states_reach_all_rules() -> None:
    """A net that never meets a rule holds nothing."""
    met: set[str] = set()
    for number in range(300):
        st = state(number)
        endpoints = rules.joined([e for of, found in st.slices if of == "IPv4" for e in found])
        ready = rules.ready(endpoints)
        last = rules.last_resort(endpoints)
        near = rules.nearest(st.service, ready, st.place) if ready else []
        met |= {
            "last resort" if last and not ready else "",
            "last resort is left out" if last and ready else "",
            f"near by {st.service.distribution}" if len(near) < len(ready) else "",
            "in two slices"
            if len(endpoints) < sum(len(f) for of, f in st.slices if of == "IPv4")
            else "",
        }
    assert met >= {
        "last resort",
        "last resort is left out",
        "near by PreferClose",
        "near by PreferSameNode",
        "in two slices",
    }
