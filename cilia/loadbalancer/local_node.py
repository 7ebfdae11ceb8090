# SPDX-License-Identifier: Apache-2.0
"""What load balancing needs to know of the node that it runs on, followed as the node changes.

Its labels decide over zones and over services meant for some nodes only, its addresses over proxy
delegation.
"""

from __future__ import annotations

from collections.abc import Callable

from cilia.loadbalancer.services.writer import Writer
from cilia.loadbalancer.this_node import LocalNode
from statedb import Channel, Table
from tables.cluster.nodes import Node


class LocalNodeController:
    """Keeps ``writer.node`` equal to the node's row; without a row, the name is all that is known.

    ``changed`` is called after each change, for whoever converts by the node's labels.
    """

    def __init__(
        self,
        writer: Writer,
        nodes: Table[Node],
        *,
        changed: Callable[[], None] = lambda: None,
    ) -> None:
        self._writer = writer
        self._nodes = nodes
        self._changed = changed

    async def run(self) -> None:
        """Ends only when it is cancelled."""
        while True:
            await self.step().wait()

    def step(self) -> Channel:
        """Takes the node as it is now; returns what closes when it changes."""
        name = self._writer.node.name
        row, channel = self._nodes.get_watch(self._writer.db.read_txn(), name)
        node = local_node(name, row)
        if node != self._writer.node:
            self._writer.set_node(node)
            self._changed()
        return channel


def local_node(name: str, row: Node | None) -> LocalNode:
    if row is None:
        return LocalNode(name)
    return LocalNode(name, row.labels, frozenset((*row.internal_ips, *row.external_ips)))
