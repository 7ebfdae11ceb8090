# SPDX-License-Identifier: Apache-2.0
"""``identities``: the number of each set of labels that this node knows.

Reserved identities have fixed numbers, which are the field's. All others are sets of labels of
workloads, numbered from `CLUSTER_MIN`. Where nodes agree on numbers, ``k8s-identities`` has those
that there are objects for; ``identities`` has these, and what is in force on this node although its
object is gone. Two numbers may have one set of labels: nodes that saw it first at the same time.
"""

from __future__ import annotations

from operator import attrgetter
from typing import Any, Final

import msgspec

from statedb import DB, Column, Index, RWTable, new_table

TABLE_NAME: Final = "identities"
OBJECTS_TABLE_NAME: Final = "k8s-identities"

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
    created_at: float = 0.0  # of its object, seconds since the epoch; 0: there is none
    is_marked: bool = False  # to be deleted, unless somebody takes it into use before

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


def is_cluster_number(number: int) -> bool:
    """Return True for numbers of a cluster's own identities."""
    return CLUSTER_MIN <= number <= CLUSTER_MAX


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


def new_k8s_identities_table(db: DB) -> RWTable[Identity]:
    """Registers ``k8s-identities`` with the database."""
    return new_table(
        db, OBJECTS_TABLE_NAME, ID, LABELS, columns=COLUMNS, row_type=Identity, to_json=to_json
    )
