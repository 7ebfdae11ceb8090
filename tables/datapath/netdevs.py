# SPDX-License-Identifier: Apache-2.0
"""``netdevs``: the devices of the node that lead to clients and to other nodes, as the datapath is
to know them.

The controller of packet devices makes the rows from the table ``devices``; the reconciler writes
them to the map ``cilia_netdev`` and gives back ``status``.
"""

from __future__ import annotations

from operator import attrgetter
from typing import Final

import msgspec

from statedb import DB, Column, Index, RWTable, Status, new_table
from statedb.status import pending
from tables.addressing import IP
from tables.status_columns import STATUS_COLUMNS

TABLE_NAME: Final = "netdevs"


class Netdev(msgspec.Struct, frozen=True, gc=False):
    index: int
    name: str
    # Sources of what is translated on its way out; None: nothing of that family is.
    ipv4: IP | None = None
    ipv6: IP | None = None
    status: Status = msgspec.field(default_factory=pending)


INDEX: Final = Index("index", key=attrgetter("index"), parse=int)

COLUMNS: Final = (
    Column("Index", lambda row: str(row.index)),
    Column("Name", lambda row: row.name),
    Column("IPv4", lambda row: str(row.ipv4 or "")),
    Column("IPv6", lambda row: str(row.ipv6 or "")),
    *STATUS_COLUMNS,
)


def new_netdevs_table(db: DB) -> RWTable[Netdev]:
    """Registers ``netdevs`` with the database."""
    return new_table(db, TABLE_NAME, INDEX, columns=COLUMNS, row_type=Netdev)
