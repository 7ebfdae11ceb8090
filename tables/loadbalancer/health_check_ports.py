# SPDX-License-Identifier: Apache-2.0
"""``health-check-ports``: where load balancers ask whether this node serves a Local service.

The controller of health checks writes the rows; the reconciler that opens the ports writes their
status, so that a port that is taken is seen here.
"""

from __future__ import annotations

from typing import Final

import msgspec

from statedb import DB, Column, Index, RWTable, Status, new_table
from statedb.status import pending
from tables.addressing import ServiceName
from tables.times import age

TABLE_NAME: Final = "health-check-ports"


class HealthCheckPort(msgspec.Struct, frozen=True, gc=False):
    service: ServiceName
    port: int
    # Addresses on this node that serve now.
    local_endpoints: int = 0
    status: Status = msgspec.field(default_factory=pending)


def get_status(row: HealthCheckPort) -> Status:
    return row.status


def set_status(row: HealthCheckPort, status: Status) -> HealthCheckPort:
    return msgspec.structs.replace(row, status=status)


def _service(row: HealthCheckPort) -> ServiceName:
    return row.service


SERVICE: Final = Index("service", key=_service, parse=str)

COLUMNS: Final = (
    Column("Service", lambda row: str(row.service)),
    Column("Port", lambda row: str(row.port)),
    Column("LocalEndpoints", lambda row: str(row.local_endpoints)),
    Column("Status", lambda row: str(row.status.kind).capitalize()),
    Column("Since", lambda row: age(row.status.updated_at)),
    Column("Error", lambda row: row.status.error),
)


def new_health_check_ports_table(db: DB) -> RWTable[HealthCheckPort]:
    """Registers ``health-check-ports`` with the database."""
    return new_table(db, TABLE_NAME, SERVICE, columns=COLUMNS, row_type=HealthCheckPort)
