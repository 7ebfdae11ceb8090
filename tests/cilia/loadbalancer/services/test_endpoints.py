# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from typing import Any

import pytest

from cilia.k8s.objects import EndpointSlice, decode
from cilia.loadbalancer.options import LoadBalancerOptions
from cilia.loadbalancer.services.endpoints import (
    ConvertedSlice,
    convert_slice,
    merge_slices,
    service_of,
)
from tables.addressing import ServiceName
from tables.loadbalancer.backends import Backend, BackendState
from tests.cilia.k8s.forms import slice_form, with_metadata

NAME = ServiceName("test/echo")
CONFIG = LoadBalancerOptions()


def convert(
    config: LoadBalancerOptions = CONFIG,
    notes: dict[str, str] | None = None,
    addresses: tuple[str, ...] = ("10.1.0.1",),
    **fields: Any,
) -> ConvertedSlice:
    obj = decode(with_metadata(slice_form(addresses=addresses, **fields), annotations=notes))
    assert isinstance(obj, EndpointSlice)
    return convert_slice(obj, NAME, config)


def one(converted: ConvertedSlice) -> Backend:
    [backend] = converted.backends
    return backend


def endpoint(ip: str = "10.1.0.1", **fields: Any) -> dict[str, Any]:
    return {"addresses": [ip], **fields}


def test_each_address_and_port_is_a_backend() -> None:
    converted = convert(
        addresses=("10.1.0.1", "10.1.0.2"),
        ports=[{"name": "http", "port": 80}, {"name": "dns", "port": 53, "protocol": "UDP"}],
    )
    assert [(str(be.address), be.port_names) for be in converted.backends] == [
        ("10.1.0.1:80/TCP", ("http",)),
        ("10.1.0.1:53/UDP", ("dns",)),
        ("10.1.0.2:80/TCP", ("http",)),
        ("10.1.0.2:53/UDP", ("dns",)),
    ]


def test_an_endpoint_at_an_address_of_special_use_is_left_out() -> None:
    converted = convert(endpoints=[endpoint(), endpoint("127.0.0.1")])
    assert [str(backend.address.ip) for backend in converted.backends] == ["10.1.0.1"]
    assert converted.warnings == [("endpoints[1].addresses", "'127.0.0.1' is a loopback address")]


def test_names_of_one_port_add_up_and_an_unnamed_port_has_none() -> None:
    both = [{"name": "a", "port": 80}, {"name": "b", "port": 80}, {"name": "a", "port": 80}]
    assert one(convert(ports=both)).port_names == ("a", "b")
    assert one(convert(ports=[{"port": 80}])).port_names == ()
    assert one(convert(ports=[{"name": "", "port": 80}, both[0]])).port_names == ("a",)


def test_a_port_without_number_is_no_backend() -> None:
    assert convert(ports=[{"name": "any"}]).backends == ()
    assert convert(ports=None).backends == ()


@pytest.mark.parametrize(
    ("conditions", "state"),
    [
        (None, BackendState.ACTIVE),
        ({}, BackendState.ACTIVE),
        ({"ready": True}, BackendState.ACTIVE),
        ({"ready": True, "terminating": True, "serving": False}, BackendState.ACTIVE),
        ({"ready": False}, BackendState.MAINTENANCE),
        ({"ready": False, "serving": True}, BackendState.MAINTENANCE),
        ({"ready": False, "serving": True, "terminating": True}, BackendState.TERMINATING),
        (
            {"ready": False, "serving": False, "terminating": True},
            BackendState.TERMINATING_NOT_SERVING,
        ),
        ({"ready": False, "terminating": True}, BackendState.TERMINATING),
    ],
)
def test_state_follows_the_conditions(
    conditions: dict[str, bool] | None, state: BackendState
) -> None:
    assert one(convert(endpoints=[endpoint(conditions=conditions)])).state is state


@pytest.mark.parametrize(
    ("text", "weight", "state", "warnings"),
    [
        ("7", 7, BackendState.ACTIVE, 0),
        ("0", 0, BackendState.MAINTENANCE, 0),
        ("65536", 100, BackendState.ACTIVE, 1),
        ("much", 100, BackendState.ACTIVE, 1),
    ],
)
def test_weight_of_a_slice(text: str, weight: int, state: BackendState, warnings: int) -> None:
    converted = convert(notes={"service.cilium.io/weight": text})
    assert (one(converted).weight, one(converted).state) == (weight, state)
    assert len(converted.warnings) == warnings


def test_a_weight_of_many_digits_is_ignored_with_a_warning() -> None:
    converted = convert(notes={"service.cilium.io/weight": "9" * 5000})
    assert one(converted).weight == 100
    assert len(converted.warnings) == 1


def test_node_and_zones_are_kept() -> None:
    hints = {"forZones": [{"name": "a"}, {"name": "b"}], "forNodes": [{"name": "n2"}]}
    backend = one(convert(endpoints=[endpoint(nodeName="n1", zone="a", hints=hints)]))
    assert (backend.node_name, backend.zone, backend.for_zones) == ("n1", "a", ("a", "b"))
    assert backend.for_nodes == ("n2",)


def test_families_that_are_off_and_host_names_give_nothing() -> None:
    v6: dict[str, Any] = {"addresses": ("fd00::1",)}
    assert str(one(convert(**v6)).address) == "[fd00::1]:8080/TCP"
    assert convert(LoadBalancerOptions(enable_ipv6=False), **v6).backends == ()
    assert convert(LoadBalancerOptions(enable_ipv4=False)).backends == ()
    named: dict[str, Any] = {"addressType": "FQDN", "endpoints": [endpoint("example.com")]}
    assert convert(**named).backends == ()


def test_service_of_a_slice_is_that_of_its_label() -> None:
    labelled, bare = decode(slice_form(service="a")), decode(slice_form(service=None))
    assert isinstance(labelled, EndpointSlice)
    assert isinstance(bare, EndpointSlice)
    assert service_of(labelled) == "test/a"
    assert service_of(bare) is None


def test_slices_are_merged_by_address_with_the_better_state() -> None:
    going = convert(
        endpoints=[endpoint(conditions={"ready": False})], ports=[{"name": "a", "port": 80}]
    )
    ready = convert(addresses=("10.1.0.1", "10.1.0.2"), ports=[{"name": "b", "port": 80}])
    for order in ([going, ready], [ready, going]):
        merged = {str(be.address): be for be in merge_slices(c.backends for c in order)}
        assert merged["10.1.0.1:80/TCP"].state is BackendState.ACTIVE
        assert set(merged["10.1.0.1:80/TCP"].port_names) == {"a", "b"}
        assert merged["10.1.0.2:80/TCP"].port_names == ("b",)
    assert merge_slices([]) == ()
