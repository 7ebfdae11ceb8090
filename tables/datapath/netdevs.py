# SPDX-License-Identifier: Apache-2.0
"""``netdevs``: the devices of the node that lead to clients and to other nodes, as the datapath is
to know them.

The controller of packet devices makes the rows from the table ``devices``; the reconciler writes
them to the map ``cilia_netdev`` and gives back ``status``.
"""

from __future__ import annotations

from typing import Final

import msgspec

from statedb import DB, Column, Index, RWTable, Status, new_table
from statedb.status import pending
from tables.addressing import IP
from tables.times import age

TABLE_NAME: Final = "netdevs"


class Netdev(msgspec.Struct, frozen=True, gc=False):
    index: int
    name: str
    # Sources of what is translated on its way out; None: nothing of that family is.
    ipv4: IP | None = None
    ipv6: IP | None = None
    status: Status = msgspec.field(default_factory=pending)


def get_status(row: Netdev) -> Status:
    return row.status


def set_status(row: Netdev, status: Status) -> Netdev:
    return msgspec.structs.replace(row, status=status)


def _index(row: Netdev) -> int:
    return row.index


INDEX: Final = Index("index", key=_index, parse=int)

COLUMNS: Final = (
    Column("Index", lambda row: str(row.index)),
    Column("Name", lambda row: row.name),
    Column("IPv4", lambda row: str(row.ipv4 or "")),
    Column("IPv6", lambda row: str(row.ipv6 or "")),
    Column("Status", lambda row: str(row.status.kind).capitalize()),
    Column("Since", lambda row: age(row.status.updated_at)),
    Column("Error", lambda row: row.status.error),
)


def new_netdevs_table(db: DB) -> RWTable[Netdev]:
    """Registers ``netdevs`` with the database."""
    return new_table(db, TABLE_NAME, INDEX, columns=COLUMNS, row_type=Netdev)
