# SPDX-License-Identifier: Apache-2.0
"""A node that shares no objects gives the numbers itself."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import pytest

from cilia.identity import local
from tests.cilia.identity.nodes import Node

pytestmark = pytest.mark.timeout(30)


@asynccontextmanager
async def running(node: Node) -> AsyncIterator[Node]:
    async with anyio.create_task_group() as group:
        group.start_soon(node.run)
        yield node
        group.cancel_scope.cancel()


async def test_equal_labels_have_one_number_which_goes_with_the_last() -> None:
    async with running(Node(None)) as node:
        for name, app in (("a", "web"), ("b", "web"), ("c", "db")):
            node.add(name, app)
        await node.until(lambda: all(number for _, number in node.in_force().values()))
        numbers = {name: number for name, (_, number) in node.in_force().items()}
        assert numbers["a"] == numbers["b"] != numbers["c"]
        node.remove("a")
        node.remove("c")
        await node.until(lambda: known(node) == {numbers["b"]})
        node.add("d", "cache")
        await node.until(lambda: node.identity_of("d") != 0)
        assert node.identity_of("d") > numbers["c"], "it is not given out again at once"


def known(node: Node) -> set[int]:
    rows = node.identity.identities.all(node.db.read_txn())
    return {identity.id for identity in rows if not identity.is_reserved}


async def test_labels_that_change_make_another_number() -> None:
    async with running(Node(None)) as node:
        node.add("a", "web")
        await node.until(lambda: node.identity_of("a") != 0)
        number = node.identity_of("a")
        node.label("a", "db")
        await node.until(lambda: "k8s:app=db" in node.endpoint("a").labels)
        assert node.identity_of("a") != number
        await node.until(lambda: known(node) == {node.identity_of("a")})


async def test_a_restart_keeps_numbers_also_of_pods_that_come_late() -> None:
    async with running(Node(None)) as first:
        first.add("a", "web")
        first.add("b", "db")
        await first.until(lambda: all(number for _, number in first.in_force().values()))
        numbers = [first.identity_of(name) for name in ("a", "b")]
    second = first.successor(None)
    with second.db.write_txn(second.pods) as wtxn:
        second.pods.delete_key(wtxn, "test/b")
    async with running(second):
        second.add("c", "new")
        await second.until(lambda: second.identity_of("c") != 0)
        assert second.identity_of("c") not in numbers
        second.label("b", "db")
        await second.until(lambda: len(second.endpoint("b").labels) > 0)
        assert [second.identity_of(name) for name in ("a", "b")] == numbers


async def test_no_number_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "NUMBERS", 1)
    async with running(Node(None)) as node:
        node.add("a", "web")
        await node.until(lambda: node.identity_of("a") != 0)
        node.add("b", "db")
        await node.until(
            lambda: (
                "identities of the cluster are in use"
                in node.db.look(lambda txn: node.controller.waits_for(txn, node.endpoint("b")))
            )
        )
        node.remove("a")
        await node.until(lambda: node.identity_of("b") != 0)
