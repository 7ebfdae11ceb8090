# SPDX-License-Identifier: Apache-2.0
"""Who holds an old snapshot is found, by function and line."""

from __future__ import annotations

import gc

import anyio

from statedb import DB, Channel, Index, RWTable, new_table
from statedb.holders import oldest_snapshot


def new_numbers() -> tuple[DB, RWTable[int]]:
    db = DB()
    return db, new_table(db, "numbers", Index("id", key=lambda number: number))


def write(db: DB, table: RWTable[int], number: int) -> None:
    with db.write_txn(table) as wtxn:
        table.insert(wtxn, number)


def test_nobody_holds_a_snapshot_of_a_database_at_rest() -> None:
    db, table = new_numbers()
    write(db, table, 1)
    held = db.read_txn()
    assert oldest_snapshot(db) is None, "the newest one is not old"
    write(db, table, 2)
    found = oldest_snapshot(db)
    assert found is not None
    assert "no task that waits" in str(found)
    assert list(table.all(held)) == [1]
    del held
    assert oldest_snapshot(db) is None


async def test_a_task_that_waits_with_a_snapshot_is_named() -> None:
    db, table = new_numbers()
    never = Channel()

    async def holder() -> None:
        txn = db.read_txn()
        await never.wait()
        table.num_objects(txn)

    with db.write_txn(table) as wtxn:
        changes = table.changes(wtxn)

    async def holder_of_changes() -> None:
        rows, _ = changes.next(db.read_txn())
        await never.wait()
        list(rows)

    for task in (holder, holder_of_changes):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(task)
            await anyio.wait_all_tasks_blocked()
            write(db, table, 1)
            found = oldest_snapshot(db)
            assert found is not None
            assert any(
                f"{task.__name__} (" in place and "test_holders.py:" in place
                for place in found.places
            )
            tasks.cancel_scope.cancel()
        gc.collect()  # the traceback of the cancellation had the frame
        assert oldest_snapshot(db) is None


async def test_a_look_holds_nothing() -> None:
    db, table = new_numbers()
    write(db, table, 1)
    never = Channel()

    async def follower() -> None:
        numbers = db.look(lambda txn: list(table.all(txn)))
        await never.wait()
        numbers.clear()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(follower)
        await anyio.wait_all_tasks_blocked()
        write(db, table, 2)
        assert oldest_snapshot(db) is None
        tasks.cancel_scope.cancel()
