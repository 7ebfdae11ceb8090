# SPDX-License-Identifier: Apache-2.0
"""``k8s-nodes``: the nodes of the cluster, as the API server has them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec

from statedb import DB, Column, Index, RWTable, new_table
from tables.addressing import IP, Prefix

TABLE_NAME: Final = "k8s-nodes"


class Node(msgspec.Struct, frozen=True, gc=False):
    name: str
    labels: Mapping[str, str] = {}
    annotations: Mapping[str, str] = {}
    internal_ips: tuple[IP, ...] = ()
    external_ips: tuple[IP, ...] = ()
    pod_cidrs: tuple[str, ...] = ()

    @property
    def pod_prefixes(self) -> list[Prefix]:
        """The prefixes of its pods, without what is none: the API server refuses that, a file may
        have it all the same."""
        found = []
        for text in self.pod_cidrs:
            try:
                found.append(Prefix.parse(text))
            except ValueError:
                continue
        return found


def _name(node: Node) -> str:
    return node.name


NAME: Final = Index("name", key=_name, parse=str)

COLUMNS: Final = (
    Column("Name", _name),
    Column("InternalIPs", lambda node: ", ".join(map(str, node.internal_ips))),
    Column("ExternalIPs", lambda node: ", ".join(map(str, node.external_ips))),
    Column("PodCIDRs", lambda node: ", ".join(node.pod_cidrs)),
    Column("Labels", lambda node: ", ".join(f"{k}={v}" for k, v in sorted(node.labels.items()))),
)


def new_nodes_table(db: DB) -> RWTable[Node]:
    """Registers ``k8s-nodes`` with the database."""
    return new_table(db, TABLE_NAME, NAME, columns=COLUMNS, row_type=Node)
