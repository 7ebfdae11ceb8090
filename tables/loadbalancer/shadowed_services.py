# SPDX-License-Identifier: Apache-2.0
"""``shadowed-services``: services that a preferred source defines too, by the same name.

A row is the whole of what the other source asked for, so that it can take over in the transaction
in which the preferred one goes. The load-balancer writer alone writes it.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from statedb import DB, Column, Index, RWTable, new_table
from tables.addressing import ServiceName
from tables.loadbalancer.frontends import FrontendParams
from tables.loadbalancer.services import Service
from tables.sources import PRIORITY

TABLE_NAME: Final = "shadowed-services"


class ShadowedService(msgspec.Struct, frozen=True, gc=False):
    service: Service
    frontends: tuple[FrontendParams, ...]


def to_json(row: ShadowedService) -> dict[str, Any]:
    return {
        "Service": str(row.service.name),
        "Source": row.service.source.value,
        "Frontends": [str(params.address) for params in row.frontends],
    }


def shadow_key(row: ShadowedService) -> tuple[ServiceName, int]:
    """Of one name, the most preferred comes first."""
    return (row.service.name, PRIORITY[row.service.source])


def _name(row: ShadowedService) -> ServiceName:
    return row.service.name


KEY: Final = Index("key", key=shadow_key)
NAME: Final = Index("name", key=_name, unique=False, parse=str)

COLUMNS: Final = (
    Column("Service", lambda row: str(row.service.name)),
    Column("Source", lambda row: row.service.source.value),
    Column("Frontends", lambda row: ", ".join(str(p.address) for p in row.frontends)),
)


def new_shadowed_services_table(db: DB) -> RWTable[ShadowedService]:
    """Registers ``shadowed-services`` with the database."""
    return new_table(
        db, TABLE_NAME, KEY, NAME, columns=COLUMNS, row_type=ShadowedService, to_json=to_json
    )
