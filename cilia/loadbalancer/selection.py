# SPDX-License-Identifier: Apache-2.0
"""Which backends of a service answer at one of its frontends: pure functions over rows.

The rules run in this order: protocol and family, port name, preference among sources, then the node
(PreferSameNode), the traffic policies, the zone. They follow Kubernetes' service semantics and
KEP-2433 (topology aware routing).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from cilia.loadbalancer.options import LoadBalancerOptions
from cilia.loadbalancer.this_node import LocalNode
from tables.addressing import SCOPE_INTERNAL, L3n4Addr
from tables.loadbalancer.backends import Backend, BackendState
from tables.loadbalancer.frontends import FrontendType
from tables.loadbalancer.services import (
    ProxyDelegation,
    Service,
    TrafficDistribution,
    TrafficPolicy,
)

_EXTERNAL_TYPES: Final = frozenset(
    (FrontendType.NODE_PORT, FrontendType.LOAD_BALANCER, FrontendType.EXTERNAL_IPS)
)
_INTERNAL_TYPES: Final = _EXTERNAL_TYPES | {FrontendType.CLUSTER_IP}
_ZONE_PREFERENCES: Final = frozenset(
    (TrafficDistribution.PREFER_CLOSE, TrafficDistribution.PREFER_SAME_ZONE)
)
_V4_PREFIX: Final = b"\0" * 10 + b"\xff\xff"


def in_order(backends: Iterable[Backend]) -> list[Backend]:
    """The order that ``select_backends`` wants: by address, the preferred source first."""
    return sorted(backends, key=lambda be: (be.address, be.priority))


def select_backends(
    address: L3n4Addr,
    type_: FrontendType,
    port_name: str,
    service: Service,
    candidates: Sequence[Backend],
    node: LocalNode,
    config: LoadBalancerOptions,
    *,
    redirected: bool = False,
) -> tuple[Backend, ...]:
    """The backends for a frontend, in address order; the candidates themselves if all are meant.

    Args:
        candidates: all backends of the service (of the target, if redirected), see ``in_order``.
    """
    chosen = matching(address, port_name, candidates)
    if not chosen:
        return ()
    distribution = service.traffic_distribution if config.enable_service_topology else ""
    if distribution is TrafficDistribution.PREFER_SAME_NODE:
        here = [be for be in chosen if be.node_name == node.name]
        if here:
            return tuple(here)
    if wants_local_backends(address, type_, service):
        chosen = [be for be in chosen if not be.node_name or be.node_name == node.name]
    if distribution in _ZONE_PREFERENCES and node.zone and not redirected:
        chosen = _in_zone(chosen, node.zone)
    if len(chosen) == len(candidates) and isinstance(candidates, tuple):
        return candidates
    return tuple(chosen)


def matching(address: L3n4Addr, port_name: str, candidates: Sequence[Backend]) -> list[Backend]:
    """Candidates of the same protocol, family and port name, one for each address."""
    protocol, is_v4 = address[22], address.startswith(_V4_PREFIX)
    chosen: list[Backend] = []
    last: L3n4Addr | None = None
    for be in candidates:
        other = be.address
        if other[22] != protocol or other.startswith(_V4_PREFIX) is not is_v4:
            continue
        if port_name and be.port_names and port_name not in be.port_names:
            continue
        if other != last:
            chosen.append(be)
            last = other
    return chosen


def wants_local_backends(address: L3n4Addr, type_: FrontendType, service: Service) -> bool:
    """True if a traffic policy keeps this frontend's traffic on the node.

    A ClusterIP knows the internal policy only. The external scope of the others follows the
    external policy; where both policies are Local there is no internal scope.
    """
    if address[23] == SCOPE_INTERNAL or type_ is FrontendType.CLUSTER_IP:
        return is_internal_local(type_, service)
    return is_external_local(type_, service)


def is_external_local(type_: FrontendType, service: Service) -> bool:
    return service.ext_traffic_policy is TrafficPolicy.LOCAL and type_ in _EXTERNAL_TYPES


def is_internal_local(type_: FrontendType, service: Service) -> bool:
    return service.int_traffic_policy is TrafficPolicy.LOCAL and type_ in _INTERNAL_TYPES


def _in_zone(chosen: list[Backend], zone: str) -> list[Backend]:
    """Those hinted for the zone, if every backend has hints and one of them names the zone."""
    if not all(be.for_zones for be in chosen):
        return chosen
    return [be for be in chosen if zone in be.for_zones] or chosen


def probed(backends: tuple[Backend, ...]) -> tuple[Backend, ...]:
    """What a health-checked service uses: active backends count once they have been probed."""
    return tuple(
        be
        for be in backends
        if be.state is not BackendState.ACTIVE or be.unhealthy_updated_at is not None
    )


def local_backends_of_service(
    service: Service, candidates: Iterable[Backend], node: LocalNode
) -> tuple[Backend, ...]:
    """The backends that make this node a good target from outside, for a health check node port.

    With proxy delegation, a backend is local when its address is one of the node's.
    """
    if service.ext_traffic_policy is not TrafficPolicy.LOCAL:
        return tuple(candidates)
    local = [be for be in candidates if not be.node_name or be.node_name == node.name]
    if service.proxy_delegation is ProxyDelegation.DELEGATE_IF_LOCAL:
        local = [be for be in local if be.address.ip in node.addresses]
    return tuple(local)
