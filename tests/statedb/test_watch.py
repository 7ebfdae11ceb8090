# SPDX-License-Identifier: Apache-2.0
"""Channels, watch sets, and what follows a table by itself: derive and observe."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import msgspec
import pytest

from statedb import (
    DB,
    Action,
    Channel,
    Index,
    RWTable,
    WatchSet,
    closed_channel,
    derive,
    new_table,
    observe,
    wait_any,
    wait_initialized,
)


class Item(msgspec.Struct, frozen=True):
    id: int
    text: str = ""


ID = Index("id", key=lambda item: item.id)


@pytest.fixture
def db() -> DB:
    return DB("test")


@pytest.fixture
def items(db: DB) -> RWTable[Item]:
    return new_table(db, "items", ID)


def put(db: DB, table: RWTable[Item], *objs: Item) -> None:
    with db.write_txn(table) as wtxn:
        table.insert_many(wtxn, objs)


async def test_channel_wakes_all_waiters_when_another_thread_closes_it() -> None:
    channel = Channel()
    woken: list[int] = []

    async def wait(number: int) -> None:
        await channel.wait()
        woken.append(number)

    tasks = [asyncio.create_task(wait(number)) for number in range(3)]
    await asyncio.sleep(0)
    threading.Thread(target=channel.close).start()
    await asyncio.gather(*tasks)
    assert sorted(woken) == [0, 1, 2]
    assert channel.closed
    await channel.wait()


async def test_cancelled_waiter_leaves_nothing_behind() -> None:
    channel = Channel()
    task = asyncio.create_task(channel.wait())
    await asyncio.sleep(0)
    assert channel._wakers
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not channel._wakers


def test_thread_waits_until_closed_or_timeout() -> None:
    channel = Channel()
    assert not channel.wait_sync(0.01)
    timer = threading.Timer(0.01, channel.close)
    timer.start()
    assert channel.wait_sync(10)
    assert channel.wait_sync()
    assert closed_channel().wait_sync(0)
    timer.join()


def test_waiter_whose_loop_is_gone_does_not_break_the_writer() -> None:
    channel = Channel()

    async def wait_briefly() -> None:
        task = asyncio.create_task(channel.wait())
        await asyncio.sleep(0)
        wakers = list(channel._wakers or ())
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        for waker in wakers:
            channel._add(waker)

    asyncio.run(wait_briefly())
    channel.close()
    assert channel.closed


def test_close_and_wait_never_miss_each_other() -> None:
    for _ in range(300):
        channel = Channel()
        thread = threading.Thread(target=channel.close)
        thread.start()
        assert channel.wait_sync(5)
        thread.join()


async def test_watch_set_returns_what_closed_and_keeps_the_rest() -> None:
    one, two, three = Channel(), Channel(), Channel()
    watched = WatchSet(one)
    watched.add(two, three)
    assert len(watched) == 3
    two.close()
    assert await watched.wait() == {two}
    assert two not in watched
    assert one in watched
    watched.discard(one)
    watched.clear()
    assert await watched.wait() == set()


async def test_watch_set_gathers_more_while_it_settles() -> None:
    channels = [Channel() for _ in range(4)]
    watched = WatchSet(*channels)
    loop = asyncio.get_running_loop()
    for number, channel in enumerate(channels[:3]):
        loop.call_later(0.005 * number, channel.close)
    assert await watched.wait(settle_s=0.2) == set(channels[:3])
    channels[3].close()
    started = time.monotonic()
    assert await watched.wait(settle_s=10) == {channels[3]}
    assert time.monotonic() - started < 5


async def test_waiting_for_any_ends_with_the_first(db: DB, items: RWTable[Item]) -> None:
    _, first = items.get_watch(db.read_txn(), 1)
    _, second = items.get_watch(db.read_txn(), 2)
    waiting = asyncio.create_task(wait_any([first, second]))
    await asyncio.sleep(0)
    put(db, items, Item(2))
    await waiting
    assert (first.closed, second.closed) == (False, True)


async def test_observed_changes_come_in_order_with_deletes(db: DB, items: RWTable[Item]) -> None:
    put(db, items, Item(1), Item(2))
    seen: list[tuple[int, bool]] = []
    stream = observe(db, items)
    async for change in stream:
        seen.append((change.obj.id, change.deleted))
        if len(seen) == 2:
            put(db, items, Item(3))
        if len(seen) == 3:
            with db.write_txn(items) as wtxn:
                items.delete(wtxn, Item(1))
        if len(seen) == 4:
            break
    await stream.aclose()  # type: ignore[attr-defined]
    assert seen == [(1, False), (2, False), (3, False), (1, True)]
    assert items.num_trackers() == 0


async def test_derived_table_follows_its_source(db: DB, items: RWTable[Item]) -> None:
    target: RWTable[Item] = new_table(db, "doubled", ID)

    def double(item: Item, deleted: bool) -> tuple[Item | None, Action]:
        if item.id == 7:
            return None, Action.SKIP
        if deleted:
            return Item(2 * item.id), Action.DELETE
        action = Action.UPDATE if item.text == "only update" else Action.INSERT
        return Item(2 * item.id, item.text), action

    with db.write_txn(items) as wtxn:
        done = items.register_initializer(wtxn, "source")
    derivation = derive(db, items, target, double)
    task = asyncio.create_task(derivation.run())
    put(db, items, Item(1), Item(7), Item(3, "only update"))
    await until(db, target, {2: ""})
    assert not target.initialized(db.read_txn())
    with db.write_txn(items) as wtxn:
        done(wtxn)
    await wait_initialized(db, target, items)
    put(db, items, Item(1, "only update"), Item(2))
    await until(db, target, {2: "only update", 4: ""})
    with db.write_txn(items) as wtxn:
        items.delete(wtxn, Item(1))
    await until(db, target, {4: ""})
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert items.num_trackers() == 0


async def until(db: DB, table: RWTable[Item], expected: dict[int, str]) -> None:
    """Wait until the table holds this."""
    while True:
        found, channel = table.all_watch(db.read_txn())
        held: dict[int, Any] = {item.id: item.text for item in found}
        if held == expected:
            return
        await asyncio.wait_for(channel.wait(), 5)
