# SPDX-License-Identifier: Apache-2.0
"""``convergence``: how long the last change of each object took from its writer to the maps.

The field's name for the total is network programming latency. Only changes count: what was there
when the agent started, was listed again unchanged, or changes no frontend has no row.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from statedb import DB, Column, Index, RWTable, new_table
from tables.times import age, rfc3339

TABLE_NAME: Final = "convergence"


class Convergence(msgspec.Struct, frozen=True, gc=False):
    """The recorder of convergence writes it. Times are seconds since the epoch."""

    kind: str
    # namespace/name
    name: str
    # namespace/name of the service whose frontends changed.
    service: str
    # When the change was made, and how that is known: trigger, managed-fields (to the second, by
    # the writer's clock) or arrival.
    changed_at: float
    time_source: str
    received_at: float
    table_at: float
    # 0: not in the maps yet.
    map_at: float = 0.0

    @property
    def stages_s(self) -> dict[str, float]:
        """Seconds of each stage, and of all. A writer's clock may be ahead: that counts as 0."""
        return {
            "api": max(0.0, self.received_at - self.changed_at),
            "table": self.table_at - self.received_at,
            "map": max(0.0, self.map_at - self.table_at),
            "total": max(0.0, self.map_at - self.changed_at),
        }


def convergence_key(row: Convergence) -> str:
    return f"{row.kind}/{row.name}"


def _service(row: Convergence) -> str:
    return row.service


def _stage(row: Convergence, stage: str) -> str:
    if stage in ("map", "total") and not row.map_at:
        return ""
    return f"{row.stages_s[stage] * 1000:.1f}ms"


def to_json(row: Convergence) -> dict[str, Any]:
    return {
        "Kind": row.kind,
        "Name": row.name,
        "Service": row.service,
        "Changed": rfc3339(row.changed_at),
        "TimeSource": row.time_source,
        "Received": rfc3339(row.received_at),
        "InTable": rfc3339(row.table_at),
        "InMap": rfc3339(row.map_at) if row.map_at else "",
    }


OBJECT: Final = Index("object", key=convergence_key, parse=str)
SERVICE: Final = Index("service", key=_service, unique=False, parse=str)

COLUMNS: Final = (
    Column("Object", convergence_key),
    Column("Service", _service),
    Column("Changed", lambda row: age(row.changed_at)),
    Column("TimeSource", lambda row: row.time_source),
    Column("API", lambda row: _stage(row, "api")),
    Column("Table", lambda row: _stage(row, "table")),
    Column("Map", lambda row: _stage(row, "map")),
    Column("Total", lambda row: _stage(row, "total")),
)


def new_convergence_table(db: DB) -> RWTable[Convergence]:
    """Registers ``convergence`` with the database."""
    return new_table(
        db, TABLE_NAME, OBJECT, SERVICE, columns=COLUMNS, row_type=Convergence, to_json=to_json
    )
