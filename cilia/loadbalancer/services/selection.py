# SPDX-License-Identifier: Apache-2.0
"""Which backends of a service answer at one of its frontends: pure functions over rows.

The rules run in this order: protocol and family, port name, preference among sources, then a
traffic policy or, without one, nearness:

    Local policy        the node's own backends, also if there are none
    PreferSameNode      those meant for this node, else by zone
    zone hints          those meant for this zone, else all

Nearness is decided by backends that can serve, and takes out only those: the others get no new
connection while one of these is left, and keep what they have. The rules are Kubernetes': the API
text of EndpointSlice, KEP-2433 (hints), KEP-3015 (same node), KEP-1669 (terminating endpoints), and
KEP-2086 (`internalTrafficPolicy`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from bpf.maps.lb_numbers import FrontendType
from cilia.loadbalancer.options import LoadBalancerOptions
from cilia.loadbalancer.this_node import LocalNode
from tables.addressing import AT_PROTOCOL, AT_SCOPE, SCOPE_INTERNAL, V4_PREFIX, L3n4Addr
from tables.loadbalancer.backends import Backend, BackendState
from tables.loadbalancer.services import (
    ProxyDelegation,
    Service,
    TrafficDistribution,
    TrafficPolicy,
)

_EXTERNAL_TYPES: Final = frozenset(
    (FrontendType.NODE_PORT, FrontendType.LOAD_BALANCER, FrontendType.EXTERNAL_IPS)
)
# Bound here: compiled code looks up what it imports at each use, except for numbers.
_V4_PREFIX: Final = V4_PREFIX


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
    """Return the backends for a frontend, in address order; `candidates` itself if all are meant.

    Args:
        candidates: all backends of the service (of the target, if redirected), see `in_order`.
    """
    chosen = matching(address, port_name, candidates)
    if not chosen:
        return ()
    if wants_local_backends(address, type_, service, config):
        chosen = [be for be in chosen if is_local(be, node)]
    elif service.traffic_distribution and config.enable_service_topology and not redirected:
        chosen = nearest(chosen, service.traffic_distribution, node)
    if len(chosen) == len(candidates) and isinstance(candidates, tuple):
        return candidates
    return tuple(chosen)


def probed_backends(
    address: L3n4Addr,
    type_: FrontendType,
    port_name: str,
    service: Service,
    candidates: Sequence[Backend],
    node: LocalNode,
    config: LoadBalancerOptions,
) -> tuple[Backend, ...]:
    """Return all that a health checker probes: nearness must have the answers of those afar too."""
    chosen = matching(address, port_name, candidates)
    if wants_local_backends(address, type_, service, config):
        chosen = [be for be in chosen if is_local(be, node)]
    return tuple(chosen)


def matching(address: L3n4Addr, port_name: str, candidates: Sequence[Backend]) -> list[Backend]:
    """Candidates of the same protocol, family and port name, one for each address."""
    protocol, is_v4 = address[AT_PROTOCOL], address.startswith(_V4_PREFIX)
    chosen: list[Backend] = []
    last: L3n4Addr | None = None
    for be in candidates:
        other = be.address
        if other[AT_PROTOCOL] != protocol or other.startswith(_V4_PREFIX) is not is_v4:
            continue
        if port_name and be.port_names and port_name not in be.port_names:
            continue
        if other != last:
            chosen.append(be)
            last = other
    return chosen


def is_local(be: Backend, node: LocalNode) -> bool:
    """True for a backend of this node; one without a node is everybody's, as in the field."""
    return not be.node_name or be.node_name == node.name


def can_serve(be: Backend) -> bool:
    """True if the backend gets new connections: ready, and not found ill by a health check."""
    return be.state is BackendState.ACTIVE and not be.unhealthy


def wants_local_backends(
    address: L3n4Addr, type_: FrontendType, service: Service, config: LoadBalancerOptions
) -> bool:
    """True if a traffic policy keeps this frontend's traffic on the node.

    The internal policy is that of cluster addresses, the external one that of all others as they
    are seen from outside. Inside the cluster those lead to all backends, unless an option says that
    the internal policy counts there too; where both are Local then, there is no internal scope.
    """
    if type_ is FrontendType.CLUSTER_IP:
        return service.int_traffic_policy is TrafficPolicy.LOCAL
    if type_ not in _EXTERNAL_TYPES:
        return False
    if address[AT_SCOPE] != SCOPE_INTERNAL:
        return service.ext_traffic_policy is TrafficPolicy.LOCAL
    return (
        config.bpf_lb_internal_policy_all_types
        and service.int_traffic_policy is TrafficPolicy.LOCAL
    )


def nearest(
    chosen: list[Backend], distribution: TrafficDistribution, node: LocalNode
) -> list[Backend]:
    """Leave out backends that can serve and are meant for elsewhere, if some are meant for here."""
    serving = [be for be in chosen if can_serve(be)]
    near: list[Backend] = []
    if distribution is TrafficDistribution.PREFER_SAME_NODE:
        near = _on_node(serving, node.name)
    near = near or _in_zone(serving, node.zone)
    if not near or len(near) == len(serving):
        return chosen
    kept = {be.address for be in near}
    return [be for be in chosen if be.address in kept or not can_serve(be)]


def _on_node(serving: list[Backend], name: str) -> list[Backend]:
    """Those hinted for the node, if all have hints; by their own nodes where there are no hints.

    Older clusters write none, nor do people; the controller's name the backend's own node.
    """
    hinted = [be for be in serving if be.for_nodes]
    if not hinted:
        return [be for be in serving if be.node_name == name]
    if len(hinted) < len(serving):
        return []
    return [be for be in serving if name in be.for_nodes]


def _in_zone(serving: list[Backend], zone: str) -> list[Backend]:
    """Those hinted for the zone, if all have hints."""
    if not zone or not all(be.for_zones for be in serving):
        return []
    return [be for be in serving if zone in be.for_zones]


def probed(backends: Iterable[Backend]) -> tuple[Backend, ...]:
    """Return what a health-checked service uses: an active backend counts once it was probed."""
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
    local = [be for be in candidates if is_local(be, node)]
    if service.proxy_delegation is ProxyDelegation.DELEGATE_IF_LOCAL:
        local = [be for be in local if be.address.ip in node.addresses]
    return tuple(local)
