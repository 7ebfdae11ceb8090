# SPDX-License-Identifier: Apache-2.0
"""``draining-backends``: backends that get no new connections, and how many they still have.

A row is there from the moment a backend terminates, or is taken away, until its last connection has
ended. The controller of draining alone writes it.
"""

from __future__ import annotations

from typing import Final

import msgspec

from statedb import DB, Column, Index, RWTable, new_table
from tables.addressing import L3n4Addr, ServiceName, parse_address_key
from tables.times import age

TABLE_NAME: Final = "draining-backends"


class DrainingBackend(msgspec.Struct, frozen=True, gc=False):
    address: L3n4Addr
    services: tuple[ServiceName, ...]
    # As in `backends`, or "removed".
    state: str
    # Seconds since the epoch.
    since: float
    # None: the datapath cannot tell.
    connections: int | None = None


def _address(row: DrainingBackend) -> L3n4Addr:
    return row.address


ADDRESS: Final = Index("address", key=_address, parse=parse_address_key)

COLUMNS: Final = (
    Column("Address", lambda row: str(row.address)),
    Column("Services", lambda row: ", ".join(map(str, row.services))),
    Column("State", lambda row: row.state),
    Column("Since", lambda row: age(row.since)),
    Column(
        "Connections", lambda row: "unknown" if row.connections is None else str(row.connections)
    ),
)


def new_draining_backends_table(db: DB) -> RWTable[DrainingBackend]:
    """Registers ``draining-backends`` with the database."""
    return new_table(db, TABLE_NAME, ADDRESS, columns=COLUMNS, row_type=DrainingBackend)
