# SPDX-License-Identifier: Apache-2.0
"""From EndpointSlices to the backends of a service; pure.

A service has any number of slices, and while the cluster moves an endpoint between them its address
stands in two. The service has the union: names of ports add up, and the most useful state counts.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from cilia.k8s import objects as k8s
from cilia.loadbalancer import annotations as ann
from cilia.loadbalancer.options import LoadBalancerOptions
from cilia.loadbalancer.services.conversion import Warnings
from tables.addressing import L3n4Addr, ServiceName, pack_ip, special_use
from tables.loadbalancer.backends import DEFAULT_WEIGHT, Backend, BackendState
from tables.sources import Source

Backends = tuple[Backend, ...]


class ConvertedSlice(msgspec.Struct, frozen=True):
    backends: Backends
    warnings: Warnings = []


def service_of(obj: k8s.EndpointSlice) -> ServiceName | None:
    """The service that a slice belongs to by its label."""
    labels = obj.metadata.labels
    service = labels.get(obj.SERVICE_LABEL) if labels else None
    return ServiceName(f"{obj.metadata.namespace}/{service}") if service else None


def convert_slice(
    obj: k8s.EndpointSlice,
    service: ServiceName,
    config: LoadBalancerOptions,
    source: Source = Source.K8S,
) -> ConvertedSlice:
    """The backends of one slice; none for a family that is off, and none for host names."""
    if not _is_enabled(obj.address_type, config):
        return ConvertedSlice(())
    warnings: Warnings = []
    weight = _weight(obj, warnings)
    ports = _ports(obj)
    found: dict[L3n4Addr, Backend] = {}
    for number, endpoint in enumerate(obj.endpoints or ()):
        state = _state(endpoint.conditions) if weight else BackendState.MAINTENANCE
        zones, nodes = _hints(endpoint.hints)
        for ip in endpoint.addresses:
            packed = pack_ip(ip)
            if said := special_use(packed):
                warnings.append((f"endpoints[{number}].addresses", f"{ip!r} is {said}"))
                continue
            for port, protocol, names in ports:
                address = L3n4Addr.of(packed, port, protocol)
                found[address] = Backend(
                    service,
                    address,
                    source,
                    state,
                    names,
                    weight,
                    endpoint.node_name or "",
                    endpoint.zone or "",
                    zones,
                    nodes,
                )
    return ConvertedSlice(tuple(found.values()), warnings)


def _is_enabled(family: str, config: LoadBalancerOptions) -> bool:
    return (family == "IPv4" and config.enable_ipv4) or (family == "IPv6" and config.enable_ipv6)


def _weight(obj: k8s.EndpointSlice, warnings: Warnings) -> int:
    notes = obj.metadata.annotations
    if not notes:
        return DEFAULT_WEIGHT
    try:
        return ann.weight(notes, DEFAULT_WEIGHT)
    except ann.IgnoredAnnotation as error:
        warnings.append((f"metadata.annotations[{error.name}]", f"is ignored: {error.message}"))
        return DEFAULT_WEIGHT


def _ports(obj: k8s.EndpointSlice) -> list[tuple[int, str, tuple[str, ...]]]:
    """Number, protocol and names of each port; an unnamed one has none."""
    named = obj.ports or ()
    if len(named) == 1 and named[0].port is not None:
        name: tuple[str, ...] = (named[0].name,) if named[0].name else ()
        return [(named[0].port, named[0].protocol or "TCP", name)]
    ports: dict[tuple[int, str], tuple[str, ...]] = {}
    for port in named:
        if port.port is not None:
            key = (port.port, port.protocol or "TCP")
            names = ports.get(key, ())
            ports[key] = (*names, port.name) if port.name and port.name not in names else names
    return [(number, protocol, names) for (number, protocol), names in ports.items()]


def _state(conditions: k8s.EndpointConditions | None) -> BackendState:
    """Ready counts first, as in kube-proxy: a terminating pod may be published as ready on purpose.

    Not ready and not terminating is maintenance: connections stay, so that flapping costs none. An
    endpoint that does not say is ready, is serving and is not terminating.
    """
    if conditions is None or conditions.ready is None or conditions.ready:
        return BackendState.ACTIVE
    if not conditions.terminating:
        return BackendState.MAINTENANCE
    if conditions.serving is False:
        return BackendState.TERMINATING_NOT_SERVING
    return BackendState.TERMINATING


def _hints(hints: k8s.EndpointHints | None) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The zones and the nodes that shall use the endpoint."""
    if hints is None:
        return (), ()
    return (
        tuple(hint.name for hint in hints.for_zones or ()),
        tuple(hint.name for hint in hints.for_nodes or ()),
    )


def merge_slices(slices: Iterable[Backends]) -> Backends:
    """The backends of a service from those of its slices, one for each address.

    The result does not depend on which slice changed last: the better state wins, then the slice
    that comes first.
    """
    many = tuple(slices)
    if len(many) == 1:
        return many[0]
    merged: dict[L3n4Addr, Backend] = {}
    for backends in many:
        for be in backends:
            other = merged.get(be.address)
            merged[be.address] = be if other is None else _merged(other, be)
    return tuple(merged.values())


def _merged(first: Backend, second: Backend) -> Backend:
    best = second if second.state < first.state else first
    names = tuple(dict.fromkeys((*first.port_names, *second.port_names)))
    return best if names == best.port_names else msgspec.structs.replace(best, port_names=names)
