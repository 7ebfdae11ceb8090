# SPDX-License-Identifier: Apache-2.0
"""Jobs that wait hold no snapshot: it would keep the deleted rows of all tables."""

from __future__ import annotations

import dataclasses
import gc
from collections.abc import Callable, Coroutine, Iterable, Sequence
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest

from cilia.datapath.options import DatapathOptions
from cilia.datapath.packet_devices import PacketDevicesController
from cilia.loadbalancer.connections.backend_audit import BackendAudit
from reconcilers import Entry, Reconciler
from reconcilers.kernel_watch import KernelWatch, NamedArrivals
from statedb import DB, Index, ReadTxn, RWTable, Status, new_table
from statedb.status import pending
from tables.datapath.attachments import new_attachments_table
from tables.datapath.netdevs import new_netdevs_table
from tables.node.devices import Device, names, new_devices_table
from tests.cilia.datapath.test_conntrack import new_maps
from tests.reconcilers import targets
from tests.reconcilers.loadbalancer.lb_world import LBWorld
from tests.reconcilers.targets import BatchTarget, Target, TargetError, running

CHURN = 100
#: A look of a job that is under way may take this long until it waits.
LOOK_S = 0.3
#: The newest change may still be held by an iterator.
ALLOWED = 1

Job = Callable[[], Coroutine[Any, Any, None]]


class Row(msgspec.Struct, frozen=True):
    name: str
    status: Status = pending()


def new_rows(db: DB, name: str) -> RWTable[Row]:
    return new_table(db, name, Index("name", key=lambda row: row.name), row_type=Row)


def churn(db: DB, rows: RWTable[Row], count: int) -> None:
    """Insert and delete rows, one transaction each."""
    for number in range(count):
        with db.write_txn(rows) as wtxn:
            rows.insert(wtxn, Row(str(number)))
        with db.write_txn(rows) as wtxn:
            rows.delete(wtxn, Row(str(number)))


async def deleted_rows_kept(db: DB, *jobs: Job) -> int:
    """Return how many rows stay that were deleted while the jobs wait for another table."""
    busy = new_rows(db, "busy")
    async with anyio.create_task_group() as tasks:
        for job in jobs:
            tasks.start_soon(job)
        await anyio.wait_all_tasks_blocked()
        churn(db, busy, CHURN)
        with anyio.move_on_after(LOOK_S):
            while busy.graveyard_size() > ALLOWED:
                await anyio.sleep(0.01)
                churn(db, busy, 1)
        kept = busy.graveyard_size()
        tasks.cancel_scope.cancel()
    return kept


def kernel_watch(db: DB) -> Job:
    return KernelWatch(db, new_rows(db, "quiet"), lambda txn, change: False, lambda: None).run


def named_arrivals(db: DB) -> Job:
    by_name: Index = Index("name", key=lambda row: row.name)
    rows = new_rows(db, "quiet")
    return NamedArrivals(db, listed_devices(db), names, rows, by_name).run


def packet_devices(db: DB) -> Job:
    return PacketDevicesController(
        db,
        listed_devices(db),
        new_netdevs_table(db),
        new_attachments_table(db),
        DatapathOptions(),
        Path("/pins"),
    ).run


def listed_devices(db: DB) -> RWTable[Device]:
    return new_devices_table(db)


async def test_no_deleted_row_is_kept_without_a_job() -> None:
    assert await deleted_rows_kept(DB()) == 0


@pytest.mark.parametrize("job", [kernel_watch, named_arrivals, packet_devices])
async def test_no_deleted_row_is_kept_while_a_job_waits(job: Callable[[DB], Job]) -> None:
    db = DB()
    assert await deleted_rows_kept(db, job(db)) <= ALLOWED


async def test_no_deleted_row_is_kept_while_the_audit_of_backends_waits() -> None:
    world = LBWorld()
    audit = BackendAudit(new_maps(), world.maps, world.frontends)
    async with running(world.reconciler):
        await world.settled()
        kept = await deleted_rows_kept(world.db, lambda: audit.run(world.db, world.reconciler))
    assert kept <= ALLOWED


class Tangled(BatchTarget):
    """Fails in a way that leaves cycles: the error is kept where its frame finds it."""

    def update_batch(self, txn: ReadTxn, entries: Sequence[Entry[targets.Row]]) -> None:
        plans: list[list[Exception]] = [[] for _ in entries]
        for entry, plan in zip(entries, plans, strict=True):
            try:
                self._fail(txn)
            except TargetError as error:
                plan.append(error)
                entry.error = error

    def prune(self, txn: ReadTxn, objects: Iterable[targets.Row]) -> None:
        kept = []
        try:
            self._fail(txn)
        except TargetError as error:
            kept.append(error)
            raise TargetError("prune refused") from error

    def _fail(self, txn: ReadTxn) -> None:
        try:
            raise OSError("no")
        except OSError as error:
            raise TargetError("refused") from error


class Raising(Target):
    """Fails in the simplest way."""

    def update(self, txn: ReadTxn, revision: int, obj: targets.Row) -> None:
        raise TargetError("refused")


@pytest.mark.parametrize("target", [Tangled(), Raising()], ids=["batch", "single"])
async def test_no_snapshot_is_kept_by_what_failed(target: Target) -> None:
    db = DB()
    rows = targets.new_rows(db)
    slow = dataclasses.replace(targets.FAST, retry_backoff_min_s=60.0, retry_backoff_max_s=60.0)
    reconciler = Reconciler(db, rows, target, config=slow)
    async with running(reconciler):
        gc.collect()
        gc.disable()
        try:
            revision = targets.put(db, rows, *((number, "a") for number in range(5)))
            reconciler.prune_now()
            await reconciler.wait_until_reconciled(revision)
            await anyio.wait_all_tasks_blocked()
            churn(db, new_rows(db, "busy"), 1)
            held = db.oldest_held() is not None
        finally:
            gc.enable()
    assert not held
