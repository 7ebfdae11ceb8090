# SPDX-License-Identifier: Apache-2.0
"""Reading the target back: drift is reported with its age, and repaired."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Mapping
from typing import Any

import anyio
import pytest

from reconcilers import Drift, Reconciler, new_drift_table
from statedb import DB
from tests.reconcilers.loadbalancer.lb_world import PLAIN, LBWorld, frontend
from tests.reconcilers.targets import (
    FAST,
    Target,
    VerifiableTarget,
    new_rows,
    put,
    running,
)


class World:
    def __init__(self, interval_s: float = 0.0) -> None:
        self.db = DB()
        self.table = new_rows(self.db)
        self.drift = new_drift_table(self.db)
        self.target = VerifiableTarget()
        self.found: list[int] = []
        self.reconciler = Reconciler(
            self.db,
            self.table,
            self.target,
            config=dataclasses.replace(FAST, verify_interval_s=interval_s),
            name="rows",
            drift=self.drift,
        )
        put(self.db, self.table, (1, "a"), (2, "b"), (3, "c"))

    def rows(self) -> list[Drift]:
        return list(self.drift.all(self.db.read_txn()))

    async def settled(self) -> None:
        revision = self.table.revision(self.db.read_txn())
        await self.reconciler.wait_until_reconciled(revision, settled=True)

    async def until_drift(self, count: int) -> None:
        while True:
            number, changed = self.drift.num_objects_watch(self.db.read_txn())
            if number == count:
                return
            await changed.wait()


async def test_each_kind_of_difference_is_reported_and_repaired() -> None:
    world = World()
    async with running(world.reconciler):
        await world.settled()
        del world.target.held[1]
        world.target.held[2] = "wrong"
        world.target.held[9] = "foreign"
        world.reconciler.verify_now()
        await world.until_drift(3)
        assert [(d.reconciler, d.key, d.kind, d.expected, d.actual) for d in world.rows()] == [
            ("rows", "row 1", "missing", "a", ""),
            ("rows", "row 2", "different", "b", "wrong"),
            ("rows", "row 9", "foreign", "", "foreign"),
        ]
        await world.settled()
        assert world.target.held == {1: "a", 2: "b", 3: "c"}
        world.reconciler.verify_now()
        await world.until_drift(0)
    assert world.target.ids("update") == [1, 2, 3, 1, 2]


async def test_row_keeps_the_time_when_it_was_first_seen_while_repair_fails() -> None:
    world = World()
    async with running(world.reconciler):
        await world.settled()
        world.target.held[9] = "foreign"
        world.target.fail_prunes = 1_000_000  # a repair would take the row away
        world.reconciler.verify_now()
        await world.until_drift(1)
        first = world.rows()[0]
        world.target.held[9] = "foreign"
        world.reconciler.verify_now()
        while world.rows()[0].seen < 2:
            await anyio.sleep(0.001)
        assert world.rows()[0].since == first.since


async def test_objects_that_failed_are_no_drift() -> None:
    world = World()
    async with running(world.reconciler):
        await world.settled()
        world.target.poison = {2}
        put(world.db, world.table, (2, "new"))
        await world.reconciler.wait_until_reconciled(world.table.revision(world.db.read_txn()))
        del world.target.held[1]
        world.reconciler.verify_now()
        await world.until_drift(1)
    assert [row.key for row in world.rows()] == ["row 1"]


async def test_a_read_back_in_a_thread_holds_up_rounds_and_nothing_else() -> None:
    world = World()
    reading, go_on = threading.Event(), threading.Event()

    class Slow(VerifiableTarget):
        def actual(self) -> Mapping[Any, Any]:
            found = super().actual()
            reading.set()
            assert go_on.wait(10)
            return found

    target = Slow()
    reconciler = Reconciler(
        world.db,
        world.table,
        target,
        config=dataclasses.replace(FAST, verify_in_thread=True),
        drift=world.drift,
    )
    async with running(reconciler):
        await reconciler.wait_until_reconciled(world.table.revision(world.db.read_txn()))
        del target.held[1]
        reconciler.verify_now()
        while not reading.is_set():
            await anyio.sleep(0.001)  # which this loop can only do if it is free
        put(world.db, world.table, (4, "d"))
        await anyio.sleep(0.02)
        assert 4 not in target.held
        go_on.set()
        await reconciler.wait_until_reconciled(world.table.revision(world.db.read_txn()))
        await world.until_drift(1)
        while target.held.get(1) != "a":
            await anyio.sleep(0.001)
    assert target.held[4] == "d"


async def test_verification_comes_periodically() -> None:
    world = World(interval_s=0.005)
    async with running(world.reconciler):
        await world.settled()
        for _ in range(2):
            del world.target.held[1]
            while world.target.held.get(1) != "a":
                await anyio.sleep(0.001)
        await world.until_drift(0)


async def test_read_back_that_fails_is_reported_and_comes_again() -> None:
    world = World()
    reports: list[str] = []

    class Unreadable(VerifiableTarget):
        readable = False

        def actual(self) -> Mapping[Any, Any]:
            if not self.readable:
                raise OSError("not readable")
            return super().actual()

    target = Unreadable()
    reconciler = Reconciler(
        world.db,
        world.table,
        target,
        config=FAST,
        drift=world.drift,
        health=lambda part, ok, message: reports.append(message),
    )
    async with running(reconciler):
        reconciler.verify_now()
        while "verify: not readable" not in reports:
            await anyio.sleep(0.001)
        target.readable = True
        while reports[-1] != "OK, 3 object(s)":
            await anyio.sleep(0.001)


def test_target_that_cannot_be_read_back_is_refused() -> None:
    db = DB()
    with pytest.raises(TypeError, match="Target cannot verify"):
        Reconciler(
            db,
            new_rows(db),
            Target(),
            drift=new_drift_table(db),
        )


def test_asking_for_verification_without_a_table_for_it_is_an_error() -> None:
    db = DB()
    reconciler = Reconciler(db, new_rows(db), VerifiableTarget())
    with pytest.raises(RuntimeError, match="no table of drift"):
        reconciler.verify_now()


async def test_changed_map_entries_are_reported_as_the_dump_shows_them_and_repaired() -> None:
    world = LBWorld(PLAIN, drift=True)
    world.set_nodes("192.0.2.1")
    world.put(
        frontend("10.96.0.1:80/TCP", ["10.244.1.1:80/TCP", "10.244.1.2:80/TCP"]),
        frontend("[fd00::1]:80/TCP", ["[2001::1]:80/TCP"]),
    )
    async with running(world.reconciler):
        await world.settled()
        before = world.dump()
        service, backend = world.kernel.maps.v4.service, world.kernel.maps.v4.backend
        keys = sorted(key for key, _ in service.items())
        service.delete(keys[1])
        backend.clear()
        backend.update(b"\x63\0\0\0", bytes(16))
        world.reconciler.verify_now()
        while world.dump() != before:
            await anyio.sleep(0.001)
        rows = sorted((row.kind, row.expected, row.actual) for row in world.drift_rows())
        assert rows == [
            ("foreign", "", "BE: ID=99 ADDR=0.0.0.0:0/ANY STATE=active"),
            ("missing", "BE: ID=1 ADDR=10.244.1.1:80/TCP STATE=active", ""),
            ("missing", "BE: ID=2 ADDR=10.244.1.2:80/TCP STATE=active", ""),
            (
                "missing",
                "SVC: ID=1 ADDR=10.96.0.1:80/TCP SLOT=1 BEID=1 COUNT=0 QCOUNT=0 "
                "FLAGS=ClusterIP+non-routable",
                "",
            ),
        ]
        world.reconciler.verify_now()
        while world.drift_rows():
            await anyio.sleep(0.001)
