# SPDX-License-Identifier: Apache-2.0
"""From a Kubernetes Service to its row and the frontends that it asks for; pure.

Frontends come in the order of their addresses, which is the order in which they are written and so,
later, the order in which ids are given out.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any, Final, TypeVar

import msgspec

from bpf.maps.lb_numbers import Algorithm, FrontendType
from cilia.k8s import objects as k8s
from cilia.k8s.change_time import seconds
from cilia.loadbalancer import annotations as ann
from cilia.loadbalancer.options import LoadBalancerOptions
from cilia.loadbalancer.this_node import LocalNode
from tables.addressing import (
    SCOPE_EXTERNAL,
    SCOPE_INTERNAL,
    L3n4Addr,
    ServiceName,
    pack_ip,
    special_use,
)
from tables.loadbalancer.frontends import FrontendParams
from tables.loadbalancer.services import (
    ForwardingMode,
    ProxyDelegation,
    Service,
    SourceRangesPolicy,
    TrafficDistribution,
    TrafficPolicy,
)
from tables.sources import Source

DEFAULT_AFFINITY_TIMEOUT_S: Final = 10800
_SURROGATES: Final = {"IPv4": "0.0.0.0", "IPv6": "::"}
_NONE: Final[dict[str, str]] = {}
_EXTERNAL: Final = (SCOPE_EXTERNAL,)
_BOTH: Final = (SCOPE_EXTERNAL, SCOPE_INTERNAL)
_FIELDS: Final = {
    FrontendType.CLUSTER_IP: "spec.clusterIPs",
    FrontendType.LOAD_BALANCER: "status.loadBalancer.ingress",
    FrontendType.EXTERNAL_IPS: "spec.externalIPs",
}
T = TypeVar("T")

# Pairs of annotation and what is wrong with it.
Warnings = list[tuple[str, str]]


class ConvertedService(msgspec.Struct, frozen=True):
    """``service`` is None when the Service is meant for other nodes."""

    name: ServiceName
    service: Service | None
    frontends: tuple[FrontendParams, ...] = ()
    warnings: Warnings = []


def convert_service(
    obj: k8s.Service,
    config: LoadBalancerOptions,
    node: LocalNode,
    source: Source = Source.K8S,
    name: ServiceName | None = None,
) -> ConvertedService:
    """Never fails: an annotation that means nothing is left out and reported in ``warnings``.

    `name`: the service's, if the caller has it in memory already: rows share it.
    """
    meta, spec = obj.metadata, obj.spec
    name = name or ServiceName(f"{meta.namespace}/{meta.name}")
    notes = meta.annotations
    warnings: Warnings = []
    if notes and not _is_for_node(notes, node, warnings):
        return ConvertedService(name, None, (), warnings)
    ext, int_ = _policies(spec)
    asked = _annotated(notes, config, warnings) if notes else _NOTHING_ASKED
    service = Service(  # by position: by name it takes five times as long
        name,
        source,
        meta.labels or _NONE,
        notes or _NONE,
        spec.selector or _NONE,
        _port_names(spec.ports or ()),
        ext,
        int_,
        asked.forwarding_mode,
        asked.algorithm,
        _affinity_timeout(spec, warnings),
        spec.load_balancer_class,
        None,  # proxy_redirect: no Service object asks for one
        asked.proxy_delegation,
        _health_check_port(spec, warnings),
        False,  # loopback_host_port: of host ports alone
        _source_ranges(spec),
        asked.source_ranges_policy,
        _distribution(spec, notes),
        asked.scale_to_zero,
        int(seconds(meta.creation_timestamp)) if meta.creation_timestamp else 0,
    )
    return ConvertedService(
        name, service, _frontends(obj, service, asked.exposed, config, warnings), warnings
    )


def _port_names(ports: Sequence[k8s.ServicePort]) -> Mapping[str, int]:
    if len(ports) == 1:
        return _only_port(ports[0].name, ports[0].port)
    return {port.name: port.port for port in ports}


@lru_cache(1024)
def _only_port(name: str, port: int) -> Mapping[str, int]:
    """Shared: most services have one port, and of these most have the same few."""
    return {name: port}


class _Asked(msgspec.Struct, frozen=True):
    exposed: frozenset[str] | None = None
    algorithm: Algorithm = Algorithm.UNDEF
    forwarding_mode: ForwardingMode = ForwardingMode.UNDEF
    source_ranges_policy: SourceRangesPolicy = SourceRangesPolicy.ALLOW
    proxy_delegation: ProxyDelegation = ProxyDelegation.NONE
    scale_to_zero: bool = False


_NOTHING_ASKED: Final = _Asked()


def _annotated(notes: Mapping[str, str], config: LoadBalancerOptions, warnings: Warnings) -> _Asked:
    """The algorithm is kept, and shown, whether or not the node lets a service choose."""
    warnings.extend(_ignored(error) for error in ann.of_clusters(notes))
    return _Asked(
        _read(lambda: ann.exposed_types(notes), None, warnings),
        _read(lambda: ann.algorithm(notes), Algorithm.UNDEF, warnings),
        _read(lambda: ann.forwarding_mode(notes), ForwardingMode.UNDEF, warnings)
        if config.bpf_lb_mode_annotation
        else ForwardingMode.UNDEF,
        _read(lambda: ann.source_ranges_policy(notes), SourceRangesPolicy.ALLOW, warnings),
        _read(lambda: ann.proxy_delegation(notes), ProxyDelegation.NONE, warnings),
        _read(lambda: ann.scale_to_zero(notes), False, warnings),
    )


def _is_for_node(notes: Mapping[str, str], node: LocalNode, warnings: Warnings) -> bool:
    return _read(lambda: ann.is_for_node(notes, node), True, warnings)


def _read(reader: Callable[[], T], default: T, warnings: Warnings) -> T:
    try:
        return reader()
    except ann.IgnoredAnnotation as error:
        warnings.append(_ignored(error))
        return default


def _ignored(error: ann.IgnoredAnnotation) -> tuple[str, str]:
    return f"metadata.annotations[{error.name}]", f"is ignored: {error.message}"


def _policies(spec: k8s.ServiceSpec) -> tuple[TrafficPolicy, TrafficPolicy]:
    return (
        TrafficPolicy.LOCAL if spec.external_traffic_policy == "Local" else TrafficPolicy.CLUSTER,
        TrafficPolicy.LOCAL if spec.internal_traffic_policy == "Local" else TrafficPolicy.CLUSTER,
    )


def _affinity_timeout(spec: k8s.ServiceSpec, warnings: Warnings) -> int:
    if spec.session_affinity != "ClientIP":
        return 0
    config = spec.session_affinity_config
    timeout_s = config.client_ip.timeout_seconds if config and config.client_ip else None
    if timeout_s == 0:
        said = f"0 is not from 1 to 86400: {DEFAULT_AFFINITY_TIMEOUT_S} is used"
        warnings.append(("spec.sessionAffinityConfig.clientIP.timeoutSeconds", said))
    return timeout_s or DEFAULT_AFFINITY_TIMEOUT_S


def _health_check_port(spec: k8s.ServiceSpec, warnings: Warnings) -> int:
    """Return the port, or 0 if it is one of the Service's own node ports, which are served."""
    number = spec.health_check_node_port
    if number and spec.type in ("NodePort", "LoadBalancer"):
        for at, port in enumerate(spec.ports or ()):
            if port.node_port == number and port.protocol == "TCP":
                said = f"{number} is the node port of ports[{at}]: no health check is answered"
                warnings.append(("spec.healthCheckNodePort", said))
                return 0
    return number


def _source_ranges(spec: k8s.ServiceSpec) -> tuple[Any, ...]:
    ranges = spec.load_balancer_source_ranges
    return tuple(ipaddress.ip_network(cidr, strict=False) for cidr in ranges) if ranges else ()


def _distribution(spec: k8s.ServiceSpec, notes: Mapping[str, str] | None) -> TrafficDistribution:
    """Return the spec's preference, else the older annotation's."""
    if spec.traffic_distribution:
        try:
            return TrafficDistribution(spec.traffic_distribution)
        except ValueError:
            # A preference of a newer Kubernetes: none that is known here.
            return TrafficDistribution.DEFAULT
    if notes and ann.wants_topology(notes):
        return TrafficDistribution.PREFER_SAME_ZONE
    return TrafficDistribution.DEFAULT


def _frontends(
    obj: k8s.Service,
    service: Service,
    exposed: frozenset[str] | None,
    config: LoadBalancerOptions,
    warnings: Warnings,
) -> tuple[FrontendParams, ...]:
    spec = obj.spec
    if spec.type == "ExternalName":
        return ()
    if spec.cluster_ips and _contradict_each_other(spec):
        said = (
            f"{spec.cluster_ip!r} is not clusterIPs[0], {spec.cluster_ips[0]!r}: neither is served"
        )
        warnings.append(("spec.clusterIP", said))
    if not spec.ports or is_headless(obj):
        return ()
    all_ = _all_frontends(obj, service, exposed, config, warnings)
    if len(all_) == 1:
        return (all_[0],)
    # One frontend an address: a ClusterIP that is also an external IP stays a ClusterIP.
    found: dict[L3n4Addr, FrontendParams] = {}
    for params in all_:
        found.setdefault(params.address, params)
    return tuple([found[address] for address in sorted(found)])


def is_headless(obj: k8s.Service) -> bool:
    labels = obj.metadata.labels
    if labels and ann.HEADLESS_LABEL in labels:
        return True
    ips = (obj.spec.cluster_ip, *(obj.spec.cluster_ips or ()))
    return "none" in [ip.lower() for ip in ips]


def _all_frontends(
    obj: k8s.Service,
    service: Service,
    exposed: frozenset[str] | None,
    config: LoadBalancerOptions,
    warnings: Warnings,
) -> list[FrontendParams]:
    spec, found = obj.spec, list[FrontendParams]()
    kind = spec.type
    scopes = _BOTH if has_two_scopes(service, config) else _EXTERNAL
    if exposed is None or "ClusterIP" in exposed:
        ips = _cluster_ips(spec)
        _at(found, spec, ips, FrontendType.CLUSTER_IP, _EXTERNAL, config, warnings)
    if kind in ("NodePort", "LoadBalancer"):
        if config.kube_proxy_replacement and (exposed is None or "NodePort" in exposed):
            _warn_of_node_ports(spec.ports or (), warnings)
            _node_ports(found, spec, scopes, config)
        if kind == "LoadBalancer" and (exposed is None or "LoadBalancer" in exposed):
            ips = _virtual_ips(obj.status)
            _at(found, spec, ips, FrontendType.LOAD_BALANCER, scopes, config, warnings)
    external_ips = spec.external_ips
    if external_ips and config.enable_external_ips:
        _at(found, spec, external_ips, FrontendType.EXTERNAL_IPS, scopes, config, warnings)
    return found


def _cluster_ips(spec: k8s.ServiceSpec) -> Sequence[str]:
    """Leave out the first address where the two fields contradict each other."""
    one, many = spec.cluster_ip, spec.cluster_ips
    if not many:
        return (one,) if one else ()
    if not _contradict_each_other(spec):
        return many
    return [ip for ip in many[1:] if not _is_same_ip(ip, one)]


def _contradict_each_other(spec: k8s.ServiceSpec) -> bool:
    """True if `clusterIP` is not the first of `clusterIPs`, which the API server refuses."""
    one, first = spec.cluster_ip, spec.cluster_ips[0] if spec.cluster_ips else ""
    return bool(one and spec.cluster_ips) and one != first and not _is_same_ip(one, first)


def _is_same_ip(one: str, other: str) -> bool:
    """An address may be spelled in several ways, and be "None"."""
    if ":" in one and ":" in other:
        return pack_ip(one) == pack_ip(other)
    return one.lower() == other.lower()


def has_two_scopes(service: Service, config: LoadBalancerOptions) -> bool:
    """True if clients inside the cluster get other backends at its external addresses."""
    internal = service.int_traffic_policy is TrafficPolicy.LOCAL
    external = service.ext_traffic_policy is TrafficPolicy.LOCAL
    return external is not (internal and config.bpf_lb_internal_policy_all_types)


def _at(
    found: list[FrontendParams],
    spec: k8s.ServiceSpec,
    ips: Iterable[str],
    type_: FrontendType,
    scopes: tuple[int, ...],
    config: LoadBalancerOptions,
    warnings: Warnings,
) -> None:
    """Adds each port at each address, in each scope; but for addresses that are others' for ever.

    At such an address a service would have the node's own ports, or those of each pod.
    """
    for ip in ips:
        if not ip or not (config.enable_ipv6 if ":" in ip else config.enable_ipv4):
            continue
        packed = pack_ip(ip)
        if said := special_use(packed):
            warnings.append((_FIELDS[type_], f"{ip!r} is {said}: nothing is served there"))
            continue
        for port in spec.ports or ():
            number = port.port
            for scope in scopes:
                address = L3n4Addr.of(packed, number, port.protocol, scope)
                found.append(FrontendParams(address, type_, port.name, number))


def _node_ports(
    found: list[FrontendParams],
    spec: k8s.ServiceSpec,
    scopes: tuple[int, ...],
    config: LoadBalancerOptions,
) -> None:
    """Adds the surrogate address of each family; the reconciler knows the node's addresses."""
    for family in _families(spec):
        if not (config.enable_ipv6 if family == "IPv6" else config.enable_ipv4):
            continue
        packed = pack_ip(_SURROGATES[family])
        for port in spec.ports or ():
            for scope in scopes if port.node_port else ():
                address = L3n4Addr.of(packed, port.node_port, port.protocol, scope)
                found.append(FrontendParams(address, FrontendType.NODE_PORT, port.name, port.port))


def _warn_of_node_ports(ports: Sequence[k8s.ServicePort], warnings: Warnings) -> None:
    """The first of several ports with one node port has it."""
    if len(ports) < 2:
        return
    seen: set[tuple[int, str]] = set()
    for number, port in enumerate(ports):
        asked = (port.node_port, port.protocol)
        if port.node_port and asked in seen:
            said = f"{port.node_port}/{port.protocol} is that of another port of this Service"
            warnings.append((f"spec.ports[{number}].nodePort", said))
        seen.add(asked)


def _families(spec: k8s.ServiceSpec) -> list[str]:
    """As stated, else as the cluster addresses are."""
    if spec.ip_families:
        return list(spec.ip_families)
    ips = spec.cluster_ips or [spec.cluster_ip]
    return list(dict.fromkeys("IPv6" if ":" in ip else "IPv4" for ip in ips if ip))


def _virtual_ips(status: k8s.ServiceStatus | None) -> list[str]:
    """Addresses that the load balancer leaves for the node to answer (KEP-1860: mode VIP)."""
    balancer = status.load_balancer if status else None
    ingresses = balancer.ingress if balancer else None
    return [
        ingress.ip for ingress in ingresses or () if ingress.ip and ingress.ip_mode in (None, "VIP")
    ]
