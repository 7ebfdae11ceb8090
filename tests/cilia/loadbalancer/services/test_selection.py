# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from typing import Any

import pytest

from bpf.maps.lb_numbers import FrontendType
from cilia.loadbalancer.options import LoadBalancerOptions
from cilia.loadbalancer.services.selection import (
    in_order,
    local_backends_of_service,
    probed,
    select_backends,
)
from cilia.loadbalancer.this_node import ZONE_LABEL, LocalNode
from tables.addressing import IP, L3n4Addr, ServiceName
from tables.loadbalancer.backends import Backend, BackendState
from tables.loadbalancer.services import (
    ProxyDelegation,
    Service,
    TrafficDistribution,
    TrafficPolicy,
)
from tables.sources import Source

NAME = ServiceName("test/echo")
NODE = LocalNode("here", {ZONE_LABEL: "a"})
TOPOLOGY = LoadBalancerOptions()
PLAIN = LoadBalancerOptions(enable_service_topology=False)
ALL_TYPES = LoadBalancerOptions(bpf_lb_internal_policy_all_types=True)


def backend(address: str, **fields: Any) -> Backend:
    return Backend(NAME, L3n4Addr.parse(address), **fields)


def select(
    *backends: Backend,
    address: str = "10.96.0.1:80/TCP",
    type_: FrontendType = FrontendType.CLUSTER_IP,
    port_name: str = "",
    config: LoadBalancerOptions = TOPOLOGY,
    node: LocalNode = NODE,
    redirected: bool = False,
    **service: Any,
) -> list[str]:
    chosen = select_backends(
        L3n4Addr.parse(address),
        type_,
        port_name,
        Service(NAME, Source.K8S, **service),
        in_order(backends),
        node,
        config,
        redirected=redirected,
    )
    return [str(be.address).split(":")[0].rsplit(".", 1)[-1] for be in chosen]


HERE = backend("10.1.0.1:80/TCP", node_name="here")
THERE = backend("10.1.0.2:80/TCP", node_name="there")
NOWHERE = backend("10.1.0.3:80/TCP")


def test_protocol_and_family_must_agree() -> None:
    others = [backend("10.1.0.9:80/UDP"), backend("[fd00::1]:80/TCP"), backend("10.1.0.8:80/SCTP")]
    assert select(HERE, *others) == ["1"]


def test_a_named_port_wants_a_backend_of_that_name_or_of_none() -> None:
    http = backend("10.1.0.1:80/TCP", port_names=("http", "web"))
    metrics = backend("10.1.0.2:9090/TCP", port_names=("metrics",))
    assert select(http, metrics, NOWHERE, port_name="web") == ["1", "3"]
    assert select(http, metrics, NOWHERE) == ["1", "2", "3"]


def test_one_row_an_address_from_the_preferred_source() -> None:
    rows = [
        backend("10.1.0.1:80/TCP", source=Source.API, state=BackendState.MAINTENANCE),
        backend("10.1.0.1:80/TCP", source=Source.K8S),
    ]
    chosen = select_backends(
        L3n4Addr.parse("10.96.0.1:80/TCP"),
        FrontendType.CLUSTER_IP,
        "",
        Service(NAME, Source.K8S),
        in_order(rows),
        NODE,
        PLAIN,
    )
    assert [be.source for be in chosen] == [Source.K8S]


def test_backends_of_all_states_are_chosen_in_address_order() -> None:
    rows = [
        backend(f"10.1.0.{9 - n}:80/TCP", state=state)
        for n, state in enumerate(list(BackendState)[:5])
    ]
    assert select(*rows) == ["5", "6", "7", "8", "9"]


EXT: dict[str, Any] = {"ext_traffic_policy": TrafficPolicy.LOCAL}
INT: dict[str, Any] = {"int_traffic_policy": TrafficPolicy.LOCAL}
EXTERNAL_TYPES = [FrontendType.NODE_PORT, FrontendType.LOAD_BALANCER, FrontendType.EXTERNAL_IPS]


@pytest.mark.parametrize("type_", EXTERNAL_TYPES)
@pytest.mark.parametrize(
    ("policies", "scope", "local"),
    [
        ({}, "", False),
        (EXT, "", True),
        (EXT, "/i", False),
        (INT, "", False),
        (INT, "/i", False),
        (EXT | INT, "", True),
        (EXT | INT, "/i", False),
    ],
)
def test_external_addresses_know_the_external_policy_from_outside_only(
    type_: FrontendType, policies: dict[str, Any], scope: str, local: bool
) -> None:
    address = f"1.1.1.1:80/TCP{scope}"
    chosen = select(HERE, THERE, NOWHERE, address=address, type_=type_, **policies)
    assert chosen == (["1", "3"] if local else ["1", "2", "3"])


@pytest.mark.parametrize("type_", EXTERNAL_TYPES)
@pytest.mark.parametrize(
    ("policies", "scope", "local"),
    [(EXT, "/i", False), (INT, "", False), (INT, "/i", True), (EXT | INT, "", True)],
)
def test_internal_policy_counts_at_all_addresses_when_the_option_says_so(
    type_: FrontendType, policies: dict[str, Any], scope: str, local: bool
) -> None:
    address = f"1.1.1.1:80/TCP{scope}"
    chosen = select(
        HERE, THERE, NOWHERE, address=address, type_=type_, config=ALL_TYPES, **policies
    )
    assert chosen == (["1", "3"] if local else ["1", "2", "3"])


@pytest.mark.parametrize(
    ("type_", "policies", "local"),
    [
        (FrontendType.CLUSTER_IP, EXT, False),
        (FrontendType.CLUSTER_IP, INT, True),
        (FrontendType.HOST_PORT, EXT | INT, False),
        (FrontendType.LOCAL_REDIRECT, EXT | INT, False),
    ],
)
def test_a_cluster_ip_knows_the_internal_policy_only(
    type_: FrontendType, policies: dict[str, Any], local: bool
) -> None:
    assert (len(select(HERE, THERE, NOWHERE, type_=type_, **policies)) == 2) is local


SAME_NODE: dict[str, Any] = {"traffic_distribution": TrafficDistribution.PREFER_SAME_NODE}


def test_same_node_is_preferred_when_it_has_a_backend() -> None:
    assert select(HERE, THERE, NOWHERE, config=TOPOLOGY, **SAME_NODE) == ["1"]
    assert select(THERE, NOWHERE, config=TOPOLOGY, **SAME_NODE) == ["2", "3"]
    assert select(HERE, THERE, config=PLAIN, **SAME_NODE) == ["1", "2"]


NOT_READY = pytest.mark.parametrize(
    "state",
    [
        BackendState.MAINTENANCE,
        BackendState.TERMINATING,
        BackendState.TERMINATING_NOT_SERVING,
    ],
)


@NOT_READY
def test_same_node_is_not_preferred_when_its_backend_is_not_ready(state: BackendState) -> None:
    here = backend("10.1.0.1:80/TCP", node_name="here", state=state)
    assert "2" in select(here, THERE, config=TOPOLOGY, **SAME_NODE)


def test_same_node_falls_back_to_the_zone() -> None:
    near = backend("10.1.0.1:80/TCP", node_name="near", for_zones=("a",))
    far = backend("10.1.0.2:80/TCP", node_name="far", for_zones=("b",))
    assert select(near, far, config=TOPOLOGY, **SAME_NODE) == ["1"]


@pytest.mark.parametrize(
    "distribution", [TrafficDistribution.PREFER_CLOSE, TrafficDistribution.PREFER_SAME_ZONE]
)
def test_zone_hints_count_when_all_have_them_and_one_is_ours(
    distribution: TrafficDistribution,
) -> None:
    ours = backend("10.1.0.1:80/TCP", for_zones=("a", "b"))
    theirs = backend("10.1.0.2:80/TCP", for_zones=("b",))
    asked: dict[str, Any] = {"traffic_distribution": distribution}
    assert select(ours, theirs, config=TOPOLOGY, **asked) == ["1"]
    assert select(ours, theirs, NOWHERE, config=TOPOLOGY, **asked) == ["1", "2", "3"]
    assert select(theirs, config=TOPOLOGY, **asked) == ["2"]
    assert select(ours, theirs, config=PLAIN, **asked) == ["1", "2"]
    assert select(ours, theirs) == ["1", "2"]
    assert select(ours, theirs, config=TOPOLOGY, redirected=True, **asked) == ["1", "2"]
    assert select(ours, theirs, config=TOPOLOGY, node=LocalNode("here"), **asked) == ["1", "2"]


ZONE: dict[str, Any] = {"traffic_distribution": TrafficDistribution.PREFER_SAME_ZONE}


@NOT_READY
def test_zone_hints_count_when_only_backends_that_are_not_ready_have_none(
    state: BackendState,
) -> None:
    ours = backend("10.1.0.1:80/TCP", for_zones=("a",))
    theirs = backend("10.1.0.2:80/TCP", for_zones=("b",))
    ending = backend("10.1.0.3:80/TCP", state=state)
    assert "2" not in select(ours, theirs, ending, config=TOPOLOGY, **ZONE)


@NOT_READY
def test_zone_hints_of_backends_that_are_not_ready_do_not_count(state: BackendState) -> None:
    ending = backend("10.1.0.1:80/TCP", for_zones=("a",), state=state)
    theirs = backend("10.1.0.2:80/TCP", for_zones=("b",))
    assert "2" in select(ending, theirs, config=TOPOLOGY, **ZONE)


def test_a_local_policy_goes_before_zone_hints() -> None:
    ours = backend("10.1.0.1:80/TCP", node_name="here", for_zones=("a",))
    also = backend("10.1.0.3:80/TCP", node_name="here", for_zones=("b",))
    near = backend("10.1.0.2:80/TCP", node_name="there", for_zones=("a",))
    rows = (ours, also, near)
    asked: dict[str, Any] = {"config": TOPOLOGY, **ZONE, **EXT, **INT}
    assert select(*rows, type_=FrontendType.NODE_PORT, **asked) == ["1", "3"]
    assert select(*rows, type_=FrontendType.CLUSTER_IP, **asked) == ["1", "3"]
    inside = "1.1.1.1:80/TCP/i"
    assert select(*rows, address=inside, type_=FrontendType.NODE_PORT, **asked) == ["1", "2"]


def test_node_hints_count_when_all_that_can_serve_have_them() -> None:
    ours = backend("10.1.0.1:80/TCP", node_name="there", for_nodes=("near", "here"))
    theirs = backend("10.1.0.2:80/TCP", node_name="here", for_nodes=("there",))
    ending = backend("10.1.0.4:80/TCP", state=BackendState.TERMINATING)
    assert select(ours, theirs, **SAME_NODE) == ["1"]
    assert select(ours, theirs, ending, **SAME_NODE) == ["1", "4"]
    assert select(ours, theirs, NOWHERE, **SAME_NODE) == ["1", "2", "3"]
    assert select(theirs, **SAME_NODE) == ["2"]


def test_same_node_does_not_keep_a_backend_that_is_ill() -> None:
    ill = backend("10.1.0.1:80/TCP", node_name="here", unhealthy=True, unhealthy_updated_at=1.0)
    well = backend("10.1.0.2:80/TCP", node_name="there", unhealthy_updated_at=1.0)
    assert select(ill, well, **SAME_NODE) == ["1", "2"]


def test_a_health_checked_service_leaves_out_what_was_never_probed() -> None:
    rows = (
        HERE,
        backend("10.1.0.4:80/TCP", unhealthy_updated_at=1.0),
        backend("10.1.0.5:80/TCP", unhealthy=True, unhealthy_updated_at=1.0),
        backend("10.1.0.6:80/TCP", state=BackendState.TERMINATING),
    )
    assert probed(rows) == rows[1:]


def test_backends_that_make_a_node_a_target() -> None:
    cluster = Service(NAME, Source.K8S)
    local = Service(NAME, Source.K8S, ext_traffic_policy=TrafficPolicy.LOCAL)
    rows = (HERE, THERE, NOWHERE)
    assert local_backends_of_service(cluster, rows, NODE) == rows
    assert local_backends_of_service(local, rows, NODE) == (HERE, NOWHERE)
    delegating = Service(
        NAME,
        Source.K8S,
        ext_traffic_policy=TrafficPolicy.LOCAL,
        proxy_delegation=ProxyDelegation.DELEGATE_IF_LOCAL,
    )
    node = LocalNode("here", addresses=frozenset([IP.parse("10.1.0.3")]))
    assert local_backends_of_service(delegating, rows, node) == (NOWHERE,)
