# SPDX-License-Identifier: Apache-2.0
"""The addresses that somebody else than a Service answers at: those of Node objects, of the devices
of this node, of its pods, and of the prefixes that nodes give to pods.

A load balancer's address may be one of them (k3s announces its Services at the nodes' own, a
virtual machine in a pod may be announced at its pod's). What else answers there is none of ours, so
such an address has no wildcard entry.
"""

from collections.abc import Iterable
from typing import Any

from statedb import Channel, ReadTxn, Table
from tables.addressing import AT_IP, IP, L3n4Addr, Prefix
from tables.cluster.nodes import Node
from tables.cluster.pods import Pod
from tables.node.devices import Device
from tables.node.node_addresses import NodeAddress


class AddressSet:
    """Prefixes, asked for single addresses: one look-up for each length of prefix in it."""

    def __init__(self, prefixes: Iterable[Prefix] = ()) -> None:
        self._networks: dict[int, set[int]] = {}  # by the bits behind the prefix
        for prefix in prefixes:
            free = prefix.ip.bits - prefix.length
            network = int.from_bytes(prefix[:16], "big") >> free
            self._networks.setdefault(free, set()).add(network)

    def has(self, packed: bytes) -> bool:
        """True if a prefix contains the address, 16 bytes as in `IP`."""
        if not self._networks:
            return False
        address = int.from_bytes(packed, "big")
        for free, networks in self._networks.items():  # noqa: SIM110 (compiled, a loop is faster)
            if address >> free in networks:
                return True
        return False


class MachineAddresses:
    """The addresses as of the last `refresh`; a cache of four tables, of which three may lack."""

    def __init__(
        self,
        node_addresses: Table[NodeAddress],
        nodes: Table[Node] | None = None,
        devices: Table[Device] | None = None,
        pods: Table[Pod] | None = None,
    ) -> None:
        self._node_addresses = node_addresses
        self._nodes = nodes
        self._devices = devices
        self._pods = pods
        self._objects: list[Table[Any]] = [t for t in (nodes, pods) if t is not None]
        self._tables = [t for t in (node_addresses, nodes, devices, pods) if t is not None]
        self._revisions: list[int] = []
        # Of Node objects, of which there are thousands while pods change all the time.
        self._of_nodes: frozenset[Prefix] = frozenset()
        self._nodes_revision = -1
        self._all = AddressSet()
        #: True if each Node object, and each pod of this node, is known.
        self.complete = True
        #: Of this node, those that its traffic may leave with.
        self.own: tuple[IP, ...] = ()

    def refresh(self, txn: ReadTxn) -> None:
        self.complete = all(table.initialized(txn) for table in self._objects)
        revisions = [table.revision(txn) for table in self._tables]
        if revisions != self._revisions:
            self._all = AddressSet(self.read(txn))
            self.own = self.read_own(txn)
            self._revisions = revisions

    def has(self, addr: L3n4Addr) -> bool:
        """True if a machine or a pod has the address, or may get it."""
        return self._all.has(addr[AT_IP])

    def read(self, txn: ReadTxn) -> frozenset[Prefix]:
        found: list[IP] = [row.address for row in self._node_addresses.all(txn)]
        for dev in self._devices.all(txn) if self._devices is not None else ():
            found += [row.address for row in dev.addresses]
        for pod in self._pods.all(txn) if self._pods is not None else ():
            found += pod.ips
        return self._read_nodes(txn).union([Prefix.of(ip, ip.bits) for ip in found])

    def _read_nodes(self, txn: ReadTxn) -> frozenset[Prefix]:
        if self._nodes is None:
            return self._of_nodes
        revision = self._nodes.revision(txn)
        if revision != self._nodes_revision:
            prefixes: set[Prefix] = set()
            for node in self._nodes.all(txn):
                prefixes.update(node.pod_prefixes)
                for ip in node.internal_ips + node.external_ips:
                    prefixes.add(Prefix.of(ip, ip.bits))
            self._of_nodes, self._nodes_revision = frozenset(prefixes), revision
        return self._of_nodes

    def read_own(self, txn: ReadTxn) -> tuple[IP, ...]:
        return tuple(sorted({row.address for row in self._node_addresses.all(txn)}))

    def watch(self, txn: ReadTxn) -> list[Channel]:
        """Return what closes when `read` may return something else."""
        return [table.all_watch(txn)[1] for table in self._tables]


__all__ = ["AddressSet", "MachineAddresses"]
