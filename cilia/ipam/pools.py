# SPDX-License-Identifier: Apache-2.0
"""The prefixes that the addresses of this node's pods come from."""

from __future__ import annotations

from typing import Protocol

from cilia.ipam.options import STATIC, IPAMOptions
from statedb import ReadTxn, Table, WatchSet
from tables.addressing import Prefix
from tables.cluster.nodes import Node

__all__ = ["Pools", "node_pools"]


class Pools(Protocol):
    """Reads the pools; as long as none is known there is nothing."""

    def __call__(self, txn: ReadTxn, watches: WatchSet | None = None) -> tuple[Prefix, ...]:
        """Return the pools, and add to the set what closes when they change."""


def node_pools(options: IPAMOptions, nodes: Table[Node], families: frozenset[bool]) -> Pools:
    """Return how to read this node's pools; `families`: True for IPv6, False for IPv4."""

    def wanted(pools: tuple[Prefix, ...]) -> tuple[Prefix, ...]:
        return tuple(pool for pool in pools if pool.is_ipv6 in families)

    def static(txn: ReadTxn, watches: WatchSet | None = None) -> tuple[Prefix, ...]:
        return wanted(options.static_pools)

    def kubernetes(txn: ReadTxn, watches: WatchSet | None = None) -> tuple[Prefix, ...]:
        node, changed = nodes.get_watch(txn, options.node_name)
        if watches is not None:
            watches.add(changed)
        return wanted(_prefixes(node) if node is not None else ())

    return static if options.ipam == STATIC else kubernetes


def _prefixes(node: Node) -> tuple[Prefix, ...]:
    """What the API server refuses is no prefix; a file may have it all the same."""
    found = []
    for text in node.pod_cidrs:
        try:
            found.append(Prefix.parse(text))
        except ValueError:
            continue
    return tuple(found)
