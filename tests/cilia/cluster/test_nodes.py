# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from typing import Any

import pytest

from cilia.cluster.nodes import namespace_reflector, node_reflector
from cilia.k8s import objects as k8s
from cilia.k8s.store import ObjectStore
from cilia.k8s.watch import Upsert
from statedb import DB
from tables.addressing import IP
from tables.cluster.namespaces import new_namespaces_table
from tables.cluster.nodes import Node, new_nodes_table
from tables.problems import new_problems_table


def node(**parts: Any) -> k8s.K8sObject:
    return k8s.decode({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1"}, **parts})


def addresses(*pairs: tuple[str, str]) -> dict[str, Any]:
    return {"addresses": [{"type": type_, "address": address} for type_, address in pairs]}


def test_a_node_is_a_row() -> None:
    db = DB()
    table = new_nodes_table(db)
    status = addresses(("InternalIP", "10.0.0.1"), ("Hostname", "n1"), ("ExternalIP", "1.2.3.4"))
    reflector = node_reflector(ObjectStore(), db, table, new_problems_table(db))
    reflector.apply([Upsert(node(spec={"podCIDR": "10.1.0.0/24"}, status=status))])
    assert list(table.all(db.read_txn())) == [
        Node(
            "n1",
            internal_ips=(IP.parse("10.0.0.1"),),
            external_ips=(IP.parse("1.2.3.4"),),
            pod_cidrs=("10.1.0.0/24",),
        )
    ]
    reflector.apply([Upsert(node())])
    assert list(table.all(db.read_txn())) == [Node("n1")]


def test_an_address_of_a_node_is_checked_by_its_type() -> None:
    node(status=addresses(("Hostname", "x")))
    with pytest.raises(k8s.InvalidObject, match=r"status\.addresses\[0\].*'x' is not an IP"):
        node(status=addresses(("InternalIP", "x")))


def test_a_namespace_is_a_row() -> None:
    db = DB()
    table = new_namespaces_table(db)
    meta = {"name": "test", "labels": {"b": "2", "a": "1"}, "annotations": {"x": "y"}}
    obj = k8s.decode({"apiVersion": "v1", "kind": "Namespace", "metadata": meta})
    namespace_reflector(ObjectStore(), db, table, new_problems_table(db)).apply([Upsert(obj)])
    [row] = table.all(db.read_txn())
    assert [column.cell(row) for column in table.columns] == ["test", "a=1, b=2", "x=y", ""]
