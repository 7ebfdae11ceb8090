# SPDX-License-Identifier: Apache-2.0
"""What rows look like: cells and JSON as people's scripts and dashboards expect them."""

from __future__ import annotations

import doctest
import ipaddress
from types import ModuleType
from typing import Any

import msgspec
import pytest

from bpf.maps.lb_numbers import Algorithm, FrontendType
from statedb import DB, RWTable
from statedb.status import Status, StatusKind, set_status
from tables import times
from tables.addressing import IP, L3n4Addr, ServiceName
from tables.health import Health, Level, new_health_table
from tables.loadbalancer import services
from tables.loadbalancer.backends import Backend, BackendState, new_backends_table
from tables.loadbalancer.frontend_claims import FrontendClaim, new_frontend_claims_table
from tables.loadbalancer.frontends import (
    Frontend,
    FrontendParams,
    new_frontends_table,
    with_outcome,
)
from tables.loadbalancer.services import (
    ForwardingMode,
    ProxyRedirect,
    Service,
    SourceRangesPolicy,
    TrafficDistribution,
    TrafficPolicy,
    new_services_table,
)
from tables.node.node_addresses import NodeAddress, new_node_addresses_table
from tables.problems import ORIGIN, Problem, new_problems_table, replace_problems
from tables.sources import PRIORITY, Source

NAME = ServiceName("test/echo")
DONE = Status(StatusKind.DONE, 0.0, "", 3)


def cells(table: RWTable[Any], obj: object) -> dict[str, str]:
    return {column.name: column.cell(obj) for column in table.columns}


def backend(number: int, **fields: Any) -> Backend:
    return Backend(NAME, L3n4Addr.of(f"10.0.1.{number}", 80, "TCP"), **fields)


def frontend(*backends: Backend, svc: Service | None = None, **fields: Any) -> Frontend:
    values: dict[str, Any] = {
        "address": L3n4Addr.parse("10.96.0.1:80/TCP"),
        "type": FrontendType.CLUSTER_IP,
        "service_name": NAME,
        "port_name": "http",
        "service_port": 80,
        "service": svc or Service(NAME, Source.K8S),
        "backends": backends,
        "health_check_backends": backends,
        "redirect_to": None,
        "status": DONE,
    }
    return Frontend(**{**values, **fields})


@pytest.mark.parametrize("module", [times])
def test_doctests(module: ModuleType) -> None:
    result = doctest.testmod(module)
    assert (result.failed, result.attempted > 0) == (0, True)


def test_priority_of_sources_is_that_of_the_field() -> None:
    assert PRIORITY[Source.KUBE_APISERVER] == 0
    assert PRIORITY[Source.K8S] == 4
    assert PRIORITY[Source.CLUSTERMESH] < PRIORITY[Source.API]


def test_services_shows_ports_sorted_and_unnamed_with_equals_sign() -> None:
    table = new_services_table(DB())
    assert cells(table, Service(NAME, Source.K8S, port_names={"http": 80, "dns": 53})) == {
        "Name": "test/echo",
        "Source": "k8s",
        "PortNames": "dns=53, http=80",
        "TrafficPolicy": "Cluster",
        "Flags": "",
    }
    assert cells(table, Service(NAME, Source.K8S, port_names={"": 8081}))["PortNames"] == "=8081"


def test_services_shows_policies_that_differ() -> None:
    table = new_services_table(DB())
    svc = Service(NAME, Source.K8S, ext_traffic_policy=TrafficPolicy.LOCAL)
    assert cells(table, svc)["TrafficPolicy"] == "Ext=Local, Int=Cluster"
    both = msgspec.structs.replace(svc, int_traffic_policy=TrafficPolicy.LOCAL)
    assert cells(table, both)["TrafficPolicy"] == "Local"


def test_services_shows_all_flags_in_alphabetical_order() -> None:
    svc = Service(
        NAME,
        Source.K8S,
        algorithm=Algorithm.MAGLEV,
        forwarding_mode=ForwardingMode.DSR,
        health_check_node_port=31000,
        load_balancer_class="example.com/lb",
        loopback_host_port=True,
        proxy_redirect=ProxyRedirect(1000, (80,)),
        affinity_timeout_s=10800,
        source_ranges=(ipaddress.ip_network("10.0.0.0/8"), ipaddress.ip_network("fd00::/8")),
        source_ranges_policy=SourceRangesPolicy.DENY,
        traffic_distribution=TrafficDistribution.PREFER_SAME_ZONE,
    )
    shown = services.flags_cell(svc)
    assert shown == (
        "ExplicitLBAlgorithm=maglev, ForwardingMode=dsr, HealthCheckNodePort=31000, "
        "LoadBalancerClass=example.com/lb, LoopbackHostPort=true, "
        "ProxyRedirects=1000 (ports: [80]), SessionAffinity=3h0m0s, "
        "SourceRanges=10.0.0.0/8, fd00::/8, SourceRangesPolicy=deny, "
        "TrafficDistribution=PreferSameZone"
    )
    assert str(ProxyRedirect(1000, (80, 443))) == "1000 (ports: [80 443])"
    assert str(ProxyRedirect(1000)) == "1000"
    assert services.to_json(svc)["SessionAffinityTimeout"] == 10800 * 10**9


def test_backends_row_as_printed() -> None:
    table = new_backends_table(DB())
    be = backend(
        1,
        state=BackendState.TERMINATING_NOT_SERVING,
        port_names=("http", "web"),
        node_name="nodeport-addrs",
    )
    assert cells(table, be) == {
        "Service": "test/echo",
        "Address": "10.0.1.1:80/TCP",
        "Source": "k8s",
        "Priority": "4",
        "State": "terminating-not-serving",
        "PortNames": "http,web",
        "NodeName": "nodeport-addrs",
    }
    assert table.to_json is not None
    assert table.to_json(be) == {
        "ServiceName": "test/echo",
        "Address": "10.0.1.1:80/TCP",
        "PortNames": ["http", "web"],
        "Weight": 100,
        "NodeName": "nodeport-addrs",
        "Zone": None,
        "ClusterID": 0,
        "Source": "k8s",
        "State": 2,
        "Unhealthy": False,
        "UnhealthyUpdatedAt": None,
    }


def test_backends_json_has_zone_and_time_of_the_probe() -> None:
    table = new_backends_table(DB())
    assert table.to_json is not None
    form = table.to_json(backend(1, zone="a", for_zones=("a", "b"), unhealthy_updated_at=0.0))
    assert form["Zone"] == {"Zone": "a", "ForZones": ["a", "b"]}
    assert form["UnhealthyUpdatedAt"] == "1970-01-01T00:00:00Z"


def test_frontends_row_as_printed() -> None:
    table = new_frontends_table(DB())
    ranged = Service(
        NAME,
        Source.K8S,
        source_ranges=(ipaddress.ip_network("10.0.0.0/8"),),
        source_ranges_policy=SourceRangesPolicy.DENY,
    )
    shown = cells(table, frontend(backend(1), backend(2), svc=ranged, redirect_to="test/lrp"))
    assert list(shown) == [
        "Address",
        "Type",
        "ServiceName",
        "PortName",
        "Backends",
        "RedirectTo",
        "Flags",
        "Status",
        "Since",
        "Error",
    ]
    assert shown["Backends"] == "10.0.1.1:80/TCP, 10.0.1.2:80/TCP"
    assert shown["RedirectTo"] == "test/lrp"
    assert shown["Flags"] == "SourceRanges=10.0.0.0/8, SourceRangesPolicy=deny"
    assert shown["Status"] == "Done"


def test_frontends_shows_at_most_five_backends() -> None:
    table = new_frontends_table(DB())
    five = ", ".join(f"10.0.1.{n}:80/TCP" for n in range(1, 6))
    assert cells(table, frontend(*map(backend, range(1, 6))))["Backends"] == five
    assert cells(table, frontend(*map(backend, range(1, 10))))["Backends"] == (
        five + " + 4 more ..."
    )


def test_frontends_json_begins_with_the_keys_of_the_field() -> None:
    table = new_frontends_table(DB())
    assert table.to_json is not None
    form = table.to_json(frontend(backend(1), status=Status(StatusKind.ERROR, 0.0, "full", 0)))
    assert list(form)[:10] == [
        "Address",
        "Type",
        "ServiceName",
        "PortName",
        "ServicePort",
        "Status",
        "Backends",
        "HealthCheckBackends",
        "ID",
        "RedirectTo",
    ]
    assert form["Status"] == {
        "updated-at": "1970-01-01T00:00:00Z",
        "error": "full",
        "kind": str(StatusKind.ERROR),
    }
    assert msgspec.json.encode(form)


def test_outcome_changes_status_and_id_alone() -> None:
    before = frontend(backend(1), redirect_to=ServiceName("test/other"))
    failed = Status(StatusKind.ERROR, 1.0, "full", 4)
    assert with_outcome(before, failed, 7) == msgspec.structs.replace(before, status=failed, id=7)
    assert set_status(before, failed) == msgspec.structs.replace(before, status=failed)


def test_addresses_are_found_by_partial_text() -> None:
    db = DB()
    table = new_frontends_table(db)
    with db.write_txn(table) as wtxn:
        for address in ("10.96.0.1:80/TCP", "10.96.0.1:443/TCP", "10.96.0.2:80/TCP"):
            table.insert(wtxn, frontend(address=L3n4Addr.parse(address)))
    index = table.index("address")
    found = table.prefix(db.read_txn(), index.parse_key("10.96.0.1"), index)
    assert [str(fe.address) for fe in found] == ["10.96.0.1:80/TCP", "10.96.0.1:443/TCP"]
    one = table.get(db.read_txn(), index.parse_key("10.96.0.2:80/TCP"), index)
    assert one is not None


def test_node_address_is_read_from_the_yaml_of_the_field() -> None:
    new_node_addresses_table(DB())
    form = {"addr": "10.0.0.3", "nodeport": True, "primary": True, "devicename": "test0"}
    row = msgspec.convert(form, NodeAddress, dec_hook=lambda type_, text: type_.parse(text))
    assert row == NodeAddress(IP.parse("10.0.0.3"), True, True, "test0")


def test_health_row_as_printed() -> None:
    table = new_health_table(DB())
    shown = cells(table, Health("a.b", "job-x", Level.DEGRADED, "slow", "full", updated_at=1.0))
    assert shown == {
        "Module": "a.b",
        "Component": "job-x",
        "Level": "Degraded",
        "Message": "slow",
        "Error": "full",
        "LastOK": "",
        "UpdatedAt": "1970-01-01T00:00:01Z",
        "Count": "1",
    }


def test_claim_row_names_the_owner() -> None:
    table = new_frontend_claims_table(DB())
    address = L3n4Addr.parse("10.96.0.1:80/TCP")
    claim = FrontendClaim(
        Service(NAME, Source.K8S),
        FrontendParams(address, FrontendType.CLUSTER_IP),
        ServiceName("test/first"),
        "which keeps it",
        0.0,
    )
    assert str(claim) == "10.96.0.1:80/TCP is owned by test/first, which keeps it"
    shown = cells(table, claim)
    assert [shown[name] for name in ("Address", "Type", "Owner", "Reason")] == [
        "10.96.0.1:80/TCP",
        "ClusterIP",
        "test/first",
        "which keeps it",
    ]


@pytest.fixture
def problems() -> tuple[DB, RWTable[Problem]]:
    db = DB()
    return db, new_problems_table(db)


def test_problems_of_an_origin_are_replaced_and_keep_their_time(
    problems: tuple[DB, RWTable[Problem]],
) -> None:
    db, table = problems
    first, second = Problem("o", "first"), Problem("o", "second")
    with db.write_txn(table) as wtxn:
        replace_problems(table, wtxn, "other", [Problem("other", "stays")], 0.5)
        replace_problems(table, wtxn, "o", [first, second], 1.0)
        assert len(list(table.list(wtxn, "o", ORIGIN))) == 2
    with db.write_txn(table) as wtxn:
        replace_problems(table, wtxn, "o", [first, Problem("o", "third")], 2.0)
    rows = {p.message: p.since for p in table.list(db.read_txn(), "o", ORIGIN)}
    assert rows == {"first": 1.0, "third": 2.0}
    with db.write_txn(table) as wtxn:
        replace_problems(table, wtxn, "o", [], 3.0)
    assert [p.message for p in table.all(db.read_txn())] == ["stays"]


def test_problem_as_one_line_says_where_it_stands() -> None:
    problem = Problem("o", "is missing", "web.yaml", 2, "Service", "test", "echo", "spec.ports")
    assert str(problem) == "web.yaml document 2: Service test/echo: spec.ports: is missing"
    assert str(Problem("o", "is missing", "web.yaml")) == "web.yaml: is missing"
