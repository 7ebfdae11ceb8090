# SPDX-License-Identifier: Apache-2.0
"""An address that two Node objects have is nobody's alone."""

from __future__ import annotations

from cilia.node.own_addresses import sole_addresses
from statedb import DB, WatchSet
from tables.addressing import IP
from tables.cluster.nodes import Node, new_nodes_table

ONE, TWO = IP.parse("192.0.2.1"), IP.parse("192.0.2.2")


async def test_an_address_of_two_nodes_is_left_out_while_it_is_so() -> None:
    db = DB()
    nodes = new_nodes_table(db)
    sole = sole_addresses(nodes, "one")

    def put(*rows: Node) -> None:
        with db.write_txn(nodes) as wtxn:
            nodes.insert_many(wtxn, list(rows))

    put(Node("one", internal_ips=(ONE, TWO)), Node("two", internal_ips=(TWO,)))
    watches = WatchSet()
    assert db.look(lambda txn: sole(txn, watches)) == (ONE,)
    put(Node("two", internal_ips=()))
    await watches.wait()
    assert db.look(lambda txn: sole(txn, WatchSet())) == (ONE, TWO)
