# SPDX-License-Identifier: Apache-2.0
"""``k8s-namespaces``: the namespaces of the cluster, whose labels policies select by."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec

from statedb import DB, Column, Index, RWTable, new_table
from tables.times import age

TABLE_NAME: Final = "k8s-namespaces"


class Namespace(msgspec.Struct, frozen=True, gc=False):
    name: str
    labels: Mapping[str, str] = {}
    annotations: Mapping[str, str] = {}
    # Seconds since the epoch; 0: unknown.
    created_at: float = 0.0


def _name(namespace: Namespace) -> str:
    return namespace.name


def _pairs(values: Mapping[str, str]) -> str:
    return ", ".join(f"{key}={value}" for key, value in sorted(values.items()))


NAME: Final = Index("name", key=_name, parse=str)

COLUMNS: Final = (
    Column("Namespace", _name),
    Column("Labels", lambda namespace: _pairs(namespace.labels)),
    Column("Annotations", lambda namespace: _pairs(namespace.annotations)),
    Column("Age", lambda namespace: age(namespace.created_at) if namespace.created_at else ""),
)


def new_namespaces_table(db: DB) -> RWTable[Namespace]:
    """Registers ``k8s-namespaces`` with the database."""
    return new_table(db, TABLE_NAME, NAME, columns=COLUMNS, row_type=Namespace)
