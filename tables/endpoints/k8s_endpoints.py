# SPDX-License-Identifier: Apache-2.0
"""``k8s-endpoints``: the CiliumEndpoint objects of all nodes, one a pod."""

from __future__ import annotations

from operator import attrgetter
from typing import Any, Final

import msgspec

from statedb import DB, Column, Index, RWTable, new_table
from tables.addressing import IP

TABLE_NAME: Final = "k8s-endpoints"


class K8sEndpoint(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    namespace: str
    name: str  # the pod's
    # Of the object.
    uid: str
    version: str
    created_at: float  # seconds since the epoch
    # Of the pod that owns it; empty: it names none.
    pod_uid: str
    identity: int  # 0: none
    addresses: tuple[IP, ...]
    # The node of the pod, which writes the object; None: it names none.
    node: IP | None
    # A hash of all that its writer says: equal ones need no write. Of this process alone.
    content: int

    @property
    def pod_name(self) -> str:
        """``NAMESPACE/POD``."""
        return f"{self.namespace}/{self.name}"


def to_json(row: K8sEndpoint) -> dict[str, Any]:
    return {
        "Namespace": row.namespace,
        "Name": row.name,
        "UID": row.uid,
        "PodUID": row.pod_uid,
        "Identity": row.identity,
        "Addresses": list(map(str, row.addresses)),
        "Node": str(row.node or ""),
    }


NAME: Final = Index("name", key=attrgetter("pod_name"), parse=str)
#: Objects of a node, for the agent that writes them.
NODE: Final = Index(
    "node", keys=lambda row: () if row.node is None else (row.node,), unique=False, parse=IP.parse
)
#: Objects that use an identity, for the collector of identities.
IDENTITY: Final = Index("identity", key=attrgetter("identity"), unique=False, parse=int)

COLUMNS: Final = (
    Column("Pod", lambda row: row.pod_name),
    Column("Identity", lambda row: str(row.identity or "")),
    Column("Addresses", lambda row: ", ".join(map(str, row.addresses))),
    Column("Node", lambda row: str(row.node or "")),
)


def new_k8s_endpoints_table(db: DB, *indexes: Index) -> RWTable[K8sEndpoint]:
    """Registers ``k8s-endpoints`` with the database, with `NAME` and these indexes."""
    return new_table(
        db,
        TABLE_NAME,
        NAME,
        *indexes,
        columns=COLUMNS,
        row_type=K8sEndpoint,
        to_json=to_json,
    )
