# SPDX-License-Identifier: Apache-2.0
"""Node objects to ``cluster-nodes``: a row for each address that a node has in its object.

An address that two objects have is this node's, if one of them is, else that of the first by name.
Addresses that no packet can come from are left out.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from statedb import DB, ReadTxn, RWTable, Table, WatchSet
from tables.addressing import IP
from tables.cluster.nodes import Node
from tables.datapath.cluster_nodes import ClusterNode

__all__ = ["ClusterNodesController", "rows_of"]

INITIALIZER: Final = "nodes"
#: Nodes of a large cluster are listed one after the other.
SETTLE_S: Final = 0.005


def rows_of(nodes: Iterable[Node], node_name: str) -> dict[IP, ClusterNode]:
    """Return the rows by address; `node_name` is that of this node."""
    rows: dict[IP, ClusterNode] = {}
    for node in sorted(nodes, key=lambda node: (node.name != node_name, node.name)):
        for ip in (*node.internal_ips, *node.external_ips):
            if not ip.is_loopback and not ip.is_unspecified:
                rows.setdefault(ip, ClusterNode(ip, node.name, node.name == node_name))
    return rows


class ClusterNodesController:
    """One task calls `run`. Owns all of ``cluster-nodes``."""

    def __init__(
        self, db: DB, nodes: Table[Node], cluster_nodes: RWTable[ClusterNode], node_name: str
    ) -> None:
        self._db = db
        self._nodes = nodes
        self._table = cluster_nodes
        self._node_name = node_name
        with db.write_txn(cluster_nodes) as wtxn:
            self._complete = cluster_nodes.register_initializer(wtxn, INITIALIZER)

    async def run(self) -> None:
        """Follow the Node objects for ever."""
        while True:
            await self._db.look(self._step).wait(settle_s=SETTLE_S)

    def _step(self, txn: ReadTxn) -> WatchSet:
        """Write what differs; return what closes when there may be more to do.

        The table is initialized once all Node objects were listed.
        """
        nodes, changed = self._nodes.all_watch(txn)
        listed, became_listed = self._nodes.initialized_watch(txn)
        wanted = rows_of(nodes, self._node_name)
        with self._db.write_txn(self._table) as wtxn:
            for old in list(self._table.all(wtxn)):
                if old.address not in wanted:
                    self._table.delete(wtxn, old)
            for row in wanted.values():
                old_row = self._table.get(wtxn, row.address)
                if old_row is None or (old_row.node, old_row.is_self) != (row.node, row.is_self):
                    self._table.insert(wtxn, row)
            if listed:
                self._complete(wtxn)
        return WatchSet(changed) if listed else WatchSet(changed, became_listed)
