# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import ipaddress
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bpf.maps.lb_numbers import Algorithm
from cilia.k8s.objects import InvalidObject
from cilia.loadbalancer import annotations as ann
from cilia.loadbalancer.options import LoadBalancerOptions
from cilia.loadbalancer.services.conversion import ConvertedService, convert_service
from cilia.loadbalancer.this_node import LocalNode
from tables.loadbalancer.services import (
    ForwardingMode,
    ProxyDelegation,
    SourceRangesPolicy,
    TrafficDistribution,
)
from tests.cilia.k8s.forms import as_service, service_form, with_metadata

NODE = LocalNode("node1", {"zone": "a", "service.cilium.io/node": "edge"})
CONFIG = LoadBalancerOptions()


def convert(
    config: LoadBalancerOptions = CONFIG,
    *,
    notes: dict[str, str] | None = None,
    labels: dict[str, str] | None = None,
    status: dict[str, Any] | None = None,
    **spec: Any,
) -> ConvertedService:
    form = with_metadata(service_form(**spec), annotations=notes, labels=labels)
    return convert_service(as_service({**form, "status": status}), config, NODE)


def shown(converted: ConvertedService) -> list[str]:
    return [f"{fe.address} {fe.type}" for fe in converted.frontends]


def ports(*numbers: int, **fields: Any) -> list[dict[str, Any]]:
    return [{"name": f"p{n}", "port": n, **fields} for n in numbers]


def ingress(*items: dict[str, str]) -> dict[str, Any]:
    return {"loadBalancer": {"ingress": list(items)}}


def annotated(**notes: str) -> dict[str, str]:
    return {f"service.cilium.io/{name.replace('_', '-')}": value for name, value in notes.items()}


def test_a_cluster_ip_has_one_frontend_a_port_and_family() -> None:
    converted = convert(
        clusterIPs=["10.96.0.1", "fd00::1"],
        ports=[{"name": "dns", "port": 53, "protocol": "UDP"}, {"name": "http", "port": 80}],
    )
    assert shown(converted) == [
        "10.96.0.1:53/UDP ClusterIP",
        "10.96.0.1:80/TCP ClusterIP",
        "[fd00::1]:53/UDP ClusterIP",
        "[fd00::1]:80/TCP ClusterIP",
    ]
    assert [(fe.port_name, fe.service_port) for fe in converted.frontends][:2] == [
        ("dns", 53),
        ("http", 80),
    ]
    assert converted.service is not None
    assert converted.service.port_names == {"dns": 53, "http": 80}
    assert converted.name == "test/echo"


@pytest.mark.parametrize(
    ("spec", "labels"),
    [
        ({"ip": "None"}, None),
        ({"ip": None, "clusterIPs": ["None"]}, None),
        ({"ip": None}, None),
        ({"ip": None, "type": "ExternalName", "externalName": "example.com"}, None),
        ({}, {"service.kubernetes.io/headless": ""}),
        ({"ports": None}, None),
    ],
)
def test_a_service_without_frontends_has_its_row(
    spec: dict[str, Any], labels: dict[str, str] | None
) -> None:
    converted = convert(labels=labels, **spec)
    assert converted.service is not None
    assert converted.frontends == ()


def test_node_ports_come_before_other_addresses() -> None:
    converted = convert(
        type="LoadBalancer",
        ports=ports(80, nodePort=30080),
        externalIPs=["9.9.9.9"],
        status=ingress({"ip": "172.16.0.1"}),
    )
    assert shown(converted) == [
        "0.0.0.0:30080/TCP NodePort",
        "9.9.9.9:80/TCP ExternalIPs",
        "10.96.0.1:80/TCP ClusterIP",
        "172.16.0.1:80/TCP LoadBalancer",
    ]
    assert converted.frontends[0].service_port == 80


@pytest.mark.parametrize(
    ("ip", "said"),
    [
        ("127.0.0.1", "a loopback address"),
        ("::1", "a loopback address"),
        ("0.0.0.0", "the unspecified address"),
        ("::", "the unspecified address"),
        ("224.0.0.1", "a multicast address"),
        ("ff02::1", "a multicast address"),
        ("255.255.255.255", "the broadcast address"),
        ("169.254.169.254", "a link-local address"),
        ("fe80::1", "a link-local address"),
        ("::ffff:127.0.0.1", "a loopback address"),
    ],
)
@pytest.mark.parametrize(
    "field", ["spec.clusterIPs", "spec.externalIPs", "status.loadBalancer.ingress"]
)
def test_nothing_is_served_at_an_address_of_special_use(field: str, ip: str, said: str) -> None:
    """At 0.0.0.0 it would have the port at all of the node's addresses, at 127.0.0.1 each pod's."""
    given: dict[str, dict[str, Any]] = {
        "spec.clusterIPs": {"ip": ip, "clusterIPs": [ip], "externalIPs": ["9.9.9.9"]},
        "spec.externalIPs": {"ip": None, "externalIPs": ["9.9.9.9", ip]},
        "status.loadBalancer.ingress": {
            "ip": None,
            "externalIPs": ["9.9.9.9"],
            "status": ingress({"ip": ip}),
        },
    }
    converted = convert(type="LoadBalancer", ports=ports(80), **given[field])
    assert shown(converted) == ["9.9.9.9:80/TCP ExternalIPs"]
    assert converted.warnings == [(field, f"{ip!r} is {said}: nothing is served there")]


@pytest.mark.parametrize(
    ("spec", "families"),
    [
        ({"ipFamilies": ["IPv6", "IPv4"]}, ["[::]", "0.0.0.0"]),
        ({"clusterIPs": ["fd00::1"], "ip": "fd00::1"}, ["[::]"]),
        ({"ip": "fd00::1"}, ["[::]"]),
        ({"ip": "10.96.0.1"}, ["0.0.0.0"]),
        ({"ip": None}, []),
    ],
)
def test_node_ports_are_of_the_families_of_the_service(
    spec: dict[str, Any], families: list[str]
) -> None:
    converted = convert(type="NodePort", ports=ports(80, nodePort=30080), **spec)
    node_ports = [text for text in shown(converted) if text.endswith("NodePort")]
    assert node_ports == [f"{family}:30080/TCP NodePort" for family in families]


@pytest.mark.parametrize(
    ("one", "many", "served"),
    [
        ("10.96.0.1", ["10.96.0.2"], []),
        ("10.96.0.1", ["10.96.0.2", "fd00::2"], ["fd00::2"]),
        ("fd00::2", ["10.96.0.2", "fd00::2"], []),
        ("10.96.0.1", ["None"], []),
        ("None", ["10.96.0.2"], []),
        ("10.96.0.1", ["", "fd00::2"], ["fd00::2"]),
    ],
)
def test_cluster_addresses_that_contradict_each_other_are_not_served(
    one: str, many: list[str], served: list[str]
) -> None:
    converted = convert(clusterIP=one, clusterIPs=many, ports=ports(80))
    assert [str(params.address.ip) for params in converted.frontends] == served
    assert converted.warnings == [
        ("spec.clusterIP", f"{one!r} is not clusterIPs[0], {many[0]!r}: neither is served")
    ]


@pytest.mark.parametrize(
    ("one", "many"),
    [("10.96.0.1", ["10.96.0.1", "fd00::2"]), ("", ["10.96.0.1"]), ("FD00:0::2", ["fd00::2"])],
)
def test_cluster_addresses_that_agree_are_all_served(one: str, many: list[str]) -> None:
    converted = convert(clusterIP=one, clusterIPs=many, ports=ports(80))
    assert [str(params.address.ip) for params in converted.frontends] == many
    assert converted.warnings == []


def test_a_health_check_at_a_node_port_of_the_service_itself_is_left_out() -> None:
    asked: Any = {
        "type": "LoadBalancer",
        "externalTrafficPolicy": "Local",
        "healthCheckNodePort": 30080,
    }
    web = {"name": "web", "port": 80, "nodePort": 30080}
    converted = convert(ports=[{"name": "dns", "port": 53, "nodePort": 30053}, web], **asked)
    assert converted.service is not None
    assert converted.service.health_check_node_port == 0
    assert "0.0.0.0:30080/TCP" in " ".join(shown(converted))
    assert converted.warnings == [
        (
            "spec.healthCheckNodePort",
            "30080 is the node port of ports[1]: no health check is answered",
        )
    ]
    for other in ({**web, "protocol": "UDP"}, {**web, "nodePort": 30081}):
        converted = convert(ports=[other], **asked)
        assert converted.service is not None
        assert converted.service.health_check_node_port == 30080
        assert converted.warnings == []


@pytest.mark.parametrize("timeout_s", [0, 1])
def test_an_affinity_of_no_time_is_that_of_the_default(timeout_s: int) -> None:
    config = {"clientIP": {"timeoutSeconds": timeout_s}}
    converted = convert(sessionAffinity="ClientIP", sessionAffinityConfig=config)
    assert converted.service is not None
    assert converted.service.affinity_timeout_s == (timeout_s or 10800)
    assert len(converted.warnings) == (0 if timeout_s else 1)
    converted = convert(sessionAffinity="None", sessionAffinityConfig=config)
    assert converted.warnings == []


def test_the_first_port_has_a_node_port_that_is_used_twice() -> None:
    twice = [
        {"name": name, "port": port, "nodePort": 30080} for name, port in (("a", 80), ("b", 81))
    ]
    converted = convert(type="NodePort", ports=twice)
    assert [text for text in shown(converted) if "30080" in text] == ["0.0.0.0:30080/TCP NodePort"]
    assert len(converted.frontends) == 3
    assert converted.warnings == [
        ("spec.ports[1].nodePort", "30080/TCP is that of another port of this Service")
    ]
    both = [{**port, "protocol": proto} for port, proto in zip(twice, ("TCP", "UDP"), strict=True)]
    assert convert(type="NodePort", ports=both).warnings == []


def test_a_port_without_a_node_port_has_none() -> None:
    converted = convert(type="NodePort", ports=[*ports(80, nodePort=30080), *ports(81)])
    assert "0.0.0.0:30080/TCP NodePort" in shown(converted)
    assert len(converted.frontends) == 3


def test_only_virtual_addresses_of_the_load_balancer_count() -> None:
    status = ingress(
        {"ip": "172.16.0.1", "ipMode": "VIP"},
        {"ip": "172.16.0.2", "ipMode": "Proxy"},
        {"hostname": "example.com"},
        {"ip": "172.16.0.3"},
    )
    converted = convert(type="LoadBalancer", status=status)
    assert [text for text in shown(converted) if "172" in text] == [
        "172.16.0.1:80/TCP LoadBalancer",
        "172.16.0.3:80/TCP LoadBalancer",
    ]
    # The status of a service that is no LoadBalancer (any more) says nothing.
    assert len(convert(type="ClusterIP", status=status).frontends) == 1


def test_options_leave_frontends_out() -> None:
    spec: dict[str, Any] = {
        "type": "LoadBalancer",
        "clusterIPs": ["10.96.0.1", "fd00::1"],
        "ipFamilies": ["IPv4", "IPv6"],
        "ports": ports(80, nodePort=30080),
        "externalIPs": ["9.9.9.9", "fd00::9"],
        "status": ingress({"ip": "172.16.0.1"}, {"ip": "fd00::f"}),
    }

    def count(**options: bool) -> int:
        return len(convert(LoadBalancerOptions.model_validate(options), **spec).frontends)

    assert count() == 8
    assert count(enable_ipv4=False) == 4
    assert count(enable_ipv6=False) == 4
    assert count(enable_external_ips=False) == 6
    assert count(kube_proxy_replacement=False) == 6


ALL_TYPES = LoadBalancerOptions(bpf_lb_internal_policy_all_types=True)


def test_two_scopes_when_the_policies_differ_at_external_addresses() -> None:
    spec: dict[str, Any] = {
        "type": "LoadBalancer",
        "ports": ports(80, nodePort=30080),
        "externalIPs": ["9.9.9.9"],
        "status": ingress({"ip": "172.16.0.1"}),
    }
    local = convert(externalTrafficPolicy="Local", **spec)
    assert shown(local) == [
        "0.0.0.0:30080/TCP NodePort",
        "0.0.0.0:30080/TCP/i NodePort",
        "9.9.9.9:80/TCP ExternalIPs",
        "9.9.9.9:80/TCP/i ExternalIPs",
        "10.96.0.1:80/TCP ClusterIP",
        "172.16.0.1:80/TCP LoadBalancer",
        "172.16.0.1:80/TCP/i LoadBalancer",
    ]
    both: dict[str, Any] = {**spec, "internalTrafficPolicy": "Local"}
    # Inside the cluster an external address leads to all backends, whatever the internal policy.
    assert shown(convert(externalTrafficPolicy="Local", **both)) == shown(local)
    assert len(convert(**both).frontends) == 4
    assert len(convert(ALL_TYPES, externalTrafficPolicy="Local", **both).frontends) == 4
    assert shown(convert(ALL_TYPES, **both)) == shown(local)


def test_an_address_asked_for_twice_is_one_frontend_of_the_first_kind() -> None:
    converted = convert(externalIPs=["10.96.0.1", "10.96.0.1"])
    assert shown(converted) == ["10.96.0.1:80/TCP ClusterIP"]


@pytest.mark.parametrize(
    ("types", "kinds"),
    [
        ("ClusterIP", {"ClusterIP"}),
        ("LoadBalancer", {"LoadBalancer"}),
        ("NodePort, LoadBalancer", {"NodePort", "LoadBalancer"}),
    ],
)
def test_type_annotation_restricts_frontends(types: str, kinds: set[str]) -> None:
    converted = convert(
        type="LoadBalancer",
        ports=ports(80, nodePort=30080),
        status=ingress({"ip": "172.16.0.1"}),
        notes=annotated(type=types),
    )
    assert {fe.type.value for fe in converted.frontends} == kinds


@pytest.mark.parametrize(
    ("notes", "here"),
    [
        (annotated(node="edge"), True),
        (annotated(node="core"), False),
        (annotated(node_selector="zone in (a,b)"), True),
        (annotated(node_selector="zone=b"), False),
        # The selector counts more.
        (annotated(node_selector="zone=a", node="core"), True),
        ({}, True),
    ],
)
def test_a_service_for_other_nodes_is_none(notes: dict[str, str], here: bool) -> None:
    assert (convert(notes=notes).service is not None) is here


def test_session_affinity() -> None:
    def timeout(**spec: Any) -> int:
        service = convert(**spec).service
        assert service is not None
        return service.affinity_timeout_s

    config = {"clientIP": {"timeoutSeconds": 42}}
    assert timeout() == 0
    assert timeout(sessionAffinity="ClientIP") == 10800
    assert timeout(sessionAffinity="ClientIP", sessionAffinityConfig=config) == 42
    assert timeout(sessionAffinity="None", sessionAffinityConfig=config) == 0


@pytest.mark.parametrize(
    ("spec", "notes", "distribution"),
    [
        ({"trafficDistribution": "PreferClose"}, {}, TrafficDistribution.PREFER_CLOSE),
        ({"trafficDistribution": "PreferSameNode"}, {}, TrafficDistribution.PREFER_SAME_NODE),
        ({"trafficDistribution": "PreferSameMoon"}, {}, TrafficDistribution.DEFAULT),
        ({}, {"topology-mode": "auto"}, TrafficDistribution.PREFER_SAME_ZONE),
        ({}, {"topology-mode": "Disabled"}, TrafficDistribution.DEFAULT),
        (
            {},
            {"topology-aware-hints": "disabled", "topology-mode": "auto"},
            TrafficDistribution.DEFAULT,
        ),
        (
            {"trafficDistribution": "PreferClose", "internalTrafficPolicy": "Local"},
            {},
            TrafficDistribution.PREFER_CLOSE,
        ),
    ],
)
def test_traffic_distribution(
    spec: dict[str, Any], notes: dict[str, str], distribution: TrafficDistribution
) -> None:
    notes = {f"service.kubernetes.io/{name}": value for name, value in notes.items()}
    service = convert(notes=notes, **spec).service
    assert service is not None
    assert service.traffic_distribution is distribution


def test_annotations_become_fields() -> None:
    notes = annotated(
        forwarding_mode="DSR",
        lb_algorithm="maglev",
        src_ranges_policy="deny",
        proxy_delegation="delegate-if-local",
        scale_to_zero="true",
    )
    service = convert(LoadBalancerOptions(bpf_lb_mode_annotation=True), notes=notes).service
    assert service is not None
    assert service.forwarding_mode is ForwardingMode.DSR
    assert service.algorithm is Algorithm.MAGLEV
    assert service.source_ranges_policy is SourceRangesPolicy.DENY
    assert service.proxy_delegation is ProxyDelegation.DELEGATE_IF_LOCAL
    assert service.scale_to_zero
    # The forwarding mode is the node's affair unless services may choose.
    service = convert(notes=notes).service
    assert service is not None
    assert service.forwarding_mode is ForwardingMode.UNDEF


def test_an_annotation_without_meaning_is_left_out_and_reported() -> None:
    notes = annotated(type="Fancy", lb_algorithm="best", src_ranges_policy="x", node_selector="(")
    converted = convert(notes=notes)
    assert converted.service is not None
    assert converted.service.algorithm is Algorithm.UNDEF
    assert len(converted.frontends) == 1
    assert sorted(field for field, _ in converted.warnings) == [
        f"metadata.annotations[service.cilium.io/{name}]"
        for name in ("lb-algorithm", "node-selector", "src-ranges-policy", "type")
    ]
    assert "'best' is not one of random, maglev" in dict(converted.warnings).get(
        "metadata.annotations[service.cilium.io/lb-algorithm]", ""
    )


def test_the_rest_of_the_spec_is_kept() -> None:
    service = convert(
        labels={"a": "b"},
        selector={"app": "echo"},
        loadBalancerSourceRanges=["10.0.0.0/8", " fd00::/8 ", "::ffff:203.0.113.0/120"],
        healthCheckNodePort=31000,
        loadBalancerClass="example.com/lb",
    ).service
    assert service is not None
    assert service.source_ranges == (
        ipaddress.ip_network("10.0.0.0/8"),
        ipaddress.ip_network("fd00::/8"),
        ipaddress.ip_network("203.0.113.0/24"),
    )
    assert service.health_check_node_port == 31000
    assert service.load_balancer_class == "example.com/lb"
    assert service.labels == {"a": "b"}
    assert service.selector == {"app": "echo"}
    assert msgspec.structs.replace(service) == service


ips = st.sampled_from(["10.96.0.1", "fd00::1", "", "None", "none", "0.0.0.0", "::", "127.0.0.1"])
policies = st.sampled_from(["Cluster", "Local"])
specs = st.fixed_dictionaries(
    {},
    optional={
        "type": st.sampled_from(["ClusterIP", "NodePort", "LoadBalancer", "ExternalName"]),
        "clusterIP": ips,
        "clusterIPs": st.none() | st.lists(ips, max_size=2),
        "externalIPs": st.none() | st.lists(st.sampled_from(["10.96.0.1", "fd00::1"]), max_size=2),
        "ipFamilies": st.none() | st.lists(st.sampled_from(["IPv4", "IPv6"]), max_size=3),
        "ports": st.none()
        | st.lists(
            st.fixed_dictionaries(
                {"port": st.sampled_from([80, 65535])},
                optional={
                    "name": st.sampled_from(["", "http", "dns"]),
                    "protocol": st.sampled_from(["TCP", "UDP", "SCTP"]),
                    "nodePort": st.sampled_from([0, 30080]),
                },
            ),
            max_size=3,
        ),
        "externalTrafficPolicy": policies | st.just(""),
        "internalTrafficPolicy": policies | st.none(),
        "trafficDistribution": st.none() | st.sampled_from(["PreferClose", "x", ""]),
        "sessionAffinity": st.sampled_from(["None", "ClientIP"]),
        "sessionAffinityConfig": st.none() | st.just({"clientIP": None}),
        "loadBalancerSourceRanges": st.none() | st.just(["10.0.0.0/8", "10.1.2.3/8"]),
    },
)
statuses = st.sampled_from(
    [None, {}, {"loadBalancer": None}, {"loadBalancer": {"ingress": None}}, ingress({"ip": ""})]
)
notes = st.none() | st.dictionaries(
    st.sampled_from(sorted(v for v in vars(ann).values() if str(v).count("/") == 1)),
    st.sampled_from(["", "x", "true", "LoadBalancer", "random", "zone in (a", "a=b,"]),
    max_size=3,
)


@given(specs, statuses, notes, st.booleans())
def test_whatever_was_decoded_is_converted(
    spec: dict[str, Any], status: Any, notes: dict[str, str] | None, v6: bool
) -> None:
    form = {**with_metadata(service_form(), annotations=notes), "spec": spec, "status": status}
    try:
        obj = as_service(form)
    except InvalidObject:
        return
    converted = convert_service(obj, LoadBalancerOptions(enable_ipv6=v6), NODE)
    addresses = [params.address for params in converted.frontends]
    assert addresses == sorted(set(addresses))
    assert v6 or not any(address.is_ipv6 for address in addresses)
