# SPDX-License-Identifier: Apache-2.0
"""The object of this node is not forgotten over a restart that cannot read it."""

from __future__ import annotations

from pathlib import Path

import anyio
import pytest

from cilia.cluster.nodes import node_reflector
from cilia.cluster.own_node import OWN_NODE_FILE, OwnNodeFile
from cilia.k8s import objects as k8s
from cilia.k8s.store import ObjectStore
from cilia.k8s.watch import Event, Listed, Listing, Unread, Upsert
from statedb import DB, RWTable
from tables.addressing import IP
from tables.cluster.nodes import Node, new_nodes_table
from tables.problems import new_problems_table
from tests.patience import PATIENCE

OWN = Node(
    "me",
    {"topology.kubernetes.io/zone": "za"},
    {"note": "x"},
    (IP.parse("192.0.2.7"), IP.parse("2001:db8::7")),
    (IP.parse("1.2.3.4"),),
    ("10.1.0.0/24",),
)


def put(db: DB, table: RWTable[Node], row: Node) -> None:
    with db.write_txn(table) as wtxn:
        table.insert(wtxn, row)


async def test_the_file_follows_the_row_of_this_node(tmp_path: Path) -> None:
    db = DB()
    table = new_nodes_table(db)
    file = OwnNodeFile(tmp_path / OWN_NODE_FILE, "me")
    assert file.read() is None
    put(db, table, Node("other"))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(file.follow, db, table)
        for row in (OWN, Node("me"), None, OWN):
            if row is not None:
                put(db, table, row)
            else:
                with db.write_txn(table) as wtxn:
                    table.delete(wtxn, Node("me"))
            with anyio.fail_after(5 * PATIENCE):
                while file.read() != row:
                    await anyio.sleep(0.005)
        tasks.cancel_scope.cancel()
    assert file.read() == OWN


@pytest.mark.parametrize(
    "content", [b"", b"{", b'{"name": "me"}', b'{"name":"me","labels":{},"annotations":{},'
    b'"internal_ips":["x"],"external_ips":[],"pod_cidrs":[]}']
)  # fmt: skip
def test_a_file_that_no_agent_wrote_is_none(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / OWN_NODE_FILE
    path.write_bytes(content)
    assert OwnNodeFile(path, "me").read() is None


async def test_the_file_of_another_node_is_none(tmp_path: Path) -> None:
    db = DB()
    table = new_nodes_table(db)
    path = tmp_path / OWN_NODE_FILE
    put(db, table, OWN)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(OwnNodeFile(path, "me").follow, db, table)
        with anyio.fail_after(5 * PATIENCE):
            while not path.exists():
                await anyio.sleep(0.005)
        tasks.cancel_scope.cancel()
    assert OwnNodeFile(path, "you").read() is None


def of_others(name: str = "other") -> list[Event]:
    form = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}}
    return [Listing("Node"), Upsert(k8s.decode(form))]


@pytest.mark.parametrize(
    ("events", "left"),
    [
        ([], OWN),
        (of_others(), OWN),
        ([*of_others(), Unread("Node")], OWN),
        ([*of_others(), Listed("Node")], None),
        ([*of_others("me"), Listed("Node")], Node("me")),
    ],
)
def test_the_row_of_before_is_there_until_a_whole_list_says_otherwise(
    events: list[Event], left: Node | None
) -> None:
    db = DB()
    table = new_nodes_table(db)
    reflector = node_reflector(ObjectStore(), db, table, new_problems_table(db), restored=OWN)
    reflector.apply(events)
    assert table.get(db.read_txn(), "me") == left
