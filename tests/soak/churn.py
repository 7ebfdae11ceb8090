# SPDX-License-Identifier: Apache-2.0
"""Churn over tables and a reconciler for minutes; memory must not grow.

Rows come, change and go at a constant number of rows, with everything in use that could keep
something alive: indexes of each kind, snapshots, history, change iterators of different pace,
watches that fire and watches that are given up, a derived table, aborted transactions, and a
reconciler whose target refuses one call in ten. Resident memory and live blocks are sampled after a
warm-up, and the slopes of their lines are judged: what a stretch surely gained must be less
than `ALLOWED_KIB`, one arena of the allocator, and than `ALLOWED_BLOCKS` of the blocks.

One of the parts of `make soak` (`__main__.py`); a stretch of 0.4 minutes is a quick look.
"""

from __future__ import annotations

import argparse
import gc
import random
import sys
import time
from collections import deque
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import anyio
import msgspec

from reconcilers import Config, Entry, Reconciler
from statedb import (
    DB,
    Action,
    ChangeIterator,
    Index,
    LpmIndex,
    ReadTxn,
    Status,
    WatchSet,
    derive,
    new_table,
)
from statedb.status import pending
from tests.benchmarks.report import machine
from tests.soak.memory import live_blocks, rss_kib, slope

IDS = 10_000
#: Rows written in one transaction.
BATCH = 50
SNAPSHOTS = 20
FAULTS = 0.1
#: Part of the run before the first sample, and its least: caches, pools and the heap find their
#: size in 15 s.
WARM_UP, WARM_UP_S = 0.2, 15.0
SAMPLE_S = 2.0
ALLOWED_KIB = 1024
ALLOWED_BLOCKS = 0.02


class Row(msgspec.Struct, frozen=True):
    id: int
    name: str
    tags: tuple[str, ...]
    net: str
    value: int
    status: Status


class Shadow(msgspec.Struct, frozen=True):
    id: int
    value: int


ID = Index("id", key=lambda row: row.id)
NAME = Index("name", key=lambda row: row.name)
TAGS = Index("tags", keys=lambda row: row.tags, unique=False)
NET = LpmIndex("net", key=lambda row: row.net, unique=False)
SHADOW_ID = Index("id", key=lambda shadow: shadow.id)


class Target:
    """A dict that refuses one call in ten, in batches and singly."""

    def __init__(self, rng: random.Random) -> None:
        self.held: dict[int, int] = {}
        self.calls = self.refused = 0
        self._rng = rng

    def update(self, txn: ReadTxn, revision: int, obj: Row) -> None:
        self._maybe_refuse()
        self.held[obj.id] = obj.value

    def delete(self, txn: ReadTxn, revision: int, obj: Row) -> None:
        self._maybe_refuse()
        self.held.pop(obj.id, None)

    def prune(self, txn: ReadTxn, objects: Iterable[Row]) -> None:
        wanted = {row.id for row in objects}
        for number in self.held.keys() - wanted:
            del self.held[number]

    def update_batch(self, txn: ReadTxn, entries: Sequence[Entry[Row]]) -> None:
        for entry in entries:
            try:
                self.update(txn, entry.revision, entry.obj)
            except OSError as error:
                entry.error = error

    def delete_batch(self, txn: ReadTxn, entries: Sequence[Entry[Row]]) -> None:
        for entry in entries:
            try:
                self.delete(txn, entry.revision, entry.obj)
            except OSError as error:
                entry.error = error

    def _maybe_refuse(self) -> None:
        self.calls += 1
        if self._rng.random() < FAULTS:
            self.refused += 1
            raise OSError(f"refused call {self.calls}")


class Churn:
    """The tables, and one step after the other on them."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.db = DB("soak", history=10)
        self.rows = new_table(self.db, "rows", ID, NAME, TAGS, NET, row_type=Row)
        self.shadows = new_table(self.db, "shadows", SHADOW_ID, row_type=Shadow)
        self.target = Target(self.rng)
        self.reconciler = Reconciler(
            self.db,
            self.rows,
            self.target,
            config=Config(
                retry_backoff_min_s=0.01,
                retry_backoff_max_s=0.1,
                refresh_interval_s=20.0,
                prune_interval_s=5.0,
            ),
        )
        self.derivation = derive(self.db, self.rows, self.shadows, _shadow)
        self.snapshots: deque[ReadTxn] = deque(maxlen=SNAPSHOTS)
        self.iterators: list[ChangeIterator[Row]] = [self._iterator() for _ in range(3)]
        self.watches = WatchSet()
        self.steps = self.written = self.woken = self.changes_seen = 0
        with self.db.write_txn(self.rows) as wtxn:
            for number in range(IDS):
                if self.rng.random() < 2 / 3:
                    self.rows.insert(wtxn, self._row(number))

    def step(self) -> None:
        """One transaction, and then something of everything else."""
        self.steps += 1
        self._write()
        txn = self.db.read_txn()
        self.snapshots.append(txn)
        self._read(self.rng.choice(self.snapshots))
        self._follow(txn)
        self._watch(txn)

    def _write(self) -> None:
        """Two thirds of the ids exist at any time; one transaction in twenty is taken back."""
        with self.db.write_txn(self.rows) as wtxn:
            for _ in range(BATCH):
                number = self.rng.randrange(IDS)
                old = self.rows.get(wtxn, number)
                if old is None or self.rng.random() < 0.5:
                    self.rows.insert(wtxn, self._row(number))
                else:
                    self.rows.delete(wtxn, old)
            if self.rng.random() < 0.05:
                wtxn.abort()
            else:
                self.written += BATCH

    def _row(self, number: int) -> Row:
        tags = tuple(self.rng.sample("abcdefgh", self.rng.randrange(4)))
        net = f"10.{number % 200}.{self.rng.randrange(250)}.0/{self.rng.choice((8, 16, 24))}"
        return Row(number, f"row-{number}", tags, net, self.steps, pending())

    def _read(self, txn: ReadTxn) -> None:
        number = self.rng.randrange(IDS)
        row = self.rows.get(txn, number)
        assert row is None or self.rows.get(txn, row.name, NAME) is row
        assert all("a" in found.tags for found in self.rows.list(txn, "a", TAGS))
        sum(1 for _ in self.rows.prefix(txn, f"row-{number % 100}", NAME))
        self.rows.get(txn, f"10.{number % 200}.7.1", NET)

    def _follow(self, txn: ReadTxn) -> None:
        """Iterators of three paces; one in a hundred steps is closed and opened anew."""
        for pace, iterator in zip((1, 7, 31), self.iterators, strict=True):
            if self.steps % pace == 0:
                found, _ = iterator.next(txn)
                self.changes_seen += sum(1 for _ in found)
        if self.steps % 100 == 0:
            self.iterators.pop(0).close()
            self.iterators.append(self._iterator())

    def _iterator(self) -> ChangeIterator[Row]:
        with self.db.write_txn(self.rows) as wtxn:
            return self.rows.changes(wtxn)

    def _watch(self, txn: ReadTxn) -> None:
        """Watch some answers; all are given up, fired or not, every fifty steps."""
        number = self.rng.randrange(IDS)
        for _, channel in (
            self.rows.get_watch(txn, number),
            self.rows.prefix_watch(txn, f"row-{number}", NAME),
            self.rows.list_watch(txn, "b", TAGS),
            self.rows.all_watch(txn),
        ):
            self.watches.add(channel)
        if self.steps % 50 == 0:
            self.watches = WatchSet()

    async def watch(self) -> None:
        """Wake with every change, look again, wait again; sometimes give up the waiting."""
        while True:
            _, channel = self.rows.all_watch(self.db.read_txn())
            with anyio.move_on_after(self.rng.choice((0.0001, 1.0))):
                await channel.wait()
                self.woken += 1

    def forget(self) -> None:
        """Let go of all that is held, so that what remains is what leaks."""
        self.snapshots.clear()
        self.watches = WatchSet()
        for iterator in self.iterators:
            iterator.close()
        self.iterators.clear()


def _shadow(row: Row, deleted: bool) -> tuple[Shadow, Action]:
    return Shadow(row.id, row.value), Action.DELETE if deleted else Action.INSERT


class Sample(NamedTuple):
    """What was held at one moment, of what is no garbage."""

    second: float
    kib: int
    blocks: int


async def soak(churn: Churn, duration_s: float, least_steps: int = 0) -> list[Sample]:
    """Churn for so long, or longer on a machine that has no time; samples after the warm-up."""
    samples: list[Sample] = []
    start = time.monotonic()
    due = start + max(WARM_UP * duration_s, WARM_UP_S)
    async with anyio.create_task_group() as tasks:
        for job in (churn.reconciler.run, churn.derivation.run, churn.watch):
            tasks.start_soon(job)
        while (now := time.monotonic()) < start + duration_s or churn.steps < least_steps:
            churn.step()
            await anyio.sleep(0)
            if now >= due:
                gc.collect()  # what is garbage anyway is no growth
                samples.append(Sample(now - start, rss_kib(), live_blocks()))
                due += min(SAMPLE_S, duration_s / 20)
        await _settled(churn)
        tasks.cancel_scope.cancel()
    return samples


async def _settled(churn: Churn) -> None:
    """With no more writes, the target and the derived table are what the table says."""
    db, rows = churn.db, churn.rows
    with anyio.fail_after(60):
        await churn.reconciler.wait_until_reconciled(rows.revision(db.read_txn()), settled=True)
        wanted = {row.id: row.value for row in rows.all(db.read_txn())}
        while {s.id: s.value for s in churn.shadows.all(db.read_txn())} != wanted:
            await churn.shadows.all_watch(db.read_txn())[1].wait()
    assert churn.target.held == wanted


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stretch", type=float, default=10.0, help="so many minutes")
    return stretch(parser.parse_args().stretch)


def stretch(minutes: float) -> int:
    """Churn for so long in this process, and print what it held; 1 if that surely grew."""
    seed = random.randrange(1 << 32)
    churn = Churn(seed)
    samples = anyio.run(soak, churn, minutes * 60)
    memory = slope([(sample.second, sample.kib) for sample in samples])
    blocks = slope([(sample.second, sample.blocks) for sample in samples])
    allowed_blocks = ALLOWED_BLOCKS * samples[0].blocks
    print(f"{machine()}, {'compiled' if _compiled() else 'pure'} statedb, seed {seed}")
    for line in _report(churn, samples):
        print(line)
    print(f"{'slope of resident KiB':<28} {memory}, allowed {ALLOWED_KIB / minutes:.0f}")
    print(f"{'slope of live blocks':<28} {blocks}, allowed {allowed_blocks / minutes:.0f}")
    leaks = (
        memory.per_minute - memory.confidence > ALLOWED_KIB / minutes,
        blocks.per_minute - blocks.confidence > allowed_blocks / minutes,
    )
    return 1 if any(leaks) else 0


def _compiled() -> bool:
    from statedb import _row

    return bool(_row.COMPILED)


def _report(churn: Churn, samples: Sequence[Sample]) -> list[str]:
    minutes, first = samples[-1].second / 60, samples[0].second
    memory, blocks = [s.kib for s in samples], [s.blocks for s in samples]
    return [
        f"{'minutes':<28} {minutes:.1f}, {len(samples)} samples from second {first:.0f} on",
        f"{'rows':<28} {churn.rows.num_objects(churn.db.read_txn())}",
        f"{'transactions':<28} {churn.steps}, of {BATCH} rows each",
        f"{'changes seen by iterators':<28} {churn.changes_seen}",
        f"{'wake-ups':<28} {churn.woken}",
        f"{'calls of the target':<28} {churn.target.calls}, refused {churn.target.refused}",
        f"{'resident KiB':<28} {memory[0]} at first, {min(memory)} to {max(memory)}",
        f"{'live blocks':<28} {blocks[0]} at first, {min(blocks)} to {max(blocks)}",
    ]


if __name__ == "__main__":
    sys.exit(main())
