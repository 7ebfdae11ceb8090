# SPDX-License-Identifier: Apache-2.0
"""Whose route stands for a destination, and what is refused."""

from __future__ import annotations

import pytest

from cilia.node.routes import DesiredRoutes
from statedb import DB
from tables.addressing import IP, Prefix
from tables.node import desired_routes as desired
from tables.node.desired_routes import DesiredHop, DesiredRoute


def route(prefix: str, owner: str = "test", **fields: object) -> DesiredRoute:
    return DesiredRoute(owner=owner, prefix=Prefix.parse(prefix), **fields)  # type: ignore[arg-type]


def test_the_writer_refuses_what_no_kernel_could_take() -> None:
    db = DB()
    table = desired.new_desired_routes_table(db)
    writer = DesiredRoutes(table)
    bad = [
        (route("10.0.0.0/8", owner=""), "owner"),
        (route("10.0.0.0/8", admin_distance=0), "admin_distance"),
        (route("10.0.0.0/8", nexthop=IP.parse("fd00::1")), "nexthop"),
        (route("10.0.0.0/8", device="a", multipath=(DesiredHop("b"),)), "multipath"),
        (route("10.0.0.0/8", multipath=(DesiredHop("b", weight=257),)), "weight"),
    ]
    with db.write_txn(table) as wtxn:
        for row, field in bad:
            with pytest.raises(ValueError, match=field):
                writer.upsert(wtxn, row)
    assert table.num_objects(db.read_txn()) == 0


def test_the_writer_writes_only_changes_and_takes_an_owner_back() -> None:
    db = DB()
    table = desired.new_desired_routes_table(db)
    writer = DesiredRoutes(table)
    with db.write_txn(table) as wtxn:
        writer.upsert(wtxn, route("10.0.0.0/8", "a", device="x"))
        writer.upsert(wtxn, route("10.0.0.0/8", "b", device="x"))
        writer.upsert(wtxn, route("11.0.0.0/8", "b", device="x"))
    before = table.revision(db.read_txn())
    with db.write_txn(table) as wtxn:
        writer.upsert(wtxn, route("10.0.0.0/8", "a", device="x"))
    assert table.revision(db.read_txn()) == before
    with db.write_txn(table) as wtxn:
        assert writer.delete_owner(wtxn, "a") == 1
    rows = list(table.all(db.read_txn()))
    assert [(row.owner, row.selected) for row in rows] == [("b", True), ("b", True)]
    text = "b:main:10.0.0.0/8"
    key = desired.ID.parse_key(text)
    assert len(list(table.prefix(db.read_txn(), key))) == 1
