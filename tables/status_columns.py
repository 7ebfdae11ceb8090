# SPDX-License-Identifier: Apache-2.0
"""How tables of desired state show the status in each of their rows."""

from __future__ import annotations

from typing import Final

from statedb import Column
from tables.times import age

STATUS_COLUMNS: Final = (
    Column("Status", lambda row: str(row.status.kind).capitalize()),
    Column("Since", lambda row: age(row.status.updated_at)),
    Column("Error", lambda row: row.status.error),
)
