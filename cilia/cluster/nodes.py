# SPDX-License-Identifier: Apache-2.0
"""Nodes and namespaces into ``k8s-nodes`` and ``k8s-namespaces``."""

from __future__ import annotations

from cilia.cluster.batch import WAIT_S
from cilia.cluster.objects import ObjectReflector
from cilia.k8s import objects as k8s
from cilia.k8s.change_time import seconds
from cilia.k8s.watch import Source
from statedb import DB, RWTable
from tables.addressing import IP
from tables.cluster.namespaces import Namespace
from tables.cluster.nodes import Node
from tables.problems import Problem


def node_reflector(
    source: Source,
    db: DB,
    nodes: RWTable[Node],
    problems: RWTable[Problem],
    *,
    wait_s: float = WAIT_S,
    restored: Node | None = None,
) -> ObjectReflector[k8s.Node, Node]:
    """`restored`: the row of this node before a restart."""
    return ObjectReflector(
        source,
        k8s.Node,
        db,
        nodes,
        convert_node,
        problems,
        wait_s=wait_s,
        restored={} if restored is None else {(k8s.Node.KIND, "", restored.name): restored},
    )


def namespace_reflector(
    source: Source,
    db: DB,
    namespaces: RWTable[Namespace],
    problems: RWTable[Problem],
    *,
    wait_s: float = WAIT_S,
) -> ObjectReflector[k8s.Namespace, Namespace]:
    return ObjectReflector(
        source, k8s.Namespace, db, namespaces, convert_namespace, problems, wait_s=wait_s
    )


def convert_node(obj: k8s.Node) -> Node:
    """Addresses that are none (a host name of another type) are not taken."""
    meta = obj.metadata
    addresses = obj.status.addresses or () if obj.status else ()

    def of_type(type_: str) -> tuple[IP, ...]:
        return tuple(IP.parse(a.address) for a in addresses if a.type == type_)

    cidrs = (obj.spec.pod_cidrs or [obj.spec.pod_cidr]) if obj.spec else ()
    return Node(
        meta.name,
        meta.labels or {},
        meta.annotations or {},
        of_type("InternalIP"),
        of_type("ExternalIP"),
        tuple(filter(None, cidrs)),
    )


def convert_namespace(obj: k8s.Namespace) -> Namespace:
    meta = obj.metadata
    created_at = seconds(meta.creation_timestamp or "")
    return Namespace(meta.name, meta.labels or {}, meta.annotations or {}, created_at)
