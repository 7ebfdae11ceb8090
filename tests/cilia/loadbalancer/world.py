# SPDX-License-Identifier: Apache-2.0
"""The load-balancing tables with their writer, and a clock that counts."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from bpf.maps.lb_numbers import FrontendType
from cilia.loadbalancer.options import LoadBalancerOptions
from cilia.loadbalancer.services.writer import KEEP, Keep, LoadBalancerTables, ServiceChange, Writer
from cilia.loadbalancer.this_node import LocalNode
from statedb import DB
from tables.addressing import L3n4Addr, ServiceName
from tables.loadbalancer.backends import Backend
from tables.loadbalancer.frontends import Frontend, FrontendParams
from tables.loadbalancer.services import Service
from tables.problems import Problem, new_problems_table
from tables.sources import Source


def name_of(text: str) -> ServiceName:
    return ServiceName(f"test/{text}")


def service(name: str, **fields: Any) -> Service:
    return Service(name_of(name), Source.K8S, **fields)


def params(address: str, type_: FrontendType = FrontendType.CLUSTER_IP) -> FrontendParams:
    addr = L3n4Addr.parse(address)
    return FrontendParams(addr, type_, "", addr.port)


def backend(name: str, address: str, **fields: Any) -> Backend:
    return Backend(name_of(name), L3n4Addr.parse(address), **fields)


class World:
    """Changes go in one a transaction; what the tables then say comes out as text."""

    def __init__(
        self, config: LoadBalancerOptions | None = None, node: LocalNode | None = None
    ) -> None:
        self.db = DB()
        self.tables = LoadBalancerTables(self.db, new_problems_table(self.db))
        self._warnings: list[Problem] = []
        with self.db.write_txn(self.tables.problems) as wtxn:
            self._problem_changes = self.tables.problems.changes(wtxn)
        clock = itertools.count(1)
        self.writer = Writer(
            self.db,
            self.tables,
            config or LoadBalancerOptions(),
            node or LocalNode("here"),
            now=lambda: float(next(clock)),
        )

    @property
    def warnings(self) -> list[Problem]:
        """Every problem that came, in order, also if it is gone."""
        changes, _ = self._problem_changes.next(self.db.read_txn())
        self._warnings += [change.obj for change in changes if not change.deleted]
        return self._warnings

    def apply(self, *changes: ServiceChange) -> None:
        with self.writer.write_txn() as wtxn:
            for change in changes:
                self.writer.apply(wtxn, change)

    def upsert(
        self, name: str, *addresses: str, backends: Sequence[str] | Keep = KEEP, **fields: Any
    ) -> None:
        self.apply(change(name, *addresses, backends=backends, **fields))

    def delete(self, name: str) -> None:
        self.apply(ServiceChange(name_of(name), None))

    def set_backends(self, name: str, *addresses: str, **fields: Any) -> None:
        rows = [backend(name, address, **fields) for address in addresses]
        source = fields.get("source", Source.K8S)
        self.apply(ServiceChange(name_of(name), backends=rows, source=source))

    def frontend(self, address: str) -> Frontend:
        fe = self.tables.frontends.get(self.db.read_txn(), L3n4Addr.parse(address))
        assert fe is not None
        return fe

    @property
    def services(self) -> list[str]:
        return [svc.name.name for svc in self.tables.services.all(self.db.read_txn())]

    @property
    def frontends(self) -> dict[str, str]:
        """Owner by address."""
        rows = self.tables.frontends.all(self.db.read_txn())
        return {str(fe.address): fe.service_name.name for fe in rows}

    @property
    def waiting(self) -> dict[str, list[str]]:
        """Claims by service: the addresses and their owners."""
        found: dict[str, list[str]] = {}
        for claim in self.tables.claims.all(self.db.read_txn()):
            asked = found.setdefault(claim.service.name.name, [])
            asked.append(f"{claim.address} {claim.owner.name}")
        return found

    @property
    def problems(self) -> list[str]:
        return [str(problem) for problem in self.tables.problems.all(self.db.read_txn())]

    def backends_of(self, address: str) -> list[str]:
        return [str(be.address) for be in self.frontend(address).backends]

    def revisions(self) -> list[int]:
        txn, t = self.db.read_txn(), self.tables
        tables = (t.services, t.frontends, t.backends, t.claims, t.problems)
        return [table.revision(txn) for table in tables]


def change(
    name: str,
    *addresses: str,
    backends: Sequence[str] | Keep = KEEP,
    type: FrontendType = FrontendType.CLUSTER_IP,
    **fields: Any,
) -> ServiceChange:
    """A change that gives a service these frontends (and, if said, these backends)."""
    rows = backends if backends is KEEP else [backend(name, address) for address in backends]
    wanted = sorted((params(address, type) for address in addresses), key=lambda p: p.address)
    return ServiceChange(name_of(name), service(name, **fields), wanted, rows)
