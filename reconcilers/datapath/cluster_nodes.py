# SPDX-License-Identifier: Apache-2.0
"""`cluster-nodes`: the addresses of nodes in the maps ``cilia_nodes4`` and ``cilia_nodes6``."""

from __future__ import annotations

import ipaddress

from bpf.maps.cluster_nodes import ClusterNodeFlag, ClusterNodeMaps, encode_value
from reconcilers.maps.entries import MapEntries
from tables.datapath.cluster_nodes import ClusterNode

__all__ = ["cluster_node_operations"]


def cluster_node_operations(maps: ClusterNodeMaps) -> MapEntries[ClusterNode]:
    """Operations over the map of each family."""
    return MapEntries(
        *maps,
        of=maps.of,
        key=lambda row: row.address.packed,
        value=_value,
        text=lambda key: f"node {ipaddress.ip_address(key)}",
    )


def _value(row: ClusterNode) -> bytes:
    return encode_value(ClusterNodeFlag.SELF if row.is_self else ClusterNodeFlag.NONE)
