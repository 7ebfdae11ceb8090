# SPDX-License-Identifier: Apache-2.0
"""``desired-k8s-endpoints``: what this node says of its pods in CiliumEndpoint objects.

A row a pod. A row with `gone_uid` is about an object that this node wrote and that has no endpoint
any more: it is to be deleted. The controller of these objects writes rows, and their reconciler
gives back ``status``: what is not written, and why.
"""

from __future__ import annotations

from operator import attrgetter
from typing import Any, Final

import msgspec

from statedb import DB, Column, Index, RWTable, Status, new_table
from statedb.status import pending
from tables.addressing import IP
from tables.status_columns import STATUS_COLUMNS

TABLE_NAME: Final = "desired-k8s-endpoints"

#: Addresses of one interface: IPv4 and IPv6.
AddressPair = tuple[IP | None, IP | None]


class NamedPort(msgspec.Struct, frozen=True, order=True, gc=False):
    name: str
    port: int
    protocol: str


class DesiredK8sEndpoint(msgspec.Struct, frozen=True, kw_only=True):
    namespace: str
    pod: str
    # None: the Node object names no address, so nothing can be written.
    node: IP | None
    # The uid of the object that is to be deleted, if it is still that one and this node's.
    gone_uid: str = ""
    pod_uid: str = ""
    # False: the cluster does not have this pod, or says that it has ended. What is written stays,
    # and nothing is.
    is_known: bool = False
    endpoint_id: int = 0
    container_id: str = ""
    ifname: str = ""
    identity: int = 0
    labels: tuple[str, ...] = ()
    # Of each interface, the first one's first.
    addressing: tuple[AddressPair, ...] = ()
    named_ports: tuple[NamedPort, ...] = ()
    state: str = ""
    # See `tables.endpoints.k8s_endpoints`.
    content: int = 0
    # Written by the reconciler.
    status: Status = msgspec.field(default_factory=pending)

    @property
    def pod_name(self) -> str:
        """``NAMESPACE/POD``."""
        return f"{self.namespace}/{self.pod}"


def to_json(row: DesiredK8sEndpoint) -> dict[str, Any]:
    return {
        "Namespace": row.namespace,
        "Pod": row.pod,
        "PodUID": row.pod_uid,
        "Delete": bool(row.gone_uid),
        "EndpointID": row.endpoint_id,
        "Identity": row.identity,
        "Addresses": [str(ip) for pair in row.addressing for ip in pair if ip is not None],
        "Node": str(row.node or ""),
        "State": row.state,
        "Status": str(row.status.kind),
        "Error": row.status.error,
    }


POD: Final = Index("pod", key=attrgetter("pod_name"), parse=str)

COLUMNS: Final = (
    Column("Pod", lambda row: row.pod_name),
    Column("Wanted", lambda row: "no" if row.gone_uid else "yes"),
    Column("Endpoint", lambda row: str(row.endpoint_id or "")),
    Column("Identity", lambda row: str(row.identity or "")),
    Column("State", lambda row: row.state),
    *STATUS_COLUMNS,
)


def new_desired_k8s_endpoints_table(db: DB) -> RWTable[DesiredK8sEndpoint]:
    """Registers ``desired-k8s-endpoints`` with the database."""
    return new_table(
        db,
        TABLE_NAME,
        POD,
        columns=COLUMNS,
        row_type=DesiredK8sEndpoint,
        to_json=to_json,
    )
