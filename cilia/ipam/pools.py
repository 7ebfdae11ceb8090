# SPDX-License-Identifier: Apache-2.0
"""The prefixes that the addresses of this node's pods come from."""

from __future__ import annotations

from cilia.ipam.allocator import usable
from cilia.ipam.options import STATIC, IPAMOptions
from statedb import ReadTxn, Table, WatchSet
from tables.addressing import IP, Prefix, special_use
from tables.cluster.nodes import Node
from tables.node.devices import GROUP_CHAINED, GROUP_ENDPOINT, Device

__all__ = ["NodePools"]


class NodePools:
    """The pools of this node, by its Node object or by its options.

    A prefix is refused that is nobody's to give (multicast, loopback), and one that has an address
    of the node's own devices: its pods would be taken for the node. Then there is no pool at all,
    for pods get addresses of all families or none.
    """

    def __init__(
        self,
        options: IPAMOptions,
        nodes: Table[Node],
        devices: Table[Device],
        families: frozenset[bool],
        own_devices: frozenset[str],
        is_external: bool = False,
    ) -> None:
        """`families`: True for IPv6, False for IPv4. `own_devices`: those of the pods' gateway.
        `is_external`: another plugin gives addresses, and there are no pools.
        """
        self._is_external = is_external
        self._options = options
        self._nodes = nodes
        self._devices = devices
        self._families = families
        self._own_devices = own_devices

    def __call__(self, txn: ReadTxn, watches: WatchSet | None = None) -> tuple[Prefix, ...]:
        """Return the pools, none as long as they are not known, and add to the set what closes when
        they change.
        """
        if watches is not None:
            watches.add(self._devices.all_watch(txn)[1], self._devices.initialized_watch(txn)[1])
            watches.add(self._nodes.get_watch(txn, self._options.node_name)[1])
        if not self._devices.initialized(txn) or self.refusals(txn):
            return ()
        return tuple(self._wanted(txn))

    def refusals(self, txn: ReadTxn) -> list[str]:
        """Return a sentence for each prefix that is refused."""
        return [wrong for pool in self._wanted(txn) if (wrong := self._wrong(txn, pool))]

    def _wanted(self, txn: ReadTxn) -> list[Prefix]:
        pools: list[Prefix] = []
        if self._is_external:
            return pools
        if self._options.ipam == STATIC:
            pools = list(self._options.static_pools)
        else:
            node = self._nodes.get(txn, self._options.node_name)
            pools = node.pod_prefixes if node is not None else []
        return [pool for pool in pools if pool.is_ipv6 in self._families]

    def _wrong(self, txn: ReadTxn, pool: Prefix) -> str:
        first, count = usable(pool)
        if count < 1:
            return f"{pool} has no address for a pod"
        ends = (pool.ip, IP((first + count - 1).to_bytes(16, "big")))
        if use := next(filter(None, map(special_use, ends)), ""):
            return f"{pool} is not for pods: {use} is in it"
        for device in self._devices.all(txn):
            of_pods = device.group in (GROUP_ENDPOINT, GROUP_CHAINED)
            if device.name in self._own_devices or of_pods:
                continue
            for row in device.addresses:
                if pool.contains(row.address):
                    return f"{pool} has the node's own address {row.address} ({device.name})"
        return ""
