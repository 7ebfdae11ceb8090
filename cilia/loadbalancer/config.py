# SPDX-License-Identifier: Apache-2.0
"""What the load balancer's control plane is told: options, and the node that it runs on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec

from tables.addressing import IP

ZONE_LABEL: Final = "topology.kubernetes.io/zone"


class LoadBalancerConfig(msgspec.Struct, frozen=True):
    """Options of the agent, by the names of the field with ``-`` for ``_``."""

    kube_proxy_replacement: bool = True
    enable_ipv4: bool = True
    enable_ipv6: bool = True
    enable_external_ips: bool = True
    # Zone hints and preference for the own node are followed.
    enable_service_topology: bool = False
    # A service may choose its algorithm or forwarding mode by annotation.
    bpf_lb_algorithm_annotation: bool = False
    bpf_lb_mode_annotation: bool = False
    # Health checks of Local services are answered at load-balancer addresses too.
    health_check_loadbalancer_ip: bool = False
    # Inclusive; a host port in this range would stand in the way of node ports.
    node_port_min: int = 30000
    node_port_max: int = 32767


class LocalNode(msgspec.Struct, frozen=True):
    """The node that this agent runs on."""

    name: str
    labels: Mapping[str, str] = {}
    addresses: frozenset[IP] = frozenset()

    @property
    def zone(self) -> str:
        return self.labels.get(ZONE_LABEL, "")
