# SPDX-License-Identifier: Apache-2.0
"""Kubernetes' rules for who answers at an address of a Service, in the plainest way.

Written from the API text of Service and EndpointSlice, KEP-1669, KEP-2086, KEP-2433 and KEP-3015,
and from what kube-proxy documents; nothing here knows how cilia does it. Where cilia follows the
field instead, the line says so.
"""

from __future__ import annotations

import ipaddress
from enum import StrEnum

import msgspec


class Kind(StrEnum):
    """Kinds of address that a Service has."""

    CLUSTER_IP = "ClusterIP"
    NODE_PORT = "NodePort"
    LOAD_BALANCER = "LoadBalancer"
    EXTERNAL_IP = "ExternalIPs"


class Endpoint(msgspec.Struct, frozen=True):
    """One entry of an EndpointSlice; None is what the entry does not say."""

    ip: str
    ready: bool | None = None
    serving: bool | None = None
    terminating: bool | None = None
    node: str | None = None
    zones: tuple[str, ...] = ()
    nodes: tuple[str, ...] = ()

    @property
    def is_ready(self) -> bool:
        return self.ready is not False

    @property
    def is_last_resort(self) -> bool:
        """Terminating, and still able to serve (KEP-1669)."""
        return not self.is_ready and self.serving is not False and self.terminating is True


class Service(msgspec.Struct, frozen=True):
    external: str = "Cluster"
    internal: str = "Cluster"
    distribution: str | None = None
    ranges: tuple[str, ...] = ()
    affinity: bool = False


class Place(msgspec.Struct, frozen=True):
    """The node that decides."""

    node: str
    zone: str = ""


def is_local(service: Service, kind: Kind, *, inside: bool) -> bool:
    """KEP-2086: the internal policy is that of the cluster address. Clients inside the cluster that
    ask an external address get what `externalTrafficPolicy: Cluster` gives."""
    if kind is Kind.CLUSTER_IP:
        return service.internal == "Local"
    return service.external == "Local" and not inside


def answering(
    service: Service, endpoints: list[Endpoint], kind: Kind, place: Place, *, inside: bool
) -> set[str]:
    """Return the addresses of the endpoints that get new connections."""
    endpoints = joined(endpoints)
    if is_local(service, kind, inside=inside):
        # As in the field, an endpoint that names no node is everybody's.
        here = [e for e in endpoints if e.node in (None, place.node)]
        return addresses(ready(here) or last_resort(here))
    if not ready(endpoints):
        return addresses(last_resort(endpoints))
    # As in the field, hints count for Services that ask; the controller writes them for no others.
    if service.distribution is None:
        return addresses(ready(endpoints))
    return addresses(nearest(service, ready(endpoints), place))


def nearest(service: Service, endpoints: list[Endpoint], place: Place) -> list[Endpoint]:
    """KEP-3015: same node, else same zone, else all; hints count if every endpoint has some."""
    if service.distribution == "PreferSameNode":
        # As in the field, nodeName stands in where no endpoint has a hint for nodes at all.
        if not any(e.nodes for e in endpoints):
            found = [e for e in endpoints if e.node == place.node]
        elif all(e.nodes for e in endpoints):
            found = [e for e in endpoints if place.node in e.nodes]
        else:
            found = []
        if found:
            return found
    if all(e.zones for e in endpoints):
        found = [e for e in endpoints if place.zone in e.zones]
        if found:
            return found
    return endpoints


def ready(endpoints: list[Endpoint]) -> list[Endpoint]:
    return [e for e in endpoints if e.is_ready]


def last_resort(endpoints: list[Endpoint]) -> list[Endpoint]:
    return [e for e in endpoints if e.is_last_resort]


def addresses(endpoints: list[Endpoint]) -> set[str]:
    return {e.ip for e in endpoints}


def joined(endpoints: list[Endpoint]) -> list[Endpoint]:
    """While an endpoint moves it stands in two slices: it is what the better of them says."""
    best: dict[str, Endpoint] = {}
    for e in endpoints:
        known = best.get(e.ip)
        if known is None or rank(e) < rank(known):
            best[e.ip] = e
    return list(best.values())


def rank(e: Endpoint) -> int:
    return 0 if e.is_ready else 1 if e.is_last_resort else 2


def admits(service: Service, kind: Kind, client: str) -> bool:
    """True if `loadBalancerSourceRanges` let the client in, from inside and from outside.

    They are about load balancers' addresses; as in the field, about external ones too. A client of
    a family without a range is in none of them.
    """
    if not service.ranges or kind not in (Kind.LOAD_BALANCER, Kind.EXTERNAL_IP):
        return True
    ip = ipaddress.ip_address(client)
    return any(ip in ipaddress.ip_network(cidr) for cidr in service.ranges)
