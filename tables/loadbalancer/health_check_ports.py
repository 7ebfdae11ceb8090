# SPDX-License-Identifier: Apache-2.0
"""``health-check-ports``: where load balancers ask whether this node serves a Local service.

The controller of health checks writes the rows; the reconciler that opens the ports writes their
status, so that a port that is taken is seen here.
"""

from __future__ import annotations

from operator import attrgetter
from typing import Final

import msgspec

from statedb import DB, Column, Index, RWTable, Status, new_table
from statedb.status import pending
from tables.addressing import ServiceName
from tables.status_columns import STATUS_COLUMNS

TABLE_NAME: Final = "health-check-ports"


class HealthCheckPort(msgspec.Struct, frozen=True, gc=False):
    service: ServiceName
    port: int
    # Addresses on this node that serve now.
    local_endpoints: int = 0
    status: Status = msgspec.field(default_factory=pending)


SERVICE: Final = Index("service", key=attrgetter("service"), parse=str)

COLUMNS: Final = (
    Column("Service", lambda row: str(row.service)),
    Column("Port", lambda row: str(row.port)),
    Column("LocalEndpoints", lambda row: str(row.local_endpoints)),
    *STATUS_COLUMNS,
)


def new_health_check_ports_table(db: DB) -> RWTable[HealthCheckPort]:
    """Registers ``health-check-ports`` with the database."""
    return new_table(db, TABLE_NAME, SERVICE, columns=COLUMNS, row_type=HealthCheckPort)
