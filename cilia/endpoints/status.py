# SPDX-License-Identifier: Apache-2.0
"""The pod network's part of `/status`: endpoints by state, and how full the prefixes are."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from itertools import chain
from typing import Any

from cilia.endpoints.options import EndpointOptions
from cilia.ipam.allocator import usable
from cilia.ipam.pools import NodePools
from statedb import ReadTxn, Table
from tables.addressing import Prefix
from tables.endpoints.endpoints import Endpoint
from tables.ipam.ip_allocations import IPAllocation

__all__ = ["PodNetworkStatus"]


@dataclass(frozen=True)
class PodNetworkStatus:
    """Reads, writes nothing."""

    options: EndpointOptions
    endpoints: Table[Endpoint]
    allocations: Table[IPAllocation]
    pools: NodePools

    def __call__(self, txn: ReadTxn) -> dict[str, Any]:
        rows = list(self.allocations.all(txn))
        endpoints = list(self.endpoints.all(txn))
        return {
            "endpoints": dict(Counter(ep.state.value for ep in endpoints)),
            "ignored_annotations": dict(Counter(chain.from_iterable(e.ignored for e in endpoints))),
            "routing": self.options.routing_mode,
            "chaining": self.options.cni_chaining_mode,
            "ipam": {
                "mode": "external" if self.options.is_behind else self.options.ipam,
                "network": self.options.chaining_network,
                "pools": [_pool_dict(pool, rows) for pool in self.pools(txn)],
                "refused": self.pools.refusals(txn),
            },
        }


def _pool_dict(pool: Prefix, rows: list[IPAllocation]) -> dict[str, Any]:
    """`size`: addresses that can be given out, the gateway's among them."""
    states = Counter(row.state for row in rows if pool.contains(row.ip))
    return {
        "prefix": str(pool),
        "size": usable(pool)[1],
        "in_use": states["in-use"],
        "quarantined": states["quarantined"],
    }
