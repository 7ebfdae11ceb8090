# SPDX-License-Identifier: Apache-2.0
"""The addresses that the cluster knows this node by, from its Node object."""

from __future__ import annotations

from collections.abc import Callable

from statedb import ReadTxn, Table, WatchSet
from tables.addressing import IP
from tables.cluster.nodes import Node

__all__ = ["OwnAddresses", "none_known", "own_addresses", "sole_addresses"]

OwnAddresses = Callable[[ReadTxn, WatchSet], tuple[IP, ...] | None]
"""The addresses, the most preferred first; None as long as Node objects may still come. Adds to the
set what closes when they change."""


def own_addresses(nodes: Table[Node], name: str) -> OwnAddresses:
    """Follow the Node object of this name: its internal addresses go before its external ones."""

    def read(txn: ReadTxn, watches: WatchSet) -> tuple[IP, ...] | None:
        node, changed = nodes.get_watch(txn, name)
        filled, became_filled = nodes.filled_watch(txn)
        watches.add(changed, became_filled)
        if node is None:
            return () if filled else None
        return (*node.internal_ips, *node.external_ips)

    return read


def sole_addresses(nodes: Table[Node], name: str) -> OwnAddresses:
    """As `own_addresses`, without those that another node has too: nobody can tell whose they
    are.
    """
    own = own_addresses(nodes, name)

    def read(txn: ReadTxn, watches: WatchSet) -> tuple[IP, ...] | None:
        found = own(txn, watches)
        if not found:
            return found
        rows, changed = nodes.all_watch(txn)
        watches.add(changed)
        others = {
            ip for row in rows if row.name != name for ip in (*row.internal_ips, *row.external_ips)
        }
        return tuple(ip for ip in found if ip not in others)

    return read


def none_known(txn: ReadTxn, watches: WatchSet) -> tuple[IP, ...]:
    """No Node object is followed."""
    return ()
