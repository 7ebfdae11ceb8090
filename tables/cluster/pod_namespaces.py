# SPDX-License-Identifier: Apache-2.0
"""``pod-namespaces``: the network namespaces of the pods of this node.

The cookie is the kernel's number of a namespace, by which programs at sockets know whose socket it
is. Whoever learns where a pod's namespace is writes its row; pods on the node's own network have
none.
"""

from __future__ import annotations

from typing import Final

import msgspec

from statedb import DB, Column, Index, RWTable, new_table

TABLE_NAME: Final = "pod-namespaces"


class PodNamespace(msgspec.Struct, frozen=True, gc=False):
    # "namespace/name" of the pod.
    pod: str
    # SO_NETNS_COOKIE of its sockets.
    cookie: int
    # Where it can be entered, as /run/netns/NAME.
    path: str = ""


def _pod(row: PodNamespace) -> str:
    return row.pod


def _path(row: PodNamespace) -> str:
    return row.path


POD: Final = Index("pod", key=_pod, parse=str)
PATH: Final = Index("path", key=_path, unique=False, parse=str)

COLUMNS: Final = (
    Column("Pod", _pod),
    Column("NetnsCookie", lambda row: str(row.cookie)),
    Column("Path", _path),
)


def new_pod_namespaces_table(db: DB) -> RWTable[PodNamespace]:
    """Registers ``pod-namespaces`` with the database."""
    return new_table(db, TABLE_NAME, POD, PATH, columns=COLUMNS, row_type=PodNamespace)
