# SPDX-License-Identifier: Apache-2.0
"""``frontend-claims``: addresses that services ask for and another one has.

A row has all that was asked of the address, so that it can be granted in the transaction that
frees it. The load-balancer writer alone writes it.
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


class FrontendClaim(msgspec.Struct, frozen=True, gc=False):
    service: Service
    params: FrontendParams
    owner: ServiceName
    # Why the owner has it, as the end of a sentence.
    reason: str
    # Seconds since the epoch, from the first refusal.
    since: float

    @property
    def address(self) -> L3n4Addr:
        """The address that is asked for."""
        return self.params.address

    def __str__(self) -> str:
        return f"{self.address} is owned by {self.owner}, {self.reason}"


def to_json(claim: FrontendClaim) -> dict[str, Any]:
    return {
        "Address": str(claim.address),
        "Type": claim.params.type.value,
        "Service": str(claim.service.name),
        "Owner": str(claim.owner),
        "Reason": claim.reason,
        "Since": rfc3339(claim.since),
    }


def _key(claim: FrontendClaim) -> tuple[L3n4Addr, ServiceName]:
    return claim.params.address, claim.service.name


def _service(claim: FrontendClaim) -> ServiceName:
    return claim.service.name


def _address(claim: FrontendClaim) -> L3n4Addr:
    return claim.params.address


KEY: Final = Index("key", key=_key)
ADDRESS: Final = Index("address", key=_address, unique=False, parse=parse_address_key)
SERVICE: Final = Index("service", key=_service, unique=False, parse=str)

COLUMNS: Final = (
    Column("Address", lambda claim: str(claim.address)),
    Column("Type", lambda claim: claim.params.type.value),
    Column("Service", lambda claim: str(claim.service.name)),
    Column("Owner", lambda claim: str(claim.owner)),
    Column("Reason", lambda claim: claim.reason),
    Column("Since", lambda claim: age(claim.since)),
)


def new_frontend_claims_table(db: DB) -> RWTable[FrontendClaim]:
    """Registers ``frontend-claims`` with the database."""
    return new_table(
        db,
        TABLE_NAME,
        KEY,
        ADDRESS,
        SERVICE,
        columns=COLUMNS,
        row_type=FrontendClaim,
        to_json=to_json,
    )
