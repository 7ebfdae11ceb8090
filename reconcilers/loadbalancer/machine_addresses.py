# SPDX-License-Identifier: Apache-2.0
"""The addresses that machines have: Node objects of the cluster, and the devices of this node.

A load balancer's address may be one of them (k3s announces its Services at the nodes' own). What
else answers there is none of ours, so such an address has no wildcard entry.
"""

from statedb import Channel, ReadTxn, Table
from tables.addressing import AT_IP, IP, L3n4Addr
from tables.cluster.nodes import Node
from tables.node.devices import Device
from tables.node.node_addresses import NodeAddress


class MachineAddresses:
    """The addresses as of the last `refresh`; a cache of three tables, of which two may lack."""

    def __init__(
        self,
        node_addresses: Table[NodeAddress],
        nodes: Table[Node] | None = None,
        devices: Table[Device] | None = None,
    ) -> None:
        self._node_addresses = node_addresses
        self._nodes = nodes
        self._devices = devices
        self._tables = [t for t in (node_addresses, nodes, devices) if t is not None]
        self._revisions: list[int] = []
        #: True if each Node object is known.
        self.complete = True
        self.all: frozenset[IP] = frozenset()
        #: Of this node, those that its traffic may leave with.
        self.own: tuple[IP, ...] = ()

    def refresh(self, txn: ReadTxn) -> None:
        self.complete = self._nodes is None or self._nodes.initialized(txn)
        revisions = [table.revision(txn) for table in self._tables]
        if revisions != self._revisions:
            self.all = self.read(txn)
            self.own = self.read_own(txn)
            self._revisions = revisions

    def has(self, addr: L3n4Addr) -> bool:
        """True if a machine has the address."""
        return bool(self.all) and addr[AT_IP] in self.all

    def read(self, txn: ReadTxn) -> frozenset[IP]:
        found = {row.address for row in self._node_addresses.all(txn)}
        for node in self._nodes.all(txn) if self._nodes is not None else ():
            found.update(node.internal_ips, node.external_ips)
        for dev in self._devices.all(txn) if self._devices is not None else ():
            found.update(row.address for row in dev.addresses)
        return frozenset(found)

    def read_own(self, txn: ReadTxn) -> tuple[IP, ...]:
        return tuple(sorted({row.address for row in self._node_addresses.all(txn)}))

    def watch(self, txn: ReadTxn) -> list[Channel]:
        """Return what closes when `read` may return something else."""
        return [table.all_watch(txn)[1] for table in self._tables]


__all__ = ["MachineAddresses"]
