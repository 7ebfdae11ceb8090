# SPDX-License-Identifier: Apache-2.0
"""``desired-identities``: the sets of labels that somebody on this node needs a number for.

A row without a number asks for one, any one. A row with a number says that it is in force for these
labels: it must stay theirs, also if somebody deletes it. A row without labels says only that the
number is in force; whose it is, is not known yet (a start, before all was read).

Owners write rows through `cilia/identity/desired.py`; whoever gives the numbers writes ``status``.
"""

from __future__ import annotations

from operator import attrgetter
from typing import Any, Final

import msgspec

from statedb import DB, Column, Index, RWTable, Status, new_table
from statedb.status import pending
from tables.identity.identities import labels_text
from tables.status_columns import STATUS_COLUMNS

TABLE_NAME: Final = "desired-identities"

Key = tuple[str, str, int]


class DesiredIdentity(msgspec.Struct, frozen=True):
    owner: str
    labels: tuple[str, ...]
    number: int = 0
    # Written by whoever gives the numbers.
    status: Status = msgspec.field(default_factory=pending)


def desired_identity_key(row: DesiredIdentity) -> Key:
    return (row.owner, labels_text(row.labels), row.number)


def to_json(row: DesiredIdentity) -> dict[str, Any]:
    return {
        "Owner": row.owner,
        "Labels": list(row.labels),
        "Number": row.number,
        "Status": str(row.status.kind),
        "Error": row.status.error,
    }


def _parse_key(text: str) -> tuple[Any, ...]:
    """``OWNER``."""
    return (text,)


ID: Final = Index("id", key=desired_identity_key, parse=_parse_key)
NUMBER: Final = Index("number", key=attrgetter("number"), unique=False, parse=int)

COLUMNS: Final = (
    Column("Owner", lambda row: row.owner),
    Column("Number", lambda row: str(row.number or "any")),
    Column("Labels", lambda row: labels_text(row.labels)),
    *STATUS_COLUMNS,
)


def new_desired_identities_table(db: DB) -> RWTable[DesiredIdentity]:
    """Registers ``desired-identities`` with the database."""
    return new_table(
        db,
        TABLE_NAME,
        ID,
        NUMBER,
        columns=COLUMNS,
        row_type=DesiredIdentity,
        to_json=to_json,
    )
