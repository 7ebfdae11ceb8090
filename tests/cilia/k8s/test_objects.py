# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from typing import Any

import pytest

from cilia.k8s.objects import EndpointSlice, InvalidObject, Node, Pod, Service, decode
from tests.cilia.k8s.forms import Form, service_form, slice_form, with_metadata


def errors_of(form: object) -> list[tuple[str, str]]:
    with pytest.raises(InvalidObject) as caught:
        decode(form)
    return caught.value.errors


def test_service_is_decoded_with_defaults() -> None:
    obj = decode(service_form(type="NodePort"))
    assert isinstance(obj, Service)
    assert obj.key == ("Service", "test", "echo")
    assert obj.spec.cluster_ip == "10.96.0.1"
    assert obj.spec.type == "NodePort"
    assert obj.spec.session_affinity == "None"


def test_names_with_capitals_in_kubernetes_spelling_are_read() -> None:
    obj = decode(
        service_form(
            clusterIPs=["10.96.0.1", "fd00::1"],
            externalIPs=["1.2.3.4"],
            sessionAffinity="ClientIP",
            sessionAffinityConfig={"clientIP": {"timeoutSeconds": 42}},
        )
    )
    assert isinstance(obj, Service)
    assert obj.spec.cluster_ips == ["10.96.0.1", "fd00::1"]
    assert obj.spec.external_ips == ["1.2.3.4"]
    config = obj.spec.session_affinity_config
    assert config is not None
    assert config.client_ip is not None
    assert config.client_ip.timeout_seconds == 42


def test_unknown_fields_and_nulls_are_no_errors() -> None:
    form = slice_form(endpoints=None, ports=None, newField={"a": 1})
    obj = decode(with_metadata(form, managedFields=[{}], creationTimestamp=None))
    assert isinstance(obj, EndpointSlice)
    assert obj.endpoints is None


def test_namespace_is_default_when_absent_and_empty_for_a_node() -> None:
    form = service_form()
    del form["metadata"]["namespace"]
    assert decode(form).key == ("Service", "default", "echo")
    node = decode({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1"}})
    assert isinstance(node, Node)
    assert node.key == ("Node", "", "n1")


@pytest.mark.parametrize(
    ("form", "field", "message"),
    [
        (service_form(ports=[{"port": 70000}]), "spec.ports[0].port", "65535"),
        (service_form(ports=[{"port": 0}]), "spec.ports[0].port", "greater than or equal to 1"),
        (service_form(ports=[{"port": "80"}]), "spec.ports[0].port", "integer"),
        (service_form(ports=[{"port": 80, "protocol": "ICMP"}]), "spec.ports[0].protocol", "SCTP"),
        (service_form(ports=[{}]), "spec.ports[0].port", "is missing"),
        (service_form(ip="10.0.0.300"), "spec.clusterIP", "'10.0.0.300' is not an IP address"),
        (service_form(externalIPs=["x"]), "spec.externalIPs[0]", "'x' is not an IP address"),
        (service_form(type="Fancy"), "spec.type", "ClusterIP"),
        (
            service_form(loadBalancerSourceRanges=["10/33"]),
            "spec.loadBalancerSourceRanges[0]",
            "10",
        ),
        (service_form(name="Echo_1"), "metadata.name", "lower case"),
        (with_metadata(service_form(), labels={"a": True}), "metadata.labels.a", "string"),
        (slice_form(addressType="IPv5"), "addressType", "IPv4"),
        (slice_form(endpoints=[{}]), "endpoints[0].addresses", "is missing"),
        (
            slice_form(endpoints=[{"addresses": ["10.1.0.1", "fd00::1"]}]),
            "endpoints[0].addresses[1]",
            "'fd00::1' is not an IPv4 address",
        ),
    ],
)
def test_a_wrong_field_is_named(form: Form, field: str, message: str) -> None:
    [(where, what)] = errors_of(form)
    assert where == field
    assert message in what


def test_all_wrong_fields_are_named() -> None:
    fields = [where for where, _ in errors_of(service_form(ip="x", ports=[{"port": 0}, {}]))]
    assert fields == ["spec.clusterIP", "spec.ports[0].port", "spec.ports[1].port"]


def test_a_port_used_twice_is_an_error() -> None:
    ports = [{"name": "a", "port": 80}, {"name": "a", "port": 81}, {"name": "b", "port": 80}]
    assert [where for where, _ in errors_of(service_form(ports=ports))] == [
        "spec.ports[1].name",
        "spec.ports[2]",
    ]
    both = [{"name": "a", "port": 53}, {"name": "b", "port": 53, "protocol": "UDP"}]
    decode(service_form(ports=both))


@pytest.mark.parametrize(
    ("form", "field"),
    [
        ([], ""),
        ("text", ""),
        ({"apiVersion": "v1"}, "kind"),
        ({"kind": "Service"}, "apiVersion"),
        ({"apiVersion": "v1", "kind": ["Service"]}, "kind"),
        ({"apiVersion": ["v1"], "kind": "Service"}, "apiVersion"),
        ({"apiVersion": "v2", "kind": "Service"}, "kind"),
    ],
)
def test_what_is_no_known_kind_is_refused(form: Any, field: str) -> None:
    assert errors_of(form)[0][0] == field


def test_a_refused_object_is_named() -> None:
    with pytest.raises(InvalidObject) as caught:
        decode(service_form(ip="x"))
    error = caught.value
    assert (error.kind, error.namespace, error.name) == ("Service", "test", "echo")


def test_pod_is_decoded() -> None:
    obj = decode(
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": "p", "namespace": "test", "uid": "u1"},
            "spec": {
                "nodeName": "n1",
                "containers": [
                    {"name": "c", "ports": [{"containerPort": 80, "hostPort": 8080, "hostIP": ""}]}
                ],
            },
            "status": {"phase": "Running", "podIPs": [{"ip": "10.1.0.1"}]},
        }
    )
    assert isinstance(obj, Pod)
    assert obj.spec.containers is not None
    assert obj.spec.containers[0].ports is not None
    assert obj.spec.containers[0].ports[0].host_port == 8080


def test_an_object_that_stands_for_too_much_is_refused() -> None:
    ports = [{"name": f"p{i}", "port": i + 1} for i in range(1000)]
    many = [f"192.0.2.{i}" for i in range(20)]
    with pytest.raises(InvalidObject, match="makes 22000 frontends with all addresses"):
        decode(service_form(ports=ports, externalIPs=many))
    decode(service_form(ports=ports, externalIPs=many[:18]))
    addresses = tuple(f"10.1.{i // 250}.{i % 250}" for i in range(70))
    with pytest.raises(InvalidObject, match="makes 70000 backends with all ports"):
        decode(slice_form(addresses=addresses, ports=ports))
