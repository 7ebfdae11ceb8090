# SPDX-License-Identifier: Apache-2.0
"""``services``: what is common to all frontends of a service, without addresses and without
backends.

A row is what a Service object, a state file, a host port or a redirect policy asks for, already
converted: annotations are parsed into fields once, by whoever writes the row.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from ipaddress import IPv4Network, IPv6Network
from typing import Any, Final

import msgspec

from bpf.maps.lb_numbers import Algorithm
from statedb import DB, Column, Index, RWTable, new_table
from tables.addressing import ServiceName
from tables.sources import Source
from tables.times import go_duration

IPNetwork = IPv4Network | IPv6Network

TABLE_NAME: Final = "services"
NANOSECONDS: Final = 1_000_000_000


class TrafficPolicy(StrEnum):
    CLUSTER = "Cluster"
    LOCAL = "Local"


class TrafficDistribution(StrEnum):
    DEFAULT = ""
    PREFER_SAME_ZONE = "PreferSameZone"
    PREFER_SAME_NODE = "PreferSameNode"
    PREFER_CLOSE = "PreferClose"


class ForwardingMode(StrEnum):
    UNDEF = ""
    SNAT = "snat"
    DSR = "dsr"


class SourceRangesPolicy(StrEnum):
    ALLOW = "allow"
    DENY = "deny"


class ProxyDelegation(StrEnum):
    NONE = "none"
    DELEGATE_IF_LOCAL = "delegate-if-local"


#: Annotations of a service that only some nodes serve.
NODE_ANNOTATION: Final = "service.cilium.io/node"
NODE_SELECTOR_ANNOTATION: Final = "service.cilium.io/node-selector"


class ProxyRedirect(msgspec.Struct, frozen=True, gc=False):
    """Traffic goes to a proxy on this node; without ``ports``, of every frontend."""

    proxy_port: int
    ports: tuple[int, ...] = ()

    def redirects(self, port: int) -> bool:
        return not self.ports or port in self.ports

    def __str__(self) -> str:
        if not self.ports:
            return str(self.proxy_port)
        return f"{self.proxy_port} (ports: [{' '.join(map(str, self.ports))}])"


class Service(msgspec.Struct, frozen=True, gc=False):
    # gc=False: a row holds only strings, numbers and flat containers and can be in no reference
    # cycle; the collector then has 50,000 objects less to walk.
    name: ServiceName
    source: Source
    labels: Mapping[str, str] = {}
    annotations: Mapping[str, str] = {}
    selector: Mapping[str, str] = {}
    # Service port by port name; the one port of a service may be unnamed ("").
    port_names: Mapping[str, int] = {}
    ext_traffic_policy: TrafficPolicy = TrafficPolicy.CLUSTER
    int_traffic_policy: TrafficPolicy = TrafficPolicy.CLUSTER
    forwarding_mode: ForwardingMode = ForwardingMode.UNDEF
    algorithm: Algorithm = Algorithm.UNDEF
    # Seconds a client stays with its backend; 0: no session affinity.
    affinity_timeout_s: int = 0
    load_balancer_class: str | None = None
    proxy_redirect: ProxyRedirect | None = None
    proxy_delegation: ProxyDelegation = ProxyDelegation.NONE
    health_check_node_port: int = 0
    # The host port is for clients on the node itself.
    loopback_host_port: bool = False
    source_ranges: tuple[IPNetwork, ...] = ()
    source_ranges_policy: SourceRangesPolicy = SourceRangesPolicy.ALLOW
    traffic_distribution: TrafficDistribution = TrafficDistribution.DEFAULT
    scale_to_zero: bool = False
    # Seconds since the epoch; 0: not known.
    created_at: int = 0


def is_on_some_nodes(svc: Service) -> bool:
    """True if other nodes may not know the service."""
    notes = svc.annotations
    return bool(notes) and (NODE_ANNOTATION in notes or NODE_SELECTOR_ANNOTATION in notes)


def traffic_policy_cell(svc: Service) -> str:
    if svc.ext_traffic_policy == svc.int_traffic_policy:
        return svc.ext_traffic_policy.value
    return f"Ext={svc.ext_traffic_policy.value}, Int={svc.int_traffic_policy.value}"


def port_names_cell(svc: Service) -> str:
    return ", ".join(f"{name}={port}" for name, port in sorted(svc.port_names.items()))


def flags_cell(svc: Service) -> str:
    """What is set and rarely is, sorted by name."""
    flags = {
        "ExplicitLBAlgorithm": svc.algorithm.label if svc.algorithm else "",
        "ForwardingMode": svc.forwarding_mode.value,
        "HealthCheckNodePort": str(svc.health_check_node_port or ""),
        "LoadBalancerClass": svc.load_balancer_class or "",
        "LoopbackHostPort": "true" if svc.loopback_host_port else "",
        "ProxyRedirects": str(svc.proxy_redirect or ""),
        "SessionAffinity": go_duration(svc.affinity_timeout_s) if svc.affinity_timeout_s else "",
        "SourceRanges": ", ".join(map(str, svc.source_ranges)),
        "SourceRangesPolicy": _deny_cell(svc),
        "TrafficDistribution": svc.traffic_distribution.value,
    }
    return ", ".join(f"{name}={value}" for name, value in flags.items() if value)


def _deny_cell(svc: Service) -> str:
    denies = svc.source_ranges_policy is SourceRangesPolicy.DENY
    return SourceRangesPolicy.DENY.value if denies else ""


def to_json(svc: Service) -> dict[str, Any]:
    redirect = svc.proxy_redirect
    return {
        "Name": str(svc.name),
        "Source": svc.source.value,
        "Labels": dict(svc.labels),
        "Annotations": dict(svc.annotations),
        "Selector": dict(svc.selector),
        "ExtTrafficPolicy": svc.ext_traffic_policy.value,
        "IntTrafficPolicy": svc.int_traffic_policy.value,
        "ForwardingMode": svc.forwarding_mode.value,
        "LBAlgorithm": svc.algorithm.label if svc.algorithm else "",
        "SessionAffinity": svc.affinity_timeout_s > 0,
        "SessionAffinityTimeout": svc.affinity_timeout_s * NANOSECONDS,
        "LoadBalancerClass": svc.load_balancer_class,
        "ProxyRedirect": redirect
        and {"ProxyPort": redirect.proxy_port, "Ports": list(redirect.ports)},
        "ProxyDelegation": svc.proxy_delegation.value,
        "HealthCheckNodePort": svc.health_check_node_port,
        "LoopbackHostPort": svc.loopback_host_port,
        "SourceRanges": [str(prefix) for prefix in svc.source_ranges],
        "SourceRangesPolicy": svc.source_ranges_policy.value,
        "PortNames": dict(svc.port_names),
        "TrafficDistribution": svc.traffic_distribution.value,
        "ScaleToZero": svc.scale_to_zero,
    }


def _name(svc: Service) -> ServiceName:
    return svc.name


NAME: Final = Index("name", key=_name, parse=str)

COLUMNS: Final = (
    Column("Name", lambda svc: str(svc.name)),
    Column("Source", lambda svc: svc.source.value),
    Column("PortNames", port_names_cell),
    Column("TrafficPolicy", traffic_policy_cell),
    Column("Flags", flags_cell),
)


def new_services_table(db: DB) -> RWTable[Service]:
    """Registers ``services`` with the database."""
    return new_table(db, TABLE_NAME, NAME, columns=COLUMNS, row_type=Service, to_json=to_json)
