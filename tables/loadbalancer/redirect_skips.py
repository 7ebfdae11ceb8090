# SPDX-License-Identifier: Apache-2.0
"""``desired-skiplbmap``: frontends whose redirection the pods behind it are themselves spared.

A row a pod and policy. The sockets of a pod are known by the cookie of its network namespace; while
that is unknown the row is there and nothing of them is programmed. Its packets, where sockets are
left alone, are known by its addresses. The controller of redirect policies
writes the rows, the reconciler (``reconcilers/loadbalancer/redirect_skips.py``) their status.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from statedb import DB, Column, Index, RWTable, Status, new_table
from statedb.status import pending
from tables.addressing import IP, L3n4Addr, ServiceName
from tables.status_columns import STATUS_COLUMNS

TABLE_NAME: Final = "desired-skiplbmap"

SkipKey = tuple[str, ServiceName]


class RedirectSkip(msgspec.Struct, frozen=True, gc=False):
    # "namespace/name" of the pod.
    pod: str
    policy: ServiceName
    # In address order.
    frontends: tuple[L3n4Addr, ...]
    netns_cookie: int | None = None
    # None of a pod that has the node's.
    pod_addresses: tuple[IP, ...] = ()
    status: Status = msgspec.field(default_factory=pending)


def to_json(row: RedirectSkip) -> dict[str, Any]:
    return {
        "Pod": row.pod,
        "LocalRedirectPolicy": str(row.policy),
        "SkipRedirects": [str(address) for address in row.frontends],
        "NetnsCookie": row.netns_cookie,
        "PodAddresses": [str(address) for address in row.pod_addresses],
        "Status": {"kind": str(row.status.kind), "error": row.status.error},
    }


def skip_key(row: RedirectSkip) -> SkipKey:
    return (row.pod, row.policy)


KEY: Final = Index("key", key=skip_key)

COLUMNS: Final = (
    Column("Pod", lambda row: row.pod),
    Column("LocalRedirectPolicy", lambda row: str(row.policy)),
    Column("SkipRedirects", lambda row: ", ".join(map(str, row.frontends))),
    Column("NetnsCookie", lambda row: str(row.netns_cookie or "<unset>")),
    *STATUS_COLUMNS,
)


def new_redirect_skips_table(db: DB) -> RWTable[RedirectSkip]:
    """Registers ``desired-skiplbmap`` with the database."""
    return new_table(db, TABLE_NAME, KEY, columns=COLUMNS, row_type=RedirectSkip, to_json=to_json)
