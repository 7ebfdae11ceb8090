# SPDX-License-Identifier: Apache-2.0
"""One run of the reconciler benchmark: objects are inserted in batches while they are reconciled.

Prints objects per second, from the first insert until the last object is done, and the bytes that
the process grew by. `peers/reconciler` does the same work on the original.
"""

from __future__ import annotations

import argparse
import gc
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import anyio
import anyio.lowlevel
import msgspec

from reconcilers import Config, Entry, Reconciler
from statedb import DB, Index, ReadTxn, RWTable, Status, StatusKind, new_table
from statedb.status import pending


class Item(msgspec.Struct, frozen=True, gc=False):
    id: int
    status: Status


ID = Index("id", key=lambda item: item.id)


class Nothing:
    """A target that does nothing, one object at a time."""

    updates = 0

    def update(self, txn: ReadTxn, revision: int, obj: Item) -> Item | None:
        self.updates += 1
        return None

    def delete(self, txn: ReadTxn, revision: int, obj: Item) -> None:
        pass

    def prune(self, txn: ReadTxn, objects: Iterable[Item]) -> None:
        pass


class NothingInBatches(Nothing):
    """The same with batch operations."""

    def update_batch(self, txn: ReadTxn, entries: Sequence[Entry[Item]]) -> None:
        self.updates += len(entries)

    def delete_batch(self, txn: ReadTxn, entries: Sequence[Entry[Item]]) -> None:
        pass


async def measure(objects: int, batch: int, target: Nothing) -> tuple[float, int]:
    db = DB()
    table: RWTable[Item] = new_table(db, "items", ID, row_type=Item)
    reconciler = Reconciler(
        db,
        table,
        target,
        get_status=lambda item: item.status,
        set_status=lambda item, status: Item(item.id, status),
        config=Config(round_size=batch, refresh_interval_s=0.0),
    )
    gc.collect()
    before = resident_bytes()
    started = time.perf_counter()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(reconciler.run)
        for first in range(0, objects, batch):
            with db.write_txn(table) as wtxn:
                for number in range(first, min(first + batch, objects)):
                    table.insert(wtxn, Item(number, pending()))
            await anyio.lowlevel.checkpoint()
        await reconciler.wait_until_reconciled(table.revision(db.read_txn()), settled=True)
        elapsed_s = time.perf_counter() - started
        tasks.cancel_scope.cancel()
    gc.collect()
    grown = resident_bytes() - before
    assert target.updates == objects
    assert all(item.status.kind is StatusKind.DONE for item in table.all(db.read_txn()))
    return objects / elapsed_s, grown


def resident_bytes() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("no VmRSS in /proc/self/status")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--objects", type=int, default=1_000_000)
    parser.add_argument("--batch", type=int, default=1_000)
    parser.add_argument("--in-batches", action="store_true")
    arguments = parser.parse_args()
    target = NothingInBatches() if arguments.in_batches else Nothing()
    rate, grown = anyio.run(measure, arguments.objects, arguments.batch, target)
    print(f"{rate:.0f} {grown}")


if __name__ == "__main__":
    main()
