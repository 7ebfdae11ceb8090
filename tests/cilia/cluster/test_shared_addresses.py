# SPDX-License-Identifier: Apache-2.0
"""An address of two Node objects is a problem of both for as long as they have it."""

from __future__ import annotations

from cilia.cluster.shared_addresses import SharedAddresses
from statedb import DB
from tables.addressing import IP
from tables.cluster.nodes import Node, new_nodes_table
from tables.problems import new_problems_table

ONE, TWO = IP.parse("192.0.2.1"), IP.parse("192.0.2.2")


def test_both_nodes_are_named_until_one_gets_an_address_of_its_own() -> None:
    db = DB()
    nodes, problems = new_nodes_table(db), new_problems_table(db)
    shared = SharedAddresses(db, nodes, problems)

    def told_with(*rows: Node) -> list[str]:
        with db.write_txn(nodes) as wtxn:
            nodes.insert_many(wtxn, list(rows))
        shared._step()
        return [str(problem) for problem in problems.all(db.read_txn())]

    assert told_with(Node("a", internal_ips=(ONE,), external_ips=(ONE,))) == []
    first, second = told_with(Node("b", internal_ips=(TWO,), external_ips=(ONE,)))
    assert first.startswith("Node a: status.addresses: 192.0.2.1 is also an address of b: ")
    assert second.startswith("Node b: status.addresses: 192.0.2.1 is also an address of a: ")
    assert told_with(Node("b", internal_ips=(TWO,))) == []
