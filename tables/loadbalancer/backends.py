# SPDX-License-Identifier: Apache-2.0
"""``backends``: one row for each address that serves a service, and each source that says so.

Two sources may name one address of one service (the API server and a state file); both rows stay,
and the one with the lower priority number is used.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any, Final

import msgspec

from statedb import DB, Column, Index, RWTable, new_table
from tables.addressing import L3n4Addr, ServiceName, parse_address_key
from tables.sources import PRIORITY, Source
from tables.times import rfc3339

TABLE_NAME: Final = "backends"
DEFAULT_WEIGHT: Final = 100


class BackendState(IntEnum):
    ACTIVE = 0
    TERMINATING = 1
    TERMINATING_NOT_SERVING = 2
    QUARANTINED = 3
    MAINTENANCE = 4
    INVALID = 5

    @property
    def label(self) -> str:
        return self.name.lower().replace("_", "-")


BackendKey = tuple[ServiceName, L3n4Addr, int]


class Backend(msgspec.Struct, frozen=True, gc=False):
    service_name: ServiceName
    address: L3n4Addr
    source: Source = Source.K8S
    state: BackendState = BackendState.ACTIVE
    port_names: tuple[str, ...] = ()
    weight: int = DEFAULT_WEIGHT
    node_name: str = ""
    zone: str = ""
    # Zones that shall use this backend (topology hints); empty: no hint was given.
    for_zones: tuple[str, ...] = ()
    # Nodes that shall use it, likewise.
    for_nodes: tuple[str, ...] = ()
    cluster_id: int = 0
    # Set by health checks alone and kept when the object that brought the backend changes.
    unhealthy: bool = False
    # Seconds since the epoch; None: never probed.
    unhealthy_updated_at: float | None = None

    @property
    def priority(self) -> int:
        return PRIORITY[self.source]


def to_json(be: Backend) -> dict[str, Any]:
    updated = be.unhealthy_updated_at
    return {
        "ServiceName": str(be.service_name),
        "Address": str(be.address),
        "PortNames": list(be.port_names),
        "Weight": be.weight,
        "NodeName": be.node_name,
        "Zone": {"Zone": be.zone, "ForZones": list(be.for_zones)}
        if be.zone or be.for_zones
        else None,
        "ClusterID": be.cluster_id,
        "Source": be.source.value,
        "State": int(be.state),
        "Unhealthy": be.unhealthy,
        "UnhealthyUpdatedAt": None if updated is None else rfc3339(updated),
    }


def backend_key(be: Backend) -> BackendKey:
    return (be.service_name, be.address, PRIORITY[be.source])


def _address(be: Backend) -> L3n4Addr:
    return be.address


def _service(be: Backend) -> ServiceName:
    return be.service_name


KEY: Final = Index("key", key=backend_key)
ADDRESS: Final = Index("address", key=_address, unique=False, parse=parse_address_key)
SERVICE: Final = Index("service", key=_service, unique=False, parse=str)

COLUMNS: Final = (
    Column("Service", lambda be: str(be.service_name)),
    Column("Address", lambda be: str(be.address)),
    Column("Source", lambda be: be.source.value),
    Column("Priority", lambda be: str(be.priority)),
    Column("State", lambda be: be.state.label),
    Column("PortNames", lambda be: ",".join(be.port_names)),
    Column("NodeName", lambda be: be.node_name),
)


def new_backends_table(db: DB) -> RWTable[Backend]:
    """Registers ``backends`` with the database."""
    return new_table(
        db, TABLE_NAME, KEY, ADDRESS, SERVICE, columns=COLUMNS, row_type=Backend, to_json=to_json
    )
