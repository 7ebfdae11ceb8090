# SPDX-License-Identifier: Apache-2.0
"""``sysctl``: the kernel parameters that this node is to have.

Names as in `cilia/linux/sysctl.py`. The reconciler (`reconcilers/node/sysctl.py`) writes back
``status``. A row that goes leaves its parameter as it is: what it was before is nobody's to know.
"""

from __future__ import annotations

from operator import attrgetter
from typing import Final

import msgspec

from statedb import DB, Column, Index, RWTable, Status, new_table
from statedb.status import pending
from tables.status_columns import STATUS_COLUMNS

TABLE_NAME: Final = "sysctl"


class SysctlSetting(msgspec.Struct, frozen=True, gc=False):
    name: str
    value: str
    # A kernel without this parameter is as good as one that has the value.
    optional: bool = False
    status: Status = msgspec.field(default_factory=pending)


NAME: Final = Index("name", key=attrgetter("name"), parse=str)

COLUMNS: Final = (
    Column("Name", lambda row: row.name),
    Column("Value", lambda row: row.value),
    *STATUS_COLUMNS,
)


def new_sysctl_table(db: DB) -> RWTable[SysctlSetting]:
    """Registers ``sysctl`` with the database."""
    return new_table(db, TABLE_NAME, NAME, columns=COLUMNS, row_type=SysctlSetting)
