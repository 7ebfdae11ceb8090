# SPDX-License-Identifier: Apache-2.0
"""``cluster-nodes``: the addresses of the cluster's nodes, as the datapath is to know them.

A row an address. The controller (`cilia/datapath/cluster_nodes.py`) makes the rows from Node
objects; the reconciler writes them to the maps ``cilia_nodes4`` and ``cilia_nodes6`` and gives back
``status``.
"""

from __future__ import annotations

from operator import attrgetter
from typing import Final

import msgspec

from statedb import DB, Column, Index, RWTable, Status, new_table
from statedb.status import pending
from tables.addressing import IP
from tables.status_columns import STATUS_COLUMNS

TABLE_NAME: Final = "cluster-nodes"


class ClusterNode(msgspec.Struct, frozen=True, gc=False):
    address: IP
    # Name of the Node object.
    node: str
    # The node that the agent runs on.
    is_self: bool = False
    status: Status = msgspec.field(default_factory=pending)


ADDRESS: Final = Index("address", key=attrgetter("address"), parse=IP.parse)

COLUMNS: Final = (
    Column("Address", lambda row: str(row.address)),
    Column("Node", lambda row: row.node),
    Column("Self", lambda row: str(row.is_self).lower()),
    *STATUS_COLUMNS,
)


def new_cluster_nodes_table(db: DB) -> RWTable[ClusterNode]:
    """Registers ``cluster-nodes`` with the database."""
    return new_table(db, TABLE_NAME, ADDRESS, columns=COLUMNS, row_type=ClusterNode)
