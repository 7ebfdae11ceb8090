# SPDX-License-Identifier: Apache-2.0
"""The claims that rows of other tables make: endpoints, devices, nodes; and those of the world.

=========================  ===============  ==========================================
prefix                     source           identity
=========================  ===============  ==========================================
address of an endpoint     local            the endpoint's
address of a device        local            host
of this Node object        local            host
of another Node object     k8s              remote-node
of a pod of another node   custom-resource  that of its CiliumEndpoint
0.0.0.0/0, ::/0            local            world, with two families one for each
=========================  ===============  ==========================================
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from cilia.identity.ipcache.writer import Claims
from tables.addressing import IP, Prefix, special_use
from tables.cluster.nodes import Node
from tables.endpoints.endpoints import Endpoint
from tables.endpoints.k8s_endpoints import K8sEndpoint
from tables.identity.identities import RESERVED
from tables.identity.ipcache import Claim
from tables.node.devices import Device
from tables.sources import Source

__all__ = ["HOST", "KUBE_APISERVER", "REMOTE_NODE", "ClaimsOf", "host_prefix"]

_NUMBERS: Final = {name: number for number, name in RESERVED.items()}
HOST: Final = _NUMBERS["host"]
REMOTE_NODE: Final = _NUMBERS["remote-node"]
KUBE_APISERVER: Final = _NUMBERS["kube-apiserver"]

#: Reserved identities that are of no pod.
NOT_OF_PODS: Final = frozenset(RESERVED) - {
    _NUMBERS[name] for name in ("unmanaged", "health", "init")
}

_EVERYTHING: Final = {False: Prefix.parse("0.0.0.0/0"), True: Prefix.parse("::/0")}
_WORLD_OF_TWO: Final = {False: "world-ipv4", True: "world-ipv6"}


def host_prefix(ip: IP) -> Prefix:
    """Return the prefix that is one address alone."""
    return Prefix.of(ip, ip.bits)


@dataclass(frozen=True)
class ClaimsOf:
    """`families`: those that are enabled, True for IPv6, False for IPv4."""

    families: frozenset[bool]
    node_name: str

    def endpoint(self, ep: Endpoint) -> Claims:
        """Return the claims of a workload of this node, none as long as it has no identity."""
        if not ep.identity:
            return {}
        claim = Claim(
            source=Source.LOCAL,
            owner=f"endpoint {ep.id}",
            identity=ep.identity,
            namespace=ep.namespace,
            pod=ep.pod,
        )
        return {host_prefix(ip): claim for ip in ep.addresses if ip.is_ipv6 in self.families}

    def remote_endpoint(self, obj: K8sEndpoint) -> Claims:
        """Return the claims of a pod of another node, behind which it is; none for an identity that
        no pod has.
        """
        if not obj.identity or obj.identity in NOT_OF_PODS:
            return {}
        claim = Claim(
            source=Source.CUSTOM_RESOURCE,
            owner=f"pod {obj.pod_name}",
            identity=obj.identity,
            host=obj.node,
            since=obj.created_at,
            namespace=obj.namespace,
            pod=obj.name,
        )
        return {
            host_prefix(ip): claim
            for ip in obj.addresses
            if ip.is_ipv6 in self.families and not special_use(ip.packed)
        }

    def device(self, dev: Device) -> Claims:
        """Return the claims of this node's own addresses, also on devices that serve nobody.

        A device may be made anew with its name and addresses: its index is what is unique.
        """
        claim = Claim(source=Source.LOCAL, owner=f"device {dev.index} ({dev.name})", identity=HOST)
        return self._of_nodes((row.address for row in dev.addresses), claim)

    def node(self, node: Node) -> Claims:
        own = node.name == self.node_name
        claim = Claim(
            source=Source.LOCAL if own else Source.K8S,
            owner=f"node {node.name}",
            identity=HOST if own else REMOTE_NODE,
        )
        return self._of_nodes((*node.internal_ips, *node.external_ips), claim)

    def world(self) -> Claims:
        """Return the claims of what nobody else claims."""
        two = len(self.families) > 1
        return {
            _EVERYTHING[ipv6]: Claim(
                source=Source.LOCAL,
                owner="world",
                identity=_NUMBERS[_WORLD_OF_TWO[ipv6] if two else "world"],
            )
            for ipv6 in sorted(self.families)
        }

    def _of_nodes(self, ips: Iterable[IP], claim: Claim) -> Claims:
        return {
            host_prefix(ip): claim
            for ip in ips
            if ip.is_ipv6 in self.families and _is_one_node_s(ip)
        }


def _is_one_node_s(ip: IP) -> bool:
    """False for addresses that every machine has, or none. IPv4 has link-local ones that one
    machine alone answers at, such as a node's DNS cache.
    """
    if ip.is_ipv6:
        return not special_use(ip)
    return not (ip.is_loopback or ip.is_unspecified)
