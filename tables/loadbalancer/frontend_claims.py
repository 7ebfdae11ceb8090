# SPDX-License-Identifier: Apache-2.0
"""``frontend-claims``: services that wait because another one owns an address they ask for.

A row is the whole of what was asked, so that it can be granted in the transaction that frees the
address. The load-balancer writer alone writes it.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from statedb import DB, Column, Index, RWTable, new_table
from tables.addressing import L3n4Addr, ServiceName, parse_address_key
from tables.loadbalancer.frontends import FrontendParams
from tables.loadbalancer.services import Service
from tables.times import age, rfc3339

TABLE_NAME: Final = "frontend-claims"


class Conflict(msgspec.Struct, frozen=True, gc=False):
    address: L3n4Addr
    owner: ServiceName

    def __str__(self) -> str:
        return f"{self.address} is owned by {self.owner}"


class FrontendClaim(msgspec.Struct, frozen=True, gc=False):
    service: Service
    frontends: tuple[FrontendParams, ...]
    conflicts: tuple[Conflict, ...]
    # Seconds since the epoch, from the first refusal: who waits longest is served first.
    since: float


def to_json(claim: FrontendClaim) -> dict[str, Any]:
    return {
        "Service": str(claim.service.name),
        "Frontends": [str(params.address) for params in claim.frontends],
        "Conflicts": [
            {"Address": str(conflict.address), "Owner": str(conflict.owner)}
            for conflict in claim.conflicts
        ],
        "Since": rfc3339(claim.since),
    }


def _name(claim: FrontendClaim) -> ServiceName:
    return claim.service.name


def _addresses(claim: FrontendClaim) -> list[L3n4Addr]:
    """All that is asked for: an address that was free may get an owner while the claim waits."""
    return [params.address for params in claim.frontends]


NAME: Final = Index("name", key=_name, parse=str)
ADDRESS: Final = Index("address", keys=_addresses, unique=False, parse=parse_address_key)

COLUMNS: Final = (
    Column("Service", lambda claim: str(claim.service.name)),
    Column("Conflicts", lambda claim: ", ".join(map(str, claim.conflicts))),
    Column("Since", lambda claim: age(claim.since)),
)


def new_frontend_claims_table(db: DB) -> RWTable[FrontendClaim]:
    """Registers ``frontend-claims`` with the database."""
    return new_table(
        db, TABLE_NAME, NAME, ADDRESS, columns=COLUMNS, row_type=FrontendClaim, to_json=to_json
    )
