# SPDX-License-Identifier: Apache-2.0
"""Rows are carried out a few at a time, as they are when their turn comes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import anyio

from cilia.cluster.object_reconciler import MOST_AT_ONCE, ObjectReconciler, Plan, Work
from cilia.k8s.errors import Unreachable
from cilia.program.health import HealthReporter
from reconcilers.operations import Refusal
from statedb import DB, Channel, ReadTxn, StatusKind
from tables.health import new_health_table
from tables.identity.desired_identities import DesiredIdentity, new_desired_identities_table
from tables.identity.identities import Identity, new_k8s_identities_table


class World:
    """Rows of owner `test` that want a number each; `writes` has them in order."""

    def __init__(self) -> None:
        self.db = DB()
        self.rows = new_desired_identities_table(self.db)
        self.objects = new_k8s_identities_table(self.db)
        self.health = new_health_table(self.db)
        self.writes: list[tuple[int, str]] = []
        self.under_way = self.most = 0
        self.gate = anyio.Event()
        self.away = False
        plan = Plan(
            rows=self.rows,
            objects=self.objects,
            work=self._work,
            watch=self._watch,
            well="all is well",
            failed="{} rows are not as they should be",
        )
        health = HealthReporter(self.db, self.health, "test", "rows")
        self.reconciler = ObjectReconciler(self.db, plan, health)

    def _work(self, txn: ReadTxn, row: DesiredIdentity) -> Work | None:
        if row.labels == ("taken",):
            raise Refusal("it is another one's")
        found = self.objects.get(txn, row.number)
        if found is not None and found.labels == row.labels:
            return None
        return partial(self._write, row)

    def _watch(self, txn: ReadTxn, row: DesiredIdentity) -> Channel:
        return self.objects.get_watch(txn, row.number)[1]

    async def _write(self, row: DesiredIdentity) -> None:
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        await self.gate.wait()
        self.under_way -= 1
        if self.away:
            raise Unreachable("the server is away")
        self.writes.append((row.number, row.labels[0]))
        with self.db.write_txn(self.objects) as wtxn:
            self.objects.insert(wtxn, Identity(row.number, row.labels))

    def want(self, number: int, label: str) -> None:
        with self.db.write_txn(self.rows) as wtxn:
            for held in list(self.rows.all(wtxn)):
                if held.number == number:
                    self.rows.delete(wtxn, held)
            self.rows.insert(wtxn, DesiredIdentity("test", (label,), number))

    def statuses(self) -> list[tuple[StatusKind, str]]:
        rows = self.db.look(lambda txn: list(self.rows.all(txn)))
        return [(row.status.kind, row.status.error) for row in rows]

    async def until(self, condition: Callable[[], Any]) -> None:
        with anyio.fail_after(8):
            while not condition():
                channels = self.db.look(lambda txn: self.rows.all_watch(txn)[1])
                await channels.wait()

    async def run(self, then: Callable[[], Any]) -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(self.reconciler.run)
            await then()
            group.cancel_scope.cancel()


async def test_a_few_writes_are_under_way_at_once() -> None:
    world = World()
    for number in range(300, 320):
        world.want(number, "web")

    async def then() -> None:
        await anyio.wait_all_tasks_blocked()
        assert world.under_way == MOST_AT_ONCE
        world.gate.set()
        await world.until(lambda: world.statuses() == [(StatusKind.DONE, "")] * 20)
        assert (world.most, len(world.writes)) == (MOST_AT_ONCE, 20)

    await world.run(then)


async def test_a_row_that_changes_while_it_waits_is_written_as_it_is_then() -> None:
    world = World()
    for number in range(300, 300 + MOST_AT_ONCE + 1):
        world.want(number, "web")

    async def then() -> None:
        await anyio.wait_all_tasks_blocked()
        last = 300 + MOST_AT_ONCE
        world.want(last, "db")
        world.gate.set()
        await world.until(lambda: {kind for kind, _ in world.statuses()} == {StatusKind.DONE})
        assert [label for number, label in world.writes if number == last] == ["db"]

    await world.run(then)


async def test_a_refusal_is_no_failure_and_a_failure_is_told_until_it_is_over() -> None:
    world = World()
    world.gate.set()
    world.away = True
    world.want(300, "taken")

    async def then() -> None:
        refused = (StatusKind.REFUSED, "it is another one's")
        await world.until(lambda: world.statuses() == [refused])
        world.want(301, "web")
        failed = (StatusKind.ERROR, "the server is away")
        await world.until(lambda: failed in world.statuses())
        (health,) = world.db.look(lambda txn: list(world.health.all(txn)))
        assert (health.message, health.error) == ("1 rows are not as they should be", failed[1])
        world.away = False
        await world.until(lambda: (StatusKind.DONE, "") in world.statuses())
        await anyio.wait_all_tasks_blocked()
        (health,) = world.db.look(lambda txn: list(world.health.all(txn)))
        assert health.message == "all is well"

    await world.run(then)
