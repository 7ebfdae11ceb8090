# SPDX-License-Identifier: Apache-2.0
"""Who waits for whom: writers of one table for each other, and nobody else for anybody."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from statedb import DB, Index, RWTable, new_table

SOON_S = 0.05
LATE_S = 5.0


@pytest.fixture
def thread() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as pool:
        yield pool


@pytest.fixture
def db() -> DB:
    return DB("test")


@pytest.fixture
def one(db: DB) -> RWTable[int]:
    return new_table(db, "one", Index("n", key=lambda n: n))


@pytest.fixture
def two(db: DB) -> RWTable[int]:
    return new_table(db, "two", Index("n", key=lambda n: n))


def put(db: DB, number: int, *tables: RWTable[int]) -> None:
    with db.write_txn(*tables) as wtxn:
        for table in tables:
            table.insert(wtxn, number)


def test_a_snapshot_costs_nothing_however_much_there_is(db: DB, one: RWTable[int]) -> None:
    put(db, 1, one)
    assert db.read_txn() is db.read_txn()


def test_a_reader_does_not_wait_for_a_writer(
    db: DB, one: RWTable[int], thread: ThreadPoolExecutor
) -> None:
    put(db, 1, one)
    with db.write_txn(one) as wtxn:
        one.insert(wtxn, 2)
        seen = thread.submit(lambda: list(one.all(db.read_txn()))).result(LATE_S)
    assert seen == [1]
    assert list(one.all(db.read_txn())) == [1, 2]


def test_a_writer_of_another_table_does_not_wait(
    db: DB, one: RWTable[int], two: RWTable[int], thread: ThreadPoolExecutor
) -> None:
    with db.write_txn(one) as wtxn:
        thread.submit(put, db, 7, two).result(LATE_S)
        assert list(two.all(db.read_txn())) == [7]
        one.insert(wtxn, 1)
    assert list(two.all(db.read_txn())) == [7]


@pytest.mark.parametrize("aborted", [False, True])
def test_a_writer_of_the_same_table_waits_and_sees_what_was_committed(
    db: DB, one: RWTable[int], two: RWTable[int], thread: ThreadPoolExecutor, aborted: bool
) -> None:
    seen: list[list[int]] = []
    started = threading.Event()

    def write() -> None:
        started.set()
        with db.write_txn(two, one) as wtxn:
            seen.append(list(one.all(wtxn)))

    wtxn = db.write_txn(one)
    one.insert(wtxn, 1)
    other: Future[None] = thread.submit(write)
    assert started.wait(LATE_S)
    with pytest.raises(TimeoutError):
        other.result(SOON_S)
    if aborted:
        wtxn.abort()
    else:
        wtxn.commit()
    other.result(LATE_S)
    assert seen == [[] if aborted else [1]]


def test_tables_are_taken_in_one_order_whatever_order_is_named(
    db: DB, one: RWTable[int], two: RWTable[int], thread: ThreadPoolExecutor
) -> None:
    wtxn = db.write_txn(one)
    other = thread.submit(put, db, 5, two, one)
    with pytest.raises(TimeoutError):
        other.result(SOON_S)
    with ThreadPoolExecutor(1) as third:  # who waits for the first table holds no later one
        third.submit(put, db, 7, two).result(LATE_S)
    wtxn.abort()
    other.result(LATE_S)
    assert list(two.all(db.read_txn())) == [5, 7]
