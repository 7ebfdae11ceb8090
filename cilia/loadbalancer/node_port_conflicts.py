# SPDX-License-Identifier: Apache-2.0
"""Tells of addresses that a Service cannot have because they are another one's node port here.

A load balancer's or an external address may be the node's own; in the range of node ports such an
address and port is a node port as soon as a Service has it. The node port stays, the other frontend
is not served on this node (see `reconcilers.loadbalancer.node_ports`), and its owner is told here.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from cilia.loadbalancer.options import LoadBalancerOptions
from reconcilers.loadbalancer.node_ports import NodePortAddresses
from statedb import DB, ChangeIterator, ReadTxn, RWTable, Table, WatchSet
from tables.addressing import L3n4Addr, ServiceName
from tables.loadbalancer.frontends import Frontend, FrontendType
from tables.node.node_addresses import NodeAddress
from tables.problems import Problem, replace_problems

_FIELDS: Final = {
    FrontendType.LOAD_BALANCER: "status.loadBalancer.ingress",
    FrontendType.EXTERNAL_IPS: "spec.externalIPs",
}


class NodePortConflicts:
    """One task calls `run`."""

    def __init__(
        self,
        db: DB,
        frontends: RWTable[Frontend],
        node_addresses: Table[NodeAddress],
        problems: RWTable[Problem],
        options: LoadBalancerOptions,
        *,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._db = db
        self._frontends = frontends
        self._node_addresses = node_addresses
        self._node_ports = NodePortAddresses(node_addresses, options)
        self._problems = problems
        self._now = now
        # A cache of the table: the rows that could be in the way of a node port. There are few.
        self._candidates: set[L3n4Addr] = set()
        self._told: set[ServiceName] = set()

    async def run(self) -> None:
        """Follow for ever; may be called again after a failure."""
        with self._db.write_txn(self._frontends) as wtxn:
            changes = self._frontends.changes(wtxn)
        self._candidates.clear()
        try:
            while True:
                await self.step(changes).wait()
        finally:
            changes.close()

    def step(self, iterator: ChangeIterator[Frontend]) -> WatchSet:
        """Tell what there is to tell; return what to wait for."""
        txn = self._db.read_txn()
        changes, changed = iterator.next(txn)
        watches = WatchSet(changed, self._node_addresses.all_watch(txn)[1])
        for change in changes:
            fe = change.obj
            if not change.deleted and self._node_ports.could_be_node_port(fe):
                self._candidates.add(fe.address)
            else:
                self._candidates.discard(fe.address)
        if self._candidates or self._told:
            self._tell(self._conflicts(txn))
        return watches

    def _conflicts(self, txn: ReadTxn) -> dict[ServiceName, list[Problem]]:
        self._node_ports.refresh(txn)
        found: dict[ServiceName, list[Problem]] = {}
        for address in sorted(self._candidates):
            fe = self._frontends.get(txn, address)
            if fe is None:
                continue
            owner = self._node_ports.node_port_at(lambda a: self._frontends.get(txn, a), fe)
            if owner is not None and owner.service_name != fe.service_name:
                found.setdefault(fe.service_name, []).append(_problem(fe, owner))
        return found

    def _tell(self, conflicts: dict[ServiceName, list[Problem]]) -> None:
        with self._db.write_txn(self._problems) as wtxn:
            for name in self._told | conflicts.keys():
                problems = conflicts.get(name, ())
                replace_problems(self._problems, wtxn, _origin(name), problems, self._now())
        self._told = set(conflicts)


def _origin(name: ServiceName) -> str:
    return f"node-ports:{name}"


def _problem(fe: Frontend, owner: Frontend) -> Problem:
    name = fe.service_name
    return Problem(
        _origin(name),
        f"{fe.address} is an address of this node and node port {fe.address.port} of Service"
        f" {owner.service_name}, which keeps it",
        kind="Service",
        namespace=name.namespace,
        name=name.name,
        field=_FIELDS[fe.type],
    )
