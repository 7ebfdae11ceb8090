# SPDX-License-Identifier: Apache-2.0
"""The rows of the statedb benchmark, one function each, that return objects per second (or what the
unit says).

Run as a program it is one side of the comparison: it reads names of rows from standard input and
answers each with a figure, so that the sides can be asked in turns. The peer's program answers to
the same names with the same work.
"""

from __future__ import annotations

import asyncio
import gc
import os
import random
import sys
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import msgspec

from statedb import DB, Index, LpmIndex, RWTable, int_key, new_table

KEYS = 1_000
MANY = 100_000
BUDGET_S = 0.25
CLOCK = time.process_time if os.environ.get("BENCH_CLOCK") == "cpu" else time.perf_counter
"""BENCH_CLOCK=cpu counts the processor time of all threads: for a machine that is not quiet."""


class Item(msgspec.Struct, frozen=True, gc=False):
    id: int


class Tagged(msgspec.Struct, frozen=True, gc=False):
    id: int
    tag: int


class Routed(msgspec.Struct, frozen=True, gc=False):
    id: int
    prefix: tuple[int, int]


ID = Index("id", key=lambda item: item.id)
TAG = Index("tag", key=lambda item: item.tag, unique=False)
OTHER = Index("other", key=lambda item: item.tag, unique=True)
ROUTE = LpmIndex(
    "route", key=lambda item: item.prefix, encode=lambda prefix: int_key(prefix[0], prefix[1], 32)
)

ROWS: dict[str, Callable[[], float]] = {}


def row(function: Callable[[], float]) -> Callable[[], float]:
    ROWS[function.__name__] = function
    return function


def rate(work: Callable[[], int]) -> float:
    """Repeat the work for the budget and return its units per second."""
    work()
    done = 0
    start = CLOCK()
    while (spent := CLOCK() - start) < BUDGET_S:
        done += work()
    return done / spent


def items(*secondary: Index, tables: int = 1) -> tuple[DB, RWTable[Any]]:
    db = DB("bench")
    made: list[RWTable[Any]] = [new_table(db, f"table{n}", ID, *secondary) for n in range(tables)]
    return db, made[0]


def filled(objects: Iterable[Any], *secondary: Index) -> tuple[DB, RWTable[Any]]:
    db, table = items(*secondary)
    with db.write_txn(table) as wtxn:
        table.insert_many(wtxn, objects)
    return db, table


def write(batch: int, secondary: bool = False) -> float:
    db, table = items(TAG) if secondary else items()

    def plain() -> int:
        for first in range(0, KEYS, batch):
            wtxn = db.write_txn(table)
            for number in range(first, first + batch):
                table.insert(wtxn, Item(number))
            wtxn.commit()
        return KEYS

    def tagged() -> int:
        for first in range(0, KEYS, batch):
            wtxn = db.write_txn(table)
            for number in range(first, first + batch):
                table.insert(wtxn, Tagged(number, number & 7))
            wtxn.commit()
        return KEYS

    return rate(tagged if secondary else plain)


@row
def write_1() -> float:
    return write(1)


@row
def write_10() -> float:
    return write(10)


@row
def write_100() -> float:
    return write(100)


@row
def write_1000() -> float:
    return write(1000)


@row
def write_100_secondary() -> float:
    return write(100, secondary=True)


@row
def insert_many_1000() -> float:
    db, table = items()

    def work() -> int:
        with db.write_txn(table) as wtxn:
            table.insert_many(wtxn, [Item(number) for number in range(KEYS)])
        return KEYS

    return rate(work)


@row
def modify() -> float:
    db, table = filled(map(Item, range(KEYS)))

    def work() -> int:
        wtxn = db.write_txn(table)
        for number in range(KEYS):
            table.modify(wtxn, Item(number), lambda old, new: new)
        wtxn.commit()
        return KEYS

    return rate(work)


@row
def get_insert() -> float:
    db, table = filled(map(Item, range(KEYS)))

    def work() -> int:
        wtxn = db.write_txn(table)
        for number in range(KEYS):
            table.get(wtxn, number)
            table.insert(wtxn, Item(number))
        wtxn.commit()
        return KEYS

    return rate(work)


@row
def random_insert() -> float:
    db, table = items()
    numbers = list(range(KEYS))
    random.Random(1).shuffle(numbers)

    def work() -> int:
        wtxn = db.write_txn(table)
        for number in numbers:
            table.insert(wtxn, Item(number))
        wtxn.abort()
        return KEYS

    return rate(work)


@row
def random_replace_secondary() -> float:
    numbers = list(range(KEYS))
    random.Random(1).shuffle(numbers)
    db, table = filled((Tagged(number, number & 7) for number in numbers), TAG)

    def work() -> int:
        wtxn = db.write_txn(table)
        for number in numbers:
            table.insert(wtxn, Tagged(number, number & 7))
        wtxn.commit()
        return KEYS

    return rate(work)


@row
def changes() -> float:
    db, table = items()
    with db.write_txn(table) as wtxn:
        iterator = table.changes(wtxn)

    def work() -> int:
        wtxn = db.write_txn(table)
        for number in range(KEYS):
            table.insert(wtxn, Item(number))
        wtxn.commit()
        seen = 0
        for change in iterator.next(db.read_txn())[0]:
            seen += not change.deleted
        wtxn = db.write_txn(table)
        table.delete_all(wtxn)
        wtxn.commit()
        for change in iterator.next(db.read_txn())[0]:
            seen += change.deleted
        assert seen == 2 * KEYS
        return KEYS

    return rate(work)


@row
def iterate_loop() -> float:
    db, table = filled(map(Item, range(MANY)))
    txn = db.read_txn()

    def work() -> int:
        number = 0
        for item in table.all(txn):
            if item.id != number:
                raise AssertionError(item)
            number += 1
        return number

    return rate(work)


@row
def iterate_bulk() -> float:
    db, table = filled(map(Item, range(MANY)))
    txn = db.read_txn()
    return rate(lambda: len(list(table.all(txn))))


@row
def list_secondary() -> float:
    db, table = filled((Tagged(number, number % 100) for number in range(MANY)), TAG)
    txn = db.read_txn()
    return rate(lambda: len(table.list(txn, 7, TAG)))


@row
def get_primary() -> float:
    db, table = filled(map(Item, range(MANY)))
    txn = db.read_txn()

    def work() -> int:
        for number in range(MANY):
            table.get(txn, number)
        return MANY

    return rate(work)


@row
def get_secondary() -> float:
    db, table = filled((Tagged(number, number) for number in range(MANY)), OTHER)
    txn = db.read_txn()

    def work() -> int:
        for number in range(MANY):
            table.get(txn, number, OTHER)
        return MANY

    return rate(work)


@row
def read_txn_get() -> float:
    db, table = filled(map(Item, range(MANY)))

    def work() -> int:
        for number in range(MANY):
            table.get(db.read_txn(), number)
        return MANY

    return rate(work)


@row
def snapshot() -> float:
    db, _ = filled(map(Item, range(MANY)))

    def work() -> int:
        for _ in range(KEYS):
            db.read_txn()
        return KEYS

    return rate(work)


def prefixes(number: int) -> list[Routed]:
    chosen = random.Random(1)
    lengths = (32, 32, 32, 24, 16, 12, 8)
    return [
        Routed(
            n,
            (
                chosen.getrandbits(32) >> (32 - (bits := chosen.choice(lengths))) << (32 - bits),
                bits,
            ),
        )
        for n in range(number)
    ]


def routes(number: int) -> list[Routed]:
    """Return that many objects with prefixes that differ."""
    return list({item.prefix: item for item in prefixes(number)}.values())


@row
def lpm_insert_100() -> float:
    wanted = routes(KEYS)
    db = DB("bench")
    table: RWTable[Routed] = new_table(db, "routes", ID, ROUTE)

    def work() -> int:
        for first in range(0, len(wanted), 100):
            wtxn = db.write_txn(table)
            for item in wanted[first : first + 100]:
                table.insert(wtxn, Routed(item.id, item.prefix))
            wtxn.commit()
        wtxn = db.write_txn(table)
        table.delete_all(wtxn)
        wtxn.commit()
        return len(wanted)

    return rate(work)


@row
def lpm_get() -> float:
    wanted = routes(MANY // 10)
    db = DB("bench")
    table: RWTable[Routed] = new_table(db, "routes", ID, ROUTE)
    with db.write_txn(table) as wtxn:
        table.insert_many(wtxn, wanted)
    txn = db.read_txn()
    asked = [(item.prefix[0] | 1, 32) for item in wanted[:KEYS]]

    def work() -> int:
        for address in asked:
            table.get(txn, address, ROUTE)
        return len(asked)

    return rate(work)


def commits(tables: int) -> float:
    db, _ = items(tables=tables)
    every: list[Any] = db.tables()

    def work() -> int:
        for number in range(100):
            wtxn = db.write_txn(*every)
            every[0].insert(wtxn, Item(number))
            wtxn.commit()
        return 100

    return rate(work)


@row
def commit_1_of_100() -> float:
    db, table = items(tables=100)

    def work() -> int:
        for number in range(100):
            wtxn = db.write_txn(table)
            table.insert(wtxn, Item(number))
            wtxn.commit()
        return 100

    return rate(work)


@row
def wake_p99_us() -> float:
    """From before the commit, in another thread, until the waiting task runs; the 99th percentile
    of 500.
    """
    return asyncio.run(wakes())


async def wakes() -> float:
    db, table = filled(map(Item, range(KEYS)))
    loop = asyncio.get_running_loop()
    started = [0.0]
    go = threading.Event()
    stop = threading.Event()

    def writer() -> None:
        while not stop.is_set():
            go.wait()
            go.clear()
            wtxn = db.write_txn(table)
            table.insert(wtxn, Item(7))
            started[0] = time.perf_counter()
            wtxn.commit()

    thread = threading.Thread(target=writer)
    thread.start()
    delays = []
    for _ in range(500):
        _, channel = table.get_watch(db.read_txn(), 7)
        loop.call_later(0.0005, go.set)
        await channel.wait()
        delays.append((time.perf_counter() - started[0]) * 1e6)
    stop.set()
    go.set()
    thread.join()
    delays.sort()
    return delays[len(delays) * 99 // 100]


def resident() -> int:
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@row
def bytes_per_object() -> float:
    """Resident bytes for each of 200,000 stored objects, the object included."""
    before = resident()
    _, table = filled(map(Item, range(2 * MANY)))
    after = resident()
    assert table._store.count == 2 * MANY
    return (after - before) / (2 * MANY)


def main() -> None:
    for line in sys.stdin:
        name = line.strip()
        print(ROWS[name](), flush=True)
        gc.collect()


if __name__ == "__main__":
    main()
