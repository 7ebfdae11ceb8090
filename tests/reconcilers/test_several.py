# SPDX-License-Identifier: Apache-2.0
"""Several reconcilers of one table, each with its own status in a StatusSet."""

from __future__ import annotations

from typing import Any

import anyio
import msgspec

from reconcilers import Reconciler, StatusSet, pending_set
from statedb import DB, Index, ReadTxn, RWTable, Status, StatusKind, new_table
from statedb.status import Status as StatusType
from statedb.status import done, error
from tests.reconcilers.targets import FAST, running


class Shared(msgspec.Struct, frozen=True):
    id: int
    value: str
    statuses: StatusSet
    learned: int = 0


class Noting:
    """A target that remembers what it was given; `refuse` fails it."""

    def __init__(self) -> None:
        self.held: dict[int, str] = {}
        self.updates = 0
        self.refuse = False

    def update(self, txn: ReadTxn, revision: int, obj: Shared) -> Shared | None:
        self.updates += 1
        if self.refuse:
            raise RuntimeError("refused")
        self.held[obj.id] = obj.value
        return None

    def delete(self, txn: ReadTxn, revision: int, obj: Shared) -> None:
        self.held.pop(obj.id, None)

    def prune(self, txn: ReadTxn, objects: Any) -> None:
        pass


def reconciler(db: DB, table: RWTable[Shared], name: str, target: Noting) -> Reconciler[Shared]:
    def get_status(obj: Shared) -> Status:
        return obj.statuses.get(name)

    def set_status(obj: Shared, status: Status) -> Shared:
        return msgspec.structs.replace(obj, statuses=obj.statuses.set(name, status))

    return Reconciler(
        db, table, target, get_status=get_status, set_status=set_status, config=FAST, name=name
    )


def new_shared(db: DB) -> RWTable[Shared]:
    return new_table(db, "shared", Index("id", key=lambda obj: obj.id), row_type=Shared)


def put(db: DB, table: RWTable[Shared], *objs: Shared) -> None:
    with db.write_txn(table) as wtxn:
        for obj in objs:
            table.insert(wtxn, obj)


async def test_both_finish_without_repeating_each_others_work() -> None:
    db = DB()
    table = new_shared(db)
    targets = {name: Noting() for name in ("fib", "map")}
    both = [reconciler(db, table, name, target) for name, target in targets.items()]
    put(db, table, *(Shared(number, "x", pending_set()) for number in range(100)))
    async with running(*both):
        for one in both:
            await one.wait_until_reconciled(table.revision(db.read_txn()), settled=True)
        await _all_done(db, table, 100)
    assert [len(target.held) for target in targets.values()] == [100, 100]
    assert [target.updates for target in targets.values()] == [100, 100]


async def test_failure_of_one_is_not_hidden_by_the_success_of_the_other() -> None:
    db = DB()
    table = new_shared(db)
    good, bad = Noting(), Noting()
    bad.refuse = True
    put(db, table, Shared(1, "x", pending_set()))
    async with running(reconciler(db, table, "good", good), reconciler(db, table, "bad", bad)):
        while True:
            rows, changed = table.all_watch(db.read_txn())
            statuses = next(iter(rows)).statuses
            if str(statuses) == "Error: bad (refused), Done: good":
                break
            await changed.wait()
        bad.refuse = False
        await _all_done(db, table, 1)
    assert good.updates == 1
    assert bad.held == {1: "x"}


async def test_status_is_written_when_the_other_wrote_its_own_during_the_update() -> None:
    db = DB()
    table = new_shared(db)

    class Racing(Noting):
        def update(self, txn: ReadTxn, revision: int, obj: Shared) -> Shared | None:
            other = obj.statuses.set("other", done())
            put(db, table, msgspec.structs.replace(obj, statuses=other))
            return super().update(txn, revision, obj)

    target = Racing()
    put(db, table, Shared(1, "x", pending_set()))
    one = reconciler(db, table, "one", target)
    one._cycle()
    row = table.get(db.read_txn(), 1)
    assert row is not None
    assert row.statuses.get("one").kind is StatusKind.DONE
    assert row.statuses.get("other").kind is StatusKind.DONE
    assert target.updates == 1


async def test_learned_object_is_not_written_over_the_status_of_the_other() -> None:
    db = DB()
    table = new_shared(db)

    class Racing(Noting):
        def update(self, txn: ReadTxn, revision: int, obj: Shared) -> Shared | None:
            if self.updates == 0:
                other = obj.statuses.set("other", done())
                put(db, table, msgspec.structs.replace(obj, statuses=other))
            super().update(txn, revision, obj)
            return msgspec.structs.replace(obj, learned=7)

    target = Racing()
    put(db, table, Shared(1, "x", pending_set()))
    one = reconciler(db, table, "one", target)
    one._cycle()
    one._cycle()
    row = table.get(db.read_txn(), 1)
    assert row is not None
    assert (row.learned, target.updates) == (7, 2)
    assert row.statuses.get("one").kind is StatusKind.DONE
    assert row.statuses.get("other").kind is StatusKind.DONE


async def _all_done(db: DB, table: RWTable[Shared], count: int) -> None:
    with anyio.fail_after(10):
        while True:
            rows, changed = table.all_watch(db.read_txn())
            kinds = [status.kind for row in rows for _, status in row.statuses.statuses]
            if kinds.count(StatusKind.DONE) == 2 * count:
                return
            await changed.wait()


def test_fresh_set_is_pending_for_every_name() -> None:
    statuses = pending_set()
    assert statuses.get("a").kind is StatusKind.PENDING
    assert statuses.get("a").id == statuses.get("b").id
    assert str(statuses) == "Pending"


def test_setting_one_name_keeps_the_others_and_the_order_of_names() -> None:
    statuses = pending_set().set("b", done()).set("a", error("no")).set("b", error("late"))
    assert statuses.get("a").error == "no"
    assert [name for name, _ in statuses.statuses] == ["a", "b"]
    assert str(statuses) == "Error: a (no) b (late)"


def test_pending_again_asks_every_name_anew() -> None:
    before = pending_set().set("a", done()).set("b", done())
    after = before.pending()
    assert {status.kind for _, status in after.statuses} == {StatusKind.PENDING}
    assert after.get("a").id != before.initial.id
    assert isinstance(after.get("new"), StatusType)
