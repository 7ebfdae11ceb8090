# SPDX-License-Identifier: Apache-2.0
"""What goes with a list: what was held when it began, was not sent and is not refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from cilia.cluster.nodes import node_reflector
from cilia.cluster.problems import ProblemReflector
from cilia.cluster.sweep import Sweep
from cilia.k8s.objects import decode
from cilia.k8s.store import ObjectStore
from cilia.k8s.watch import PROBLEMS, Event, Invalid, Listed, Listing, Problem, Upsert
from cilia.loadbalancer.options import LoadBalancerOptions
from cilia.loadbalancer.services.reflector import ServiceReflector
from cilia.loadbalancer.services.writer import LoadBalancerTables, Writer
from cilia.loadbalancer.this_node import LocalNode
from statedb import DB, RWTable
from tables.cluster.nodes import new_nodes_table
from tables.problems import new_problems_table
from tests.cilia.k8s.forms import service_form


def test_a_list_leaves_over_what_was_held_and_not_sent() -> None:
    sweep = Sweep[str]()
    sweep.begin("Pod", ["d", "a", "b", "c"])
    sweep.seen("Pod", "b")
    sweep.seen("Pod", "new")
    sweep.seen("Node", "a")
    assert sweep.end("Pod", frozenset({"c"})) == ["a", "d"]


def test_a_list_that_begins_anew_counts_from_its_second_beginning() -> None:
    sweep = Sweep[str]()
    sweep.begin("Pod", ["a", "b"])
    sweep.seen("Pod", "a")
    sweep.begin("Pod", ["a", "b"])
    sweep.seen("Pod", "b")
    assert sweep.end("Pod") == ["a"]


def test_a_list_that_did_not_begin_or_was_abandoned_leaves_nothing_over() -> None:
    sweep = Sweep[str]()
    assert sweep.end("Pod") == []
    sweep.begin("Pod", ["a"])
    sweep.abandon()
    assert sweep.end("Pod") == []


Reflected = tuple[Callable[[list[Event]], None], RWTable[Any], str, Event]


def _nodes(db: DB) -> Reflected:
    table = new_nodes_table(db)
    reflector = node_reflector(ObjectStore(), db, table, new_problems_table(db))
    form = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "one"}}
    return reflector.apply, table, "Node", Upsert(decode(form))


def _problems(db: DB) -> Reflected:
    table = new_problems_table(db)
    reflector = ProblemReflector(ObjectStore(), db, table)
    return reflector.apply, table, PROBLEMS, Invalid("a.yaml", (Problem("is no object"),))


def _services(db: DB) -> Reflected:
    tables = LoadBalancerTables(db, new_problems_table(db))
    writer = Writer(db, tables, LoadBalancerOptions(), LocalNode("here"))
    reflector = ServiceReflector(ObjectStore(), writer)
    return reflector.apply, tables.services, "Service", Upsert(decode(service_form()))


@pytest.mark.parametrize("made", [_nodes, _problems, _services])
def test_each_reflector_deletes_by_a_whole_list_alone(made: Callable[[DB], Reflected]) -> None:
    db = DB("test")
    apply, table, kind, event = made(db)

    def rows() -> int:
        return table.num_objects(db.read_txn())

    apply([event])
    apply([Listed(kind)])
    assert rows() == 1, "the end of a list whose beginning was not told says nothing"
    apply([Listing(kind)])
    assert rows() == 1
    apply([event, Listed(kind)])
    assert rows() == 1
    apply([Listing(kind), Listed(kind)])
    assert rows() == 0
