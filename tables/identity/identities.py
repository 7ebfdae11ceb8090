# SPDX-License-Identifier: Apache-2.0
"""``identities``: the number of each set of labels that this node knows.

Reserved identities have fixed numbers, which are the field's. All others are sets of labels of
workloads, numbered from `CLUSTER_MIN`.
"""

from __future__ import annotations

from operator import attrgetter
from typing import Any, Final

import msgspec

from statedb import DB, Column, Index, RWTable, new_table

TABLE_NAME: Final = "identities"

#: Numbers of a cluster's own identities; its id stands in the bits above.
CLUSTER_MIN: Final = 256
CLUSTER_MAX: Final = 65_535

#: Reserved identities by number: the label is `reserved:NAME`.
RESERVED: Final = {
    1: "host",
    2: "world",
    3: "unmanaged",
    4: "health",
    5: "init",
    6: "remote-node",
    7: "kube-apiserver",
    8: "ingress",
    9: "world-ipv4",
    10: "world-ipv6",
}


class Identity(msgspec.Struct, frozen=True, gc=False):
    id: int
    labels: tuple[str, ...]  # `SOURCE:KEY=VALUE`, sorted

    @property
    def is_reserved(self) -> bool:
        return self.id in RESERVED


def to_json(identity: Identity) -> dict[str, Any]:
    return {"ID": identity.id, "Labels": list(identity.labels)}


def labels_text(labels: tuple[str, ...]) -> str:
    """Labels in one cell."""
    return " ".join(labels)


ID: Final = Index("id", key=attrgetter("id"), parse=int)
LABELS: Final = Index("labels", key=lambda row: labels_text(row.labels), unique=False, parse=str)

COLUMNS: Final = (
    Column("ID", lambda row: str(row.id)),
    Column("Labels", lambda row: labels_text(row.labels)),
)


def reserved_identities() -> list[Identity]:
    """Return the identities that every node knows from the start."""
    return [Identity(number, (f"reserved:{name}",)) for number, name in RESERVED.items()]


def new_identities_table(db: DB) -> RWTable[Identity]:
    """Registers ``identities`` with the database, with the reserved ones in it."""
    table = new_table(
        db, TABLE_NAME, ID, LABELS, columns=COLUMNS, row_type=Identity, to_json=to_json
    )
    with db.write_txn(table) as wtxn:
        table.insert_many(wtxn, reserved_identities())
    return table
