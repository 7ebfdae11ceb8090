# SPDX-License-Identifier: Apache-2.0
"""``ip-allocations``: the addresses of this node's pools that are taken, and by whom.

Who frees an address leaves it in quarantine for a while: packets and rules of its former owner may
still be under way.
"""

from __future__ import annotations

from operator import attrgetter
from typing import Any, Final

import msgspec

from statedb import DB, Column, Index, RWTable, new_table
from tables.addressing import IP
from tables.times import age

TABLE_NAME: Final = "ip-allocations"


class IPAllocation(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    ip: IP
    # `router`, `NAMESPACE/POD`, or the attachment of a container outside Kubernetes.
    owner: str
    # Number of the endpoint; 0: the node's own.
    endpoint_id: int = 0
    since: float  # seconds since the epoch
    # When it may be given out again, on the monotonic clock; 0: it is in use.
    free_at: float = 0.0
    # Freed, and the datapath may still have its former owner's identity for it.
    in_ipcache: bool = False
    # Given by another plugin, who alone says when it is free.
    is_external: bool = False

    @property
    def state(self) -> str:
        if self.free_at:
            return "quarantined"
        return "external" if self.is_external else "in-use"


def to_json(row: IPAllocation) -> dict[str, Any]:
    return {
        "IP": str(row.ip),
        "Owner": row.owner,
        "EndpointID": row.endpoint_id,
        "State": row.state,
        "InIPCache": row.in_ipcache,
        "Since": row.since,
    }


IP_INDEX: Final = Index("ip", key=attrgetter("ip"), parse=IP.parse)

COLUMNS: Final = (
    Column("IP", lambda row: str(row.ip)),
    Column("Owner", lambda row: row.owner),
    Column("Endpoint", lambda row: str(row.endpoint_id or "")),
    Column("State", lambda row: row.state),
    Column("Since", lambda row: age(row.since)),
)


def new_ip_allocations_table(db: DB) -> RWTable[IPAllocation]:
    """Registers ``ip-allocations`` with the database."""
    return new_table(
        db,
        TABLE_NAME,
        IP_INDEX,
        columns=COLUMNS,
        row_type=IPAllocation,
        to_json=to_json,
    )
