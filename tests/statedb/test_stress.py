# SPDX-License-Identifier: Apache-2.0
"""Threads write, read, watch and follow at once; what they logged must explain the end state.

Each table's revision orders the writes, so that the log can be replayed. Writers note (revision,
what they did) inside the transaction; readers check that a snapshot is one moment of both tables;
followers rebuild the table from changes.
"""

from __future__ import annotations

import random
import sys
import threading
import time
from collections.abc import Callable, Iterator

import msgspec
import pytest

from statedb import DB, Change, Index, ReadTxn, RevisionGone, RWTable, new_table

KEYS = 40
SECONDS = 1.5


class Account(msgspec.Struct, frozen=True):
    id: int
    amount: int
    group: int


ID = Index("id", key=lambda account: account.id)
GROUP = Index("group", key=lambda account: account.group, unique=False)


class World:
    """Two tables between which amounts move; the sum over both never changes."""

    def __init__(self) -> None:
        self.db = DB("stress", history=5)
        self.left: RWTable[Account] = new_table(self.db, "left", ID, GROUP)
        self.right: RWTable[Account] = new_table(self.db, "right", ID, GROUP)
        for table in (self.left, self.right):
            table._store.segment_rows = 64
            table._store.slack_rows = 32
        with self.db.write_txn(self.left) as wtxn:
            self.left.insert_many(wtxn, [Account(n, 100, n % 5) for n in range(KEYS)])
        self.log: list[tuple[str, int, int, Account | None]] = []
        self.errors: list[BaseException] = []
        self.until = time.monotonic() + SECONDS
        self.rounds: dict[str, int] = {}

    def repeat(self, name: str, step: Callable[[random.Random], None]) -> None:
        chosen = random.Random(name)
        try:
            while time.monotonic() < self.until and not self.errors:
                step(chosen)
                self.rounds[name] = self.rounds.get(name, 0) + 1
        except BaseException as error:
            self.errors.append(error)
            raise

    def total(self, txn: ReadTxn) -> int:
        return sum(obj.amount for table in (self.left, self.right) for obj in table.all(txn))

    def move(self, chosen: random.Random) -> None:
        """Move some of one account to the other table; sometimes change the mind."""
        source, target = chosen.sample((self.left, self.right), 2)
        with self.db.write_txn(target, source) as wtxn:
            key = chosen.randrange(KEYS)
            held = source.get(wtxn, key)
            if held is None:
                return
            part = chosen.randint(1, held.amount)
            other = target.get(wtxn, key)
            entries: list[tuple[str, int, int, Account | None]] = []
            if part == held.amount:
                source.delete(wtxn, held)
                entries.append((source.name, source.revision(wtxn), key, None))
            else:
                rest = Account(key, held.amount - part, chosen.randrange(5))
                source.insert(wtxn, rest)
                entries.append((source.name, source.revision(wtxn), key, rest))
            new = Account(key, part + (other.amount if other else 0), chosen.randrange(5))
            target.insert(wtxn, new)
            entries.append((target.name, target.revision(wtxn), key, new))
            assert self.total(wtxn) == 100 * KEYS
            if chosen.random() < 0.2:
                wtxn.abort()
            else:
                self.log.extend(entries)

    def read(self, chosen: random.Random) -> None:
        """One snapshot is one moment, now and after a while, however it is asked."""
        txn = self.db.read_txn()
        assert self.total(txn) == 100 * KEYS
        for table in (self.left, self.right):
            objs = list(table.all(txn))
            assert [obj.id for obj in objs] == sorted({obj.id for obj in objs})
            assert table.num_objects(txn) == len(objs)
            grouped = [obj for group in range(5) for obj in table.list(txn, group, GROUP)]
            assert sorted(grouped, key=lambda obj: obj.id) == objs
            assert sorted(obj.id for obj, _ in table.by_revision(txn)) == [o.id for o in objs]
            for obj in chosen.sample(objs, min(3, len(objs))):
                assert table.get(txn, obj.id) is obj
        assert self.total(txn) == 100 * KEYS

    def travel(self, chosen: random.Random) -> None:
        """A past state is one moment too; it may be gone by the time it is asked for."""
        revision = self.left.revision(self.db.read_txn()) - chosen.randrange(4)
        if revision < KEYS:  # before the table was filled
            return
        try:
            past = self.db.read_txn_at(self.left, revision)
        except RevisionGone:
            return
        assert self.total(past) == 100 * KEYS

    def watch(self, chosen: random.Random) -> None:
        """A watched account that changed has closed its channel."""
        key = chosen.randrange(KEYS)
        before, channel = self.left.get_row_watch(self.db.read_txn(), key)
        channel.wait_sync(0.002)
        after = self.left.get_row(self.db.read_txn(), key)
        assert before == after or channel.wait_sync(5)


def follow(world: World, table: RWTable[Account], seen: dict[int, Account]) -> Callable[[], None]:
    """Return what follows the table until all is seen, and fills `seen`."""
    with world.db.write_txn(table) as wtxn:
        changes = table.changes(wtxn)

    def take(found: Iterator[Change[Account]]) -> None:
        for change in found:
            if change.deleted:
                seen.pop(change.obj.id, None)
            else:
                seen[change.obj.id] = change.obj

    def run() -> None:
        def step(chosen: random.Random) -> None:
            found, channel = changes.next(world.db.read_txn())
            take(found)
            channel.wait_sync(0.01)

        world.repeat(f"follow {table.name}", step)

    def finish() -> None:
        take(changes.next(world.db.read_txn())[0])
        changes.close()

    thread = threading.Thread(target=run)
    thread.start()

    def end() -> None:
        thread.join()
        finish()

    return end


@pytest.fixture(autouse=True)
def _switching_often() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


def test_threads_agree_on_the_end_state() -> None:
    world = World()
    replicas: dict[str, dict[int, Account]] = {"left": {}, "right": {}}
    start = {obj.id: obj for obj in world.left.all(world.db.read_txn())}
    ends = [follow(world, table, replicas[table.name]) for table in (world.left, world.right)]
    steps = [world.move, world.move, world.read, world.read, world.travel, world.watch]
    threads = [
        threading.Thread(target=world.repeat, args=(f"{step.__name__} {n}", step))
        for n, step in enumerate(steps)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for end in ends:
        end()
    assert not world.errors
    assert len(world.rounds) == len(steps) + 2
    txn = world.db.read_txn()
    for table in (world.left, world.right):
        expected = dict(start) if table is world.left else {}
        entries = sorted(entry[1:] for entry in world.log if entry[0] == table.name)
        assert len({revision for revision, _, _ in entries}) == len(entries)
        for _, key, obj in entries:
            if obj is None:
                del expected[key]
            else:
                expected[key] = obj
        held = {obj.id: obj for obj in table.all(txn)}
        assert held == expected
        assert held == replicas[table.name]
    del txn
    _settles(world)


def _settles(world: World) -> None:
    """With nobody left, a few commits forget the past."""
    for table in (world.left, world.right):
        for _ in range(300):
            with world.db.write_txn(table) as wtxn:
                table.insert(wtxn, Account(0, 1, 1))
        assert table.graveyard_size() == 0
        assert len(table._store.rows) == table.num_objects(world.db.read_txn())
        assert table._store.log_len <= 2 * len(table._store.rows) + 3 * 64 + 32
        row, versions = table._store.rows[0], 1
        while row.prev is not None:
            row, versions = row.prev, versions + 1
        assert versions <= 2 * KEYS + 32 + 5  # what came since the last compaction
