# SPDX-License-Identifier: Apache-2.0
"""Which of several services gets an address, and the rows and problems of those that do not.

The order does not depend on which object was read first, so that all nodes agree and a restart
changes nothing:

    1. what the address is to the service, from an address that the cluster gave to one service
       alone (ClusterIP) to one that anybody may write into an object (external IP);
    2. the older object, by its creation timestamp;
    3. the name.

Objects without a creation timestamp (of files) come after those that have one; of two such, the
one that has the address keeps it, and who waits longest is the next.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from bpf.maps.lb_numbers import FrontendType
from cilia.loadbalancer.service_problems import service_problem
from statedb import RWTable, WriteTxn
from tables.addressing import L3n4Addr, ServiceName
from tables.loadbalancer.frontend_claims import ADDRESS, SERVICE, FrontendClaim
from tables.loadbalancer.frontends import Frontend, FrontendParams
from tables.loadbalancer.services import Service
from tables.problems import Problem, replace_problems

_RANK: Final = {
    FrontendType.CLUSTER_IP: 0,
    FrontendType.NODE_PORT: 1,
    FrontendType.HOST_PORT: 2,
    FrontendType.LOAD_BALANCER: 3,
    FrontendType.EXTERNAL_IPS: 4,
    FrontendType.LOCAL_REDIRECT: 5,
}
_AFTER_ALL: Final = float("inf")


def precedes(type_: FrontendType, service: Service, owner: Frontend) -> bool:
    """Whether the service, to which the address is of this type, takes it from its owner."""
    ours, theirs = _standing(type_, service), _standing(owner.type, owner.service)
    if ours != theirs:
        return ours < theirs
    return service.created_at > 0 and service.name < owner.service_name


def first(claims: list[FrontendClaim]) -> FrontendClaim:
    """Return the claim to be met of several that wait for one address."""
    return min(claims, key=_order)


def _standing(type_: FrontendType, service: Service) -> tuple[int, float]:
    return _RANK[type_], service.created_at or _AFTER_ALL


def _order(claim: FrontendClaim) -> tuple[int, float, float, ServiceName]:
    rank, created_at = _standing(claim.params.type, claim.service)
    since = 0.0 if claim.service.created_at else claim.since
    return rank, created_at, since, claim.service.name


def reason(type_: FrontendType, service: Service, owner: Frontend) -> str:
    """Return why the owner has the address before the service, as the end of a sentence."""
    if _RANK[type_] != _RANK[owner.type]:
        return f"whose {owner.type} comes before an address of type {type_}"
    if owner.service.created_at and not service.created_at:
        return "which has a creation timestamp"
    if owner.service.created_at == service.created_at:
        return "whose name comes first" if service.created_at else "which keeps it"
    return "which is older"


class Claims:
    """The rows of claims, and for each a problem that lasts as long. Used by the writer inside its
    transactions.
    """

    def __init__(
        self,
        claims: RWTable[FrontendClaim],
        problems: RWTable[Problem],
        now: Callable[[], float],
    ) -> None:
        self._claims = claims
        self._problems = problems
        self._now = now

    def any(self, wtxn: WriteTxn) -> bool:
        """Whether any service waits for an address."""
        return self._claims.num_objects(wtxn) > 0

    def of(self, wtxn: WriteTxn, name: ServiceName) -> dict[L3n4Addr, FrontendClaim]:
        """Return the claims of a service by address."""
        if not self._claims.num_objects(wtxn):
            return {}
        return {claim.address: claim for claim in self._claims.list(wtxn, name, SERVICE)}

    def at(self, wtxn: WriteTxn, address: L3n4Addr) -> list[FrontendClaim]:
        """Return the claims to an address."""
        return self._claims.list(wtxn, address, ADDRESS)

    def put(
        self, wtxn: WriteTxn, service: Service, params: FrontendParams, owner: Frontend
    ) -> None:
        """Keep what is asked for, with the time of the first refusal."""
        waiting = self._claims.get(wtxn, (params.address, service.name))
        since = waiting.since if waiting is not None else self._now()
        why = reason(params.type, service, owner)
        claim = FrontendClaim(service, params, owner.service_name, why, since)
        if claim == waiting:
            return
        self._claims.insert(wtxn, claim)
        self._tell(wtxn, service.name)

    def drop(self, wtxn: WriteTxn, claim: FrontendClaim) -> None:
        """Forget a claim that was met or withdrawn."""
        self._claims.delete(wtxn, claim)
        self._tell(wtxn, claim.service.name)

    def _tell(self, wtxn: WriteTxn, name: ServiceName) -> None:
        """Make the service's problems those of its claims."""
        origin = f"loadbalancer:{name}"
        claims = self._claims.list(wtxn, name, SERVICE)
        problems = [service_problem(origin, name, str(claim)) for claim in claims]
        replace_problems(self._problems, wtxn, origin, problems, self._now())
