# SPDX-License-Identifier: Apache-2.0
"""The reconciler's loop against a target in memory."""

from __future__ import annotations

import asyncio
import dataclasses
import random
import threading
from collections.abc import Callable
from typing import Any

import anyio
import pytest

from reconcilers import Config, Reconciler
from reconcilers.operations import Refusal
from statedb import DB, ReadTxn, RWTable, StatusKind
from tests.reconcilers.targets import (
    FAST,
    BatchTarget,
    Row,
    Target,
    new_rows,
    put,
    remove,
    running,
)


class World:
    """A database, a table, a target and its reconciler."""

    def __init__(self, target: Target | None = None, config: Config = FAST, **options: Any) -> None:
        self.db = DB()
        self.table: RWTable[Row] = new_rows(self.db)
        self.target = target or Target()
        self.reports: list[tuple[str, bool, str]] = []
        self.reconciler = Reconciler(
            self.db,
            self.table,
            self.target,
            config=config,
            health=lambda *report: self.reports.append(report),
            rng=random.Random(1),
            **options,
        )

    def put(self, *pairs: tuple[int, str]) -> int:
        return put(self.db, self.table, *pairs)

    def remove(self, *numbers: int) -> int:
        return remove(self.db, self.table, *numbers)

    def row(self, number: int) -> Row:
        row = self.table.get(self.db.read_txn(), number)
        assert row is not None
        return row

    def kinds(self) -> dict[int, StatusKind]:
        return {row.id: row.status.kind for row in self.table.all(self.db.read_txn())}

    async def settled(self) -> None:
        """Until everything that is in the table now is in the target."""
        revision = self.table.revision(self.db.read_txn())
        await self.reconciler.wait_until_reconciled(revision, settled=True)

    async def until(self, condition: Callable[[], bool]) -> None:
        """Until the condition holds; looked at whenever the table changes."""
        while True:
            _, changed = self.table.all_watch(self.db.read_txn())
            if condition():
                return
            await changed.wait()


async def test_rows_reach_the_target_and_are_done() -> None:
    world = World()
    world.put((1, "a"), (2, "b"))
    async with running(world.reconciler):
        await world.settled()
        assert world.target.held == {1: "a", 2: "b"}
        assert set(world.kinds().values()) == {StatusKind.DONE}
        world.put((1, "c"))
        world.remove(2)
        await world.settled()
    assert world.target.held == {1: "c"}


async def test_objects_are_applied_in_revision_order() -> None:
    world = World()
    for number in (5, 3, 9, 1):
        world.put((number, "x"))
    world.put((3, "y"))
    async with running(world.reconciler):
        await world.settled()
    assert world.target.ids("update") == [5, 9, 1, 3]


async def test_object_is_not_applied_again_when_only_its_status_was_written() -> None:
    world = World()
    world.put((1, "a"))
    async with running(world.reconciler):
        await world.settled()
        await world.settled()
        world.put((2, "b"))
        await world.settled()
    assert world.target.ids("update") == [1, 2]


async def test_round_is_limited_in_size() -> None:
    target = BatchTarget()
    world = World(target, dataclasses.replace(FAST, round_size=10))
    world.put(*((number, "x") for number in range(35)))
    async with running(world.reconciler):
        await world.settled()
    assert [len(ids) for _, ids in target.batches] == [10, 10, 10, 5]
    assert target.ids("update") == list(range(35))


async def test_round_of_heavy_objects_has_fewer() -> None:
    target = BatchTarget()
    config = dataclasses.replace(FAST, round_size=10)
    world = World(target, config, weight=lambda row: 10 if row.id < 3 else 2)
    world.put(*((number, "x") for number in range(15)))
    async with running(world.reconciler):
        await world.settled()
    assert [len(ids) for _, ids in target.batches] == [1, 1, 1, 5, 5, 2]


async def test_statuses_of_a_round_are_one_transaction() -> None:
    world = World()
    world.put(*((number, "x") for number in range(100)))
    async with running(world.reconciler):
        await world.settled()
    stamps = {row.status.updated_at for row in world.table.all(world.db.read_txn())}
    assert len(stamps) == 1


async def test_failed_object_is_retried_until_it_succeeds() -> None:
    world = World()
    world.target.poison = {1}
    revision = world.put((1, "a"))
    async with running(world.reconciler):
        mark = await world.reconciler.wait_until_reconciled(revision)
        assert mark.retry_low_watermark == revision
        assert not mark.settled(revision)
        await world.until(lambda: world.row(1).status.kind is StatusKind.ERROR)
        assert world.row(1).status.error == "update 1 refused"
        with anyio.move_on_after(0.05):
            await world.reconciler.wait_until_reconciled(revision, settled=True)
        assert len(world.target.ids("update")) > 2
        world.target.poison = set()
        await world.reconciler.wait_until_reconciled(revision, settled=True)
        assert world.row(1).status.kind is StatusKind.DONE
        assert world.row(1).status.error == ""
    assert world.target.held == {1: "a"}


async def test_all_others_go_through_when_one_object_is_poisonous() -> None:
    world = World(config=dataclasses.replace(FAST, round_size=7))
    world.target.poison = {3}
    revision = world.put(*((number, "x") for number in range(50)))
    async with running(world.reconciler):
        await world.reconciler.wait_until_reconciled(revision)
        await world.until(lambda: sum(k is StatusKind.DONE for k in world.kinds().values()) == 49)
    assert set(world.target.held) == set(range(50)) - {3}


async def test_all_others_go_through_when_one_object_fails_the_whole_batch() -> None:
    target = BatchTarget()
    target.raise_on = {3}
    world = World(target)
    revision = world.put(*((number, "x") for number in range(20)))
    async with running(world.reconciler):
        await world.reconciler.wait_until_reconciled(revision)
        assert set(target.held) == set(range(20)) - {3}
        target.raise_on = set()
        await world.settled()
    assert 3 in target.held


async def test_failed_delete_is_retried() -> None:
    world = World()
    world.put((1, "a"))
    async with running(world.reconciler):
        await world.settled()
        world.target.poison_delete = {1}
        revision = world.remove(1)
        mark = await world.reconciler.wait_until_reconciled(revision)
        assert not mark.settled(revision)
        assert world.target.held == {1: "a"}
        world.target.poison_delete = set()
        await world.settled()
    assert world.target.held == {}


async def test_failed_delete_is_given_up_when_the_row_comes_back() -> None:
    world = World()
    world.put((1, "a"))
    async with running(world.reconciler):
        await world.settled()
        world.target.poison_delete = {1}
        await world.reconciler.wait_until_reconciled(world.remove(1))
        world.put((1, "b"))
        await world.settled()
    assert world.target.held == {1: "b"}
    assert world.target.calls[-1] == ("update", 1)


async def test_failed_delete_is_not_retried_when_the_row_came_back_in_the_backlog() -> None:
    config = dataclasses.replace(
        FAST, round_size=1, retry_backoff_min_s=1e-6, retry_backoff_max_s=1e-6
    )
    world = World(config=config)
    world.put((1, "a"))
    async with running(world.reconciler):
        await world.settled()
        world.target.poison_delete = {1}
        await world.reconciler.wait_until_reconciled(world.remove(1))
        world.target.poison_delete = set()
        before = len(world.target.calls)
        world.put(*((number, "x") for number in range(2, 20)), (1, "b"))
        await world.settled()
    assert ("delete", 1) not in world.target.calls[before:]
    assert world.target.held[1] == "b"


def test_backoff_starts_anew_when_a_new_version_fails() -> None:
    now = [0.0]
    config = dataclasses.replace(
        FAST, retry_backoff_min_s=1.0, retry_backoff_max_s=60.0, retry_jitter=0.0
    )
    world = World(config=config, clock=lambda: now[0])
    world.target.poison = {1}
    world.put((1, "a"))
    for _ in range(5):
        world.reconciler._cycle()
        now[0] = world.reconciler._retries.next_due() or 0.0
    world.put((1, "b"))
    world.reconciler._cycle()
    assert world.reconciler._retries.next_due() == now[0] + 1.0


async def test_deleted_object_is_not_updated_when_its_update_waited_for_a_retry() -> None:
    world = World()
    world.target.poison = {1}
    async with running(world.reconciler):
        await world.reconciler.wait_until_reconciled(world.put((1, "a")))
        await world.reconciler.wait_until_reconciled(world.remove(1))
        world.target.poison = set()
        calls = len(world.target.calls)
        world.put((2, "b"))
        await world.settled()
        assert world.target.calls[calls:] == [("update", 2)]
    assert world.target.held == {2: "b"}


async def test_newer_data_is_not_overwritten_when_it_was_written_during_the_update() -> None:
    class Racing(Target):
        def update(self, txn: Any, revision: int, obj: Row) -> Row | None:
            if obj.value == "old":
                world.put((1, "new"))
            return super().update(txn, revision, obj)

    world = World(Racing())
    world.put((1, "old"))
    async with running(world.reconciler):
        await world.until(lambda: world.row(1).status.kind is StatusKind.DONE)
    assert world.row(1).value == "new"
    assert world.target.held == {1: "new"}
    assert world.target.ids("update") == [1, 1]


async def test_row_stays_deleted_when_it_was_deleted_during_the_update() -> None:
    class Racing(Target):
        def update(self, txn: Any, revision: int, obj: Row) -> Row | None:
            world.remove(1)
            return super().update(txn, revision, obj)

    world = World(Racing())
    world.put((1, "a"))
    async with running(world.reconciler):
        await _eventually(lambda: len(world.target.calls) == 2)
    assert world.kinds() == {}
    assert world.target.held == {}
    assert world.target.calls == [("update", 1), ("delete", 1)]


async def test_what_the_operation_learned_is_stored() -> None:
    class Learning(Target):
        def update(self, txn: Any, revision: int, obj: Row) -> Row | None:
            super().update(txn, revision, obj)
            return Row(obj.id, obj.value, obj.status, learned=obj.id * 10)

    world = World(Learning())
    world.put((1, "a"), (2, "b"))
    async with running(world.reconciler):
        await world.settled()
    assert [row.learned for row in world.table.all(world.db.read_txn())] == [10, 20]


async def test_nothing_is_lost_when_a_round_ends_by_an_error_of_the_program() -> None:
    class Broken(Target):
        broken = True

        def update(self, txn: Any, revision: int, obj: Row) -> Row | None:
            if self.broken:
                raise KeyboardInterrupt
            return super().update(txn, revision, obj)

    target = Broken()
    world = World(target)
    world.put((1, "a"), (2, "b"))
    world.remove(2)
    with pytest.raises(BaseExceptionGroup):
        await world.reconciler.run()
    target.broken = False
    async with running(world.reconciler):
        await world.settled()
    assert target.held == {1: "a"}
    assert world.row(1).status.kind is StatusKind.DONE


async def test_errors_of_an_earlier_reconciler_are_attempted_at_start() -> None:
    world = World()
    world.target.poison = {1}
    revision = world.put((1, "a"))
    async with running(world.reconciler):
        await world.reconciler.wait_until_reconciled(revision)
        await world.until(lambda: world.row(1).status.kind is StatusKind.ERROR)
    world.reconciler.close()
    target = Target()
    second = Reconciler(world.db, world.table, target, config=FAST)
    async with running(second):
        await second.wait_until_reconciled(world.table.revision(world.db.read_txn()), settled=True)
    assert target.held == {1: "a"}


async def test_retries_are_not_starved_when_changes_fill_every_round() -> None:
    config = dataclasses.replace(
        FAST, round_size=10, retry_backoff_min_s=1e-6, retry_backoff_max_s=1e-6
    )
    world = World(BatchTarget(), config)
    world.target.poison = {1000}
    async with running(world.reconciler):
        await world.reconciler.wait_until_reconciled(world.put((1000, "x")))
        before = len(world.target.calls)
        world.put(*((number, "x") for number in range(100)))
        await world.until(lambda: len(world.target.held) == 100)
        during = world.target.calls[before:]
    backlog = during[during.index(("update", 0)) : during.index(("update", 99))]
    assert backlog.count(("update", 1000)) >= 5


# -- prune ------------------------------------------------------------------------------------


class Refusing(Target):
    """Has no object of the value `no`; any other update of its id is applied."""

    def update(self, txn: ReadTxn, revision: int, obj: Row) -> Row | None:
        super().update(txn, revision, obj)
        if obj.value == "no":
            raise Refusal("there is another one")
        return None


async def test_a_refused_object_says_so_and_is_not_tried_again_until_it_is_asked_for() -> None:
    world = World(Refusing())
    async with running(world.reconciler):
        revision = world.put((1, "no"), (2, "b"))
        await world.reconciler.wait_until_reconciled(revision, settled=True)
        status = world.row(1).status
        assert (status.kind, status.error) == (StatusKind.REFUSED, "there is another one")
        assert world.row(2).status.kind is StatusKind.DONE
        await anyio.sleep(10 * FAST.retry_backoff_max_s)
        assert world.target.ids("update") == [1, 2]
        assert all(good for _, good, _ in world.reports)
        await world.reconciler.wait_until_reconciled(world.put((1, "a")), settled=True)
        assert world.row(1).status.kind is StatusKind.DONE


async def test_what_failed_and_is_refused_then_is_not_tried_again() -> None:
    world = World(Refusing())
    world.target.poison.add(1)
    async with running(world.reconciler):
        await world.reconciler.wait_until_reconciled(world.put((1, "no")))
        assert world.row(1).status.kind is StatusKind.ERROR
        world.target.poison.clear()
        revision = world.table.revision(world.db.read_txn())
        await world.reconciler.wait_until_reconciled(revision, settled=True)
        assert world.row(1).status.kind is StatusKind.REFUSED


async def test_prune_waits_until_the_table_is_initialised() -> None:
    world = World()
    world.target.held = {99: "foreign"}
    with world.db.write_txn(world.table) as wtxn:
        done_first = world.table.register_initializer(wtxn, "first")
        done_second = world.table.register_initializer(wtxn, "second")
    world.put((1, "a"))
    async with running(world.reconciler):
        await world.settled()
        world.reconciler.prune_now()
        with world.db.write_txn(world.table) as wtxn:
            done_first(wtxn)
        world.put((2, "b"))
        await world.settled()
        assert world.target.held == {99: "foreign", 1: "a", 2: "b"}
        assert world.target.prunes == 0
        with world.db.write_txn(world.table) as wtxn:
            done_second(wtxn)
        await _eventually(lambda: world.target.prunes == 1)
    assert world.target.held == {1: "a", 2: "b"}


async def test_prune_comes_on_request() -> None:
    world = World()
    async with running(world.reconciler):
        await _eventually(lambda: world.target.prunes == 1)
        world.target.held[99] = "foreign"
        world.reconciler.prune_now()
        await _eventually(lambda: world.target.prunes == 2)
    assert world.target.held == {}


async def test_prune_comes_on_request_from_another_thread() -> None:
    world = World()
    async with running(world.reconciler):
        await _eventually(lambda: world.target.prunes == 1)
        threading.Thread(target=world.reconciler.prune_now).start()
        await _eventually(lambda: world.target.prunes == 2)


async def test_prune_comes_periodically() -> None:
    world = World(config=dataclasses.replace(FAST, prune_interval_s=0.005))
    async with running(world.reconciler):
        await _eventually(lambda: world.target.prunes >= 4)


async def test_loop_sleeps_when_a_prune_is_due_and_the_table_is_not_initialised_any_more() -> None:
    world = World(config=dataclasses.replace(FAST, prune_interval_s=0.005))
    async with running(world.reconciler):
        await _eventually(lambda: world.target.prunes >= 2)
        with world.db.write_txn(world.table) as wtxn:
            filled = world.table.register_initializer(wtxn, "late")
        await asyncio.sleep(0.02)
        prunes, reports = world.target.prunes, len(world.reports)
        await asyncio.sleep(0.02)
        assert world.target.prunes == prunes
        assert len(world.reports) - reports <= 1
        with world.db.write_txn(world.table) as wtxn:
            filled(wtxn)
        await _eventually(lambda: world.target.prunes > prunes)


async def test_prune_is_tried_again_when_it_failed() -> None:
    world = World()
    world.target.fail_prunes = 2
    world.target.held = {99: "foreign"}
    async with running(world.reconciler):
        await _eventually(lambda: world.target.prunes == 3)
        await _eventually(lambda: world.reports[-1] == ("job-reconcile", True, "OK, 0 object(s)"))
    assert ("job-reconcile", False, "prune: prune refused") in world.reports
    assert world.target.held == {}


async def test_prune_keeps_what_failed() -> None:
    world = World()
    world.put((1, "a"))
    async with running(world.reconciler):
        await world.settled()
        world.target.poison = {1}
        await world.reconciler.wait_until_reconciled(world.put((1, "b")))
        world.reconciler.prune_now()
        await _eventually(lambda: world.target.prunes == 2)
    assert world.target.held == {1: "a"}


# -- refresh ----------------------------------------------------------------------------------


async def test_old_objects_are_refreshed() -> None:
    world = World(config=dataclasses.replace(FAST, refresh_interval_s=0.02))
    world.put((1, "a"), (2, "b"))
    async with running(world.reconciler):
        await world.settled()
        world.target.held.clear()
        await _eventually(lambda: world.target.held == {1: "a", 2: "b"})
    assert any(part == "job-refresh" for part, _, _ in world.reports)


async def test_refresh_is_limited_in_rate() -> None:
    config = dataclasses.replace(FAST, refresh_interval_s=0.01, refresh_rate=200.0)
    world = World(config=config)
    world.put(*((number, "x") for number in range(1000)))
    async with running(world.reconciler):
        await world.settled()
        before = len(world.target.calls)
        started = anyio.current_time()
        await _eventually(lambda: len(world.target.calls) >= before + 60)
        elapsed_s = anyio.current_time() - started
        refreshed = len(world.target.calls) - before
    # 20 at once are a tenth of a second's share.
    assert refreshed <= 200 * elapsed_s + 40


async def test_failed_objects_are_not_refreshed() -> None:
    config = dataclasses.replace(
        FAST, refresh_interval_s=0.01, retry_backoff_min_s=30.0, retry_backoff_max_s=30.0
    )
    world = World(config=config)
    world.target.poison = {1}
    world.put((1, "a"), (2, "b"))
    async with running(world.reconciler):
        await _eventually(lambda: len(world.target.ids("update")) >= 5)
    assert world.target.ids("update").count(1) == 1


# -- several reconcilers, threads, health -------------------------------------------------------


async def test_rounds_in_a_worker_thread() -> None:
    threads = set()

    class Noting(Target):
        def update(self, txn: Any, revision: int, obj: Row) -> Row | None:
            threads.add(threading.current_thread())
            return super().update(txn, revision, obj)

    world = World(Noting(), dataclasses.replace(FAST, in_thread=True))
    world.put((1, "a"))
    async with running(world.reconciler):
        await world.settled()
        world.put((2, "b"))
        await world.settled()
    assert world.target.held == {1: "a", 2: "b"}
    assert threading.current_thread() not in threads


async def test_health_tells_of_errors_and_recovery() -> None:
    world = World()
    world.target.poison = {1, 2, 3, 4, 5}
    world.put(*((number, "x") for number in range(6)))
    async with running(world.reconciler):
        await _eventually(lambda: any(not ok for _, ok, _ in world.reports))
        message = next(text for _, ok, text in world.reports if not ok)
        world.target.poison = set()
        await world.settled()
        await _eventually(lambda: world.reports[-1] == ("job-reconcile", True, "OK, 6 object(s)"))
    assert message == ("1: update 1 refused; 2: update 2 refused; 3: update 3 refused; and 2 more")


async def test_waiting_for_a_revision_returns_at_once_when_it_is_reached() -> None:
    world = World()
    revision = world.put((1, "a"))
    async with running(world.reconciler):
        await world.reconciler.wait_until_reconciled(revision)
        mark = await world.reconciler.wait_until_reconciled(revision)
    assert mark.settled(revision)


async def test_waiting_lasts_while_the_backlog_is_not_reached() -> None:
    world = World(config=dataclasses.replace(FAST, round_size=1))
    first = world.put((1, "a"))
    last = world.put((2, "b"), (3, "c"))
    seen = []

    async def wait(revision: int) -> None:
        await world.reconciler.wait_until_reconciled(revision)
        seen.append((revision, dict(world.target.held)))

    async with anyio.create_task_group() as waiters, running(world.reconciler):
        waiters.start_soon(wait, last)
        waiters.start_soon(wait, first)
        await world.settled()
    assert dict(seen)[last] == {1: "a", 2: "b", 3: "c"}
    assert 1 in dict(seen)[first]


async def _eventually(condition: Callable[[], bool]) -> None:
    """For what no channel tells of; the test's own timeout ends it."""
    while not condition():
        await asyncio.sleep(0.001)


@pytest.mark.parametrize(
    "wrong",
    [
        {"round_size": 0},
        {"retry_backoff_min_s": 0.0},
        {"retry_backoff_min_s": 2.0, "retry_backoff_max_s": 1.0},
        {"retry_jitter": 1.0},
        {"refresh_rate": 0.0},
    ],
)
def test_settings_that_cannot_work_are_refused_by_name(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Config(**wrong)
