# SPDX-License-Identifier: Apache-2.0
"""``masquerade-exclusions``: prefixes that packets of this node's workloads go to with their own
source, because they know the way back.

The controller of `cilia/masquerade` makes the rows; the reconciler writes them to the maps
``cilia_ipmasq4`` and ``cilia_ipmasq6`` and gives back ``status``.
"""

from __future__ import annotations

from operator import attrgetter
from typing import Final

import msgspec

from statedb import DB, Column, Index, RWTable, Status, new_table
from statedb.status import pending
from tables.addressing import Prefix
from tables.status_columns import STATUS_COLUMNS

TABLE_NAME: Final = "masquerade-exclusions"


class MasqueradeExclusion(msgspec.Struct, frozen=True, gc=False):
    prefix: Prefix
    # Who says so: an option, the pods of a node, the file of ip-masq-agent.
    reason: str
    status: Status = msgspec.field(default_factory=pending)


PREFIX: Final = Index("prefix", key=attrgetter("prefix"), parse=Prefix.parse)

COLUMNS: Final = (
    Column("Prefix", lambda row: str(row.prefix)),
    Column("Reason", lambda row: row.reason),
    *STATUS_COLUMNS,
)


def new_masquerade_exclusions_table(db: DB) -> RWTable[MasqueradeExclusion]:
    """Registers ``masquerade-exclusions`` with the database."""
    return new_table(db, TABLE_NAME, PREFIX, columns=COLUMNS, row_type=MasqueradeExclusion)
