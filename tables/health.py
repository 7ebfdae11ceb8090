# SPDX-License-Identifier: Apache-2.0
"""``health``: how each part of the program is, by module and component; the agent writes it."""

from __future__ import annotations

from enum import StrEnum
from typing import Any, Final

import msgspec

from statedb import DB, Column, Index, RWTable, new_table
from tables.times import rfc3339

TABLE_NAME: Final = "health"


class Level(StrEnum):
    OK = "OK"
    DEGRADED = "Degraded"
    STOPPED = "Stopped"


class Health(msgspec.Struct, frozen=True, gc=False):
    # Dotted paths: "loadbalancer.reconciler" and "job-reconcile".
    module: str
    component: str
    level: Level
    message: str = ""
    error: str = ""
    # Seconds since the epoch; last_ok is 0 until it was OK once.
    last_ok: float = 0.0
    updated_at: float = 0.0
    # How many times in a row this level was reported.
    count: int = 1


def health_key(h: Health) -> str:
    return f"{h.module}.{h.component}"


def _level(h: Health) -> str:
    return h.level.value


def to_json(h: Health) -> dict[str, Any]:
    return {
        "Module": h.module,
        "Component": h.component,
        "Level": h.level.value,
        "Message": h.message,
        "Error": h.error,
        "LastOK": _moment(h.last_ok),
        "UpdatedAt": _moment(h.updated_at),
        "Count": h.count,
    }


def _moment(seconds: float) -> str:
    return rfc3339(seconds) if seconds else ""


KEY: Final = Index("identifier", key=health_key, parse=str)
LEVEL: Final = Index("level", key=_level, unique=False, parse=str)

COLUMNS: Final = (
    Column("Module", lambda h: h.module),
    Column("Component", lambda h: h.component),
    Column("Level", lambda h: h.level.value),
    Column("Message", lambda h: h.message),
    Column("Error", lambda h: h.error),
    Column("LastOK", lambda h: _moment(h.last_ok)),
    Column("UpdatedAt", lambda h: _moment(h.updated_at)),
    Column("Count", lambda h: str(h.count)),
)


def new_health_table(db: DB) -> RWTable[Health]:
    """Registers ``health`` with the database."""
    return new_table(db, TABLE_NAME, KEY, LEVEL, columns=COLUMNS, row_type=Health, to_json=to_json)
