# SPDX-License-Identifier: Apache-2.0
"""The table of claims as a queue: what waits, for whom, and what its owner is told of it.

Used by the writer inside its transactions. Which claims can be granted is said by ``claims``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import msgspec

from statedb import RWTable, Table, WriteTxn
from tables.addressing import L3n4Addr, ServiceName
from tables.loadbalancer.frontend_claims import ADDRESS, Conflict, FrontendClaim
from tables.loadbalancer.frontends import Frontend, FrontendParams
from tables.loadbalancer.services import Service
from tables.problems import Problem, replace_problems


class ClaimQueue:
    """Claims, and for each a problem row that lasts as long."""

    def __init__(
        self,
        frontends: Table[Frontend],
        claims: RWTable[FrontendClaim],
        problems: RWTable[Problem],
        now: Callable[[], float],
    ) -> None:
        self._frontends = frontends
        self._claims = claims
        self._problems = problems
        self._now = now

    def conflicts(
        self, wtxn: WriteTxn, name: ServiceName, wanted: Iterable[FrontendParams]
    ) -> list[Conflict]:
        """Addresses that others own."""
        found = []
        for params in wanted:
            fe = self._frontends.get(wtxn, params.address)
            if fe is not None and fe.service_name != name:
                found.append(Conflict(params.address, fe.service_name))
        return found

    def put(
        self,
        wtxn: WriteTxn,
        svc: Service,
        wanted: Iterable[FrontendParams],
        conflicts: Sequence[Conflict],
    ) -> None:
        """Keeps what was asked for, at its place in the queue if it was asked before."""
        waiting = self._claims.get(wtxn, svc.name)
        since = waiting.since if waiting is not None else self._now()
        claim = FrontendClaim(svc, tuple(wanted), tuple(conflicts), since)
        if claim == waiting:
            return
        self._claims.insert(wtxn, claim)
        problems = [_problem(svc.name, conflict) for conflict in conflicts]
        replace_problems(self._problems, wtxn, _origin(svc.name), problems, self._now())

    def drop(self, wtxn: WriteTxn, name: ServiceName) -> FrontendClaim | None:
        """Takes a service out of the queue, if it is in it."""
        if not self._claims.num_objects(wtxn):
            return None
        claim = self._claims.get(wtxn, name)
        if claim is not None:
            self._claims.delete(wtxn, claim)
            replace_problems(self._problems, wtxn, _origin(name), (), self._now())
        return claim

    def asking_for(self, wtxn: WriteTxn, addresses: Iterable[L3n4Addr]) -> list[FrontendClaim]:
        """Claims that ask for these addresses, and those that they in turn wait for; with their
        conflicts as of now, which may not be what the table has."""
        found: dict[ServiceName, FrontendClaim] = {}
        open_ = list(addresses)
        while open_:
            for claim in self._claims.list(wtxn, open_.pop(), ADDRESS):
                if claim.service.name not in found:
                    now = self._as_of_now(wtxn, claim)
                    found[claim.service.name] = now
                    open_ += self._asked_by_owners(wtxn, now)
        return list(found.values())

    def _asked_by_owners(self, wtxn: WriteTxn, claim: FrontendClaim) -> list[L3n4Addr]:
        owners = (self._claims.get(wtxn, conflict.owner) for conflict in claim.conflicts)
        return [p.address for owner in owners if owner is not None for p in owner.frontends]

    def _as_of_now(self, wtxn: WriteTxn, claim: FrontendClaim) -> FrontendClaim:
        conflicts = self.conflicts(wtxn, claim.service.name, claim.frontends)
        return msgspec.structs.replace(claim, conflicts=tuple(conflicts))


def _origin(name: ServiceName) -> str:
    return f"loadbalancer:{name}"


def _problem(name: ServiceName, conflict: Conflict) -> Problem:
    return Problem(
        _origin(name),
        f"{conflict}, which keeps it",
        kind="Service",
        namespace=name.namespace,
        name=name.name,
    )
