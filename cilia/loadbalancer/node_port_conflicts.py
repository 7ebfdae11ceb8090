# SPDX-License-Identifier: Apache-2.0
"""Tells of addresses that a Service cannot have because they are another one's node port here.

A load balancer's or an external address may be the node's own; in the range of node ports such an
address and port is a node port as soon as a Service has it. The node port stays, the other frontend
is refused (see `reconcilers.loadbalancer.node_ports`), and its owner is told here. A frontend whose
refusal begins or ends with somebody else's row is written as pending here.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from functools import partial
from typing import Final

from bpf.maps.lb_numbers import FrontendType
from cilia.loadbalancer.options import LoadBalancerOptions
from cilia.loadbalancer.service_problems import service_problem
from reconcilers.loadbalancer.node_ports import NodePortAddresses
from reconcilers.operations import Refusal
from statedb import DB, ChangeIterator, ReadTxn, RWTable, StatusKind, Table, WatchSet
from statedb.status import pending, set_status
from tables.addressing import L3n4Addr, ServiceName
from tables.loadbalancer.frontends import Frontend
from tables.node.node_addresses import NodeAddress
from tables.problems import Problem, replace_problems

_FIELDS: Final = {
    FrontendType.LOAD_BALANCER: "status.loadBalancer.ingress",
    FrontendType.EXTERNAL_IPS: "spec.externalIPs",
    FrontendType.LOCAL_REDIRECT: "spec.redirectFrontend.addressMatcher",
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
        # Origins of problems.
        self._told: set[str] = set()

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
            elif self._candidates:
                self._candidates.discard(fe.address)
        if self._candidates or self._told:
            conflicts = self._conflicts(txn)
            self._tell(conflicts)
            self._ask_anew(txn, conflicts)
        return watches

    def _conflicts(self, txn: ReadTxn) -> dict[L3n4Addr, Problem]:
        self._node_ports.refresh(txn)
        found: dict[L3n4Addr, Problem] = {}
        for address in sorted(self._candidates):
            fe = self._frontends.get(txn, address)
            if fe is None:
                continue
            refusal = self._node_ports.refusal(partial(self._frontends.get, txn), fe)
            if refusal is not None:
                found[address] = _problem(fe, refusal)
        return found

    def _ask_anew(self, txn: ReadTxn, conflicts: Collection[L3n4Addr]) -> None:
        """Have each row attempted whose status says what is not so any more."""
        rows = [fe for addr in self._candidates if (fe := self._frontends.get(txn, addr))]
        stale = [fe.address for fe in rows if _is_stale(fe, fe.address in conflicts)]
        if not stale:
            return
        with self._db.write_txn(self._frontends) as wtxn:
            for address in stale:
                fe = self._frontends.get(wtxn, address)
                if fe is not None and _is_stale(fe, address in conflicts):
                    self._frontends.insert(wtxn, set_status(fe, pending()))

    def _tell(self, conflicts: dict[L3n4Addr, Problem]) -> None:
        problems: dict[str, list[Problem]] = {}
        for problem in conflicts.values():
            problems.setdefault(problem.origin, []).append(problem)
        with self._db.write_txn(self._problems) as wtxn:
            for origin in self._told | problems.keys():
                told = problems.get(origin, ())
                replace_problems(self._problems, wtxn, origin, told, self._now())
        self._told = set(problems)


def _is_stale(fe: Frontend, refused: bool) -> bool:
    """True if the row says that it is in force and it is not, or the other way round."""
    return fe.status.kind is (StatusKind.DONE if refused else StatusKind.REFUSED)


def _origin(name: ServiceName) -> str:
    return f"node-ports:{name}"


def _problem(fe: Frontend, refusal: Refusal) -> Problem:
    name = fe.service_name
    return service_problem(_origin(name), name, str(refusal), _FIELDS[fe.type])
