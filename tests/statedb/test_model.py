# SPDX-License-Identifier: Apache-2.0
"""The database against a model of dictionaries: every open snapshot and change iterator is verified
at each step.

Snapshots are held over later writes, iterators are read in parts, watches are compared with the
answers that they stand for. The log's segments are made tiny, so that compaction runs all the time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from statedb import (
    DB,
    ChangeIterator,
    Channel,
    DuplicateKey,
    Index,
    LpmIndex,
    ReadTxn,
    RevisionGone,
    RWTable,
    WriteTxn,
    new_table,
)


class Thing(msgspec.Struct, frozen=True):
    id: int
    name: str
    tags: tuple[str, ...] = ()
    group: int = 0
    net: str = "10.0.0.0/8"


ID = Index("id", key=lambda thing: thing.id)
NAME = Index("name", key=lambda thing: thing.name)
TAGS = Index("tags", keys=lambda thing: thing.tags, unique=False)
GROUP = Index("group", key=lambda thing: thing.group, unique=False)
NET = LpmIndex("net", key=lambda thing: thing.net, unique=False)

NETS = {"0.0.0.0/0": 0, "10.0.0.0/8": 8, "10.1.0.0/16": 16, "10.1.2.0/24": 24, "11.0.0.0/8": 8}
COVERING = {
    "10.1.2.3": ("10.1.2.0/24", "10.1.0.0/16", "10.0.0.0/8", "0.0.0.0/0"),
    "10.9.9.9": ("10.0.0.0/8", "0.0.0.0/0"),
    "12.0.0.1": ("0.0.0.0/0",),
}
INSIDE = {"10.0.0.0/8": ("10.0.0.0/8", "10.1.0.0/16", "10.1.2.0/24"), "11.1.0.0/16": ()}
TAG_TEXTS = ("", "a", "ab", "abc", "b")
IDS = range(8)

things = st.builds(
    Thing,
    id=st.sampled_from(IDS),
    name=st.sampled_from(["n0", "n1", "n2", "n3", "m0", "m1", "m2", "m3", "k0", "k1"]),
    tags=st.lists(st.sampled_from(TAG_TEXTS[1:]), max_size=3).map(tuple),
    group=st.integers(0, 2),
    net=st.sampled_from(list(NETS)),
)

Model = dict[int, tuple[Thing, int]]
Pairs = list[tuple[Thing, int]]


class Snapshot:
    """What a transaction must show."""

    def __init__(self, txn: ReadTxn, model: Model, rev: int) -> None:
        self.txn = txn
        self.model = dict(model)
        self.rev = rev


class Watched:
    """A query whose channel must be closed exactly when its answer has been another one."""

    def __init__(self, answer: Callable[[Model, int], Any], now: Any, channel: Channel) -> None:
        self.answer = answer
        self.now = now
        self.channel = channel
        self.differed = False


class Replica:
    """A change iterator and what it has told so far."""

    def __init__(self, changes: ChangeIterator[Thing]) -> None:
        self.changes = changes
        self.seen: Model = {}
        self.last = 0


def by(key: Callable[[Thing], Any], model: Model) -> Pairs:
    return sorted(model.values(), key=lambda pair: (key(pair[0]), pair[0].id))


def tagged(test: Callable[[str], bool], model: Model) -> list[Thing]:
    found = [(tag, obj.id, obj) for obj, _ in model.values() for tag in set(obj.tags) if test(tag)]
    return [obj for _, _, obj in sorted(found, key=lambda entry: entry[:2])]


QUERIES: list[tuple[Callable[..., Any], Callable[[Model, int], Any]]] = []
"""(watch query on table and transaction, answer with revisions from the model)."""


def query(ask: Callable[..., Any], answer: Callable[[Model, int], Any]) -> None:
    QUERIES.append((ask, answer))


for _id in IDS:
    query(
        lambda table, txn, key=_id: table.get_row_watch(txn, key),
        lambda model, rev, key=_id: model.get(key),  # type: ignore[misc]
    )
    query(
        lambda table, txn, key=_id: table.lower_bound_watch(txn, key),
        lambda model, rev, key=_id: [p for i, p in model.items() if i >= key],  # type: ignore[misc]
    )
for _tag in TAG_TEXTS:
    query(
        lambda table, txn, key=_tag: table.list_watch(txn, key, TAGS),
        lambda model, rev, key=_tag: [p for p in model.values() if key in p[0].tags],  # type: ignore[misc]
    )
    query(
        lambda table, txn, key=_tag: table.prefix_watch(txn, key, TAGS),
        lambda model, rev, key=_tag: [  # type: ignore[misc]
            p for p in model.values() if any(t.startswith(key) for t in p[0].tags)
        ],
    )
for _name in ("n0", "m1"):
    query(
        lambda table, txn, key=_name: table.get_watch(txn, key, NAME),
        lambda model, rev, key=_name: [p for p in model.values() if p[0].name == key],  # type: ignore[misc]
    )
for _asked, _nets in COVERING.items():
    query(
        lambda table, txn, key=_asked: table.get_watch(txn, key, NET),
        lambda model, rev, nets=_nets: [p for p in model.values() if p[0].net in nets],  # type: ignore[misc]
    )
for _asked, _nets in INSIDE.items():
    query(
        lambda table, txn, key=_asked: table.prefix_watch(txn, key, NET),
        lambda model, rev, nets=_nets: [p for p in model.values() if p[0].net in nets],  # type: ignore[misc]
    )
for _rev in (1, 5, 20):
    query(
        lambda table, txn, key=_rev: table.by_revision_watch(txn, key),
        lambda model, rev, key=_rev: [p for p in model.values() if p[1] >= key],  # type: ignore[misc]
    )
query(lambda table, txn: table.all_watch(txn), lambda model, rev: rev)
query(lambda table, txn: table.num_objects_watch(txn), lambda model, rev: len(model))


class DatabaseMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.db = DB("model", history=3)
        self.db.validating = True
        self.other: RWTable[Thing] = new_table(self.db, "others", ID)
        self.table: RWTable[Thing] = new_table(
            self.db, "things", ID, NAME, TAGS, GROUP, NET, row_type=Thing
        )
        self.table._store.segment_rows = 4
        self.table._store.slack_rows = 3
        self.committed: Model = {}
        self.rev = 0
        self.model: Model = {}
        self.next_rev = 0
        self.wtxn: WriteTxn | None = None
        self.fresh: list[Replica] = []
        self.snapshots: list[Snapshot] = []
        self.replicas: list[Replica] = []
        self.watched: list[Watched] = []
        self.past: list[Snapshot] = []

    # Writing.

    @precondition(lambda self: self.wtxn is None)
    @rule(both=st.booleans())
    def begin(self, both: bool) -> None:
        tables = (self.table, self.other) if both else (self.table,)
        self.wtxn = self.db.write_txn(*tables)
        self.model = dict(self.committed)
        self.next_rev = self.rev
        self.fresh = []

    @precondition(lambda self: self.wtxn is not None)
    @rule(thing=things)
    def insert(self, thing: Thing) -> None:
        assert self.wtxn is not None
        owner = [i for i, (obj, _) in self.model.items() if obj.name == thing.name]
        if owner and owner != [thing.id]:
            with pytest.raises(DuplicateKey):
                self.table.insert(self.wtxn, thing)
            return
        old = self.model.get(thing.id)
        expected = (None, False) if old is None else (old[0], True)
        assert self.table.insert(self.wtxn, thing) == expected
        self._put(thing)

    def _put(self, thing: Thing) -> None:
        self.next_rev += 1
        self.model[thing.id] = (thing, self.next_rev)

    def _drop(self, key: int) -> None:
        self.next_rev += 1
        del self.model[key]

    @precondition(lambda self: self.wtxn is not None)
    @rule(key=st.sampled_from(IDS), group=st.integers(0, 2), tag=st.sampled_from(TAG_TEXTS[1:]))
    def modify(self, key: int, group: int, tag: str) -> None:
        assert self.wtxn is not None
        old = self.model.get(key)
        if old is None:
            return
        merged = msgspec.structs.replace(old[0], group=group, tags=(tag,))
        found = self.table.modify(
            self.wtxn, Thing(key, "unused", (tag,), group), lambda old, new: merged
        )
        assert found == (old[0], True)
        self._put(merged)

    @precondition(lambda self: self.wtxn is not None)
    @rule(key=st.sampled_from(IDS))
    def delete(self, key: int) -> None:
        assert self.wtxn is not None
        old = self.model.get(key)
        expected = (None, False) if old is None else (old[0], True)
        assert self.table.delete(self.wtxn, Thing(key, "")) == expected
        if old is not None:
            self._drop(key)

    @precondition(lambda self: self.wtxn is not None)
    @rule(key=st.sampled_from(IDS), stale=st.booleans(), deleting=st.booleans())
    def compare_and(self, key: int, stale: bool, deleting: bool) -> None:
        assert self.wtxn is not None
        old = self.model.get(key)
        if old is None:
            assert self.table.compare_and_swap(self.wtxn, 1, Thing(key, "x")) == (None, False)
            return
        revision = old[1] - 1 if stale else old[1]
        new = msgspec.structs.replace(old[0], group=(old[0].group + 1) % 3)
        act = self.table.compare_and_delete if deleting else self.table.compare_and_swap
        assert act(self.wtxn, revision, new) == (old[0], not stale)
        if not stale and deleting:
            self._drop(key)
        elif not stale:
            self._put(new)

    @precondition(lambda self: self.wtxn is not None)
    @rule()
    def delete_all(self) -> None:
        assert self.wtxn is not None
        assert self.table.delete_all(self.wtxn) == len(self.model)
        self.next_rev += len(self.model)
        self.model = {}

    @precondition(lambda self: self.wtxn is not None)
    @rule()
    def commit(self) -> None:
        assert self.wtxn is not None
        txn = self.wtxn.commit()
        self.wtxn = None
        changed = self.next_rev != self.rev
        self.committed, self.rev = self.model, self.next_rev
        self.replicas += self.fresh
        for watched in self.watched:
            if watched.answer(self.committed, self.rev) != watched.now:
                watched.differed = True
        if changed:
            self.past = [*self.past, Snapshot(txn, self.committed, self.rev)][-3:]
        self._verify(Snapshot(txn, self.committed, self.rev))

    @precondition(lambda self: self.wtxn is not None)
    @rule()
    def abort(self) -> None:
        assert self.wtxn is not None
        self.wtxn.abort()
        self.wtxn = None

    # Reading.

    @precondition(lambda self: len(self.snapshots) < 4)
    @rule()
    def take_snapshot(self) -> None:
        self.snapshots.append(Snapshot(self.db.read_txn(), self.committed, self.rev))

    @precondition(lambda self: self.snapshots)
    @rule(data=st.data())
    def drop_snapshot(self, data: st.DataObject) -> None:
        self.snapshots.pop(data.draw(st.integers(0, len(self.snapshots) - 1)))

    @rule(number=st.integers(0, len(QUERIES) - 1), data=st.data())
    def watch(self, number: int, data: st.DataObject) -> None:
        ask, answer = QUERIES[number]
        current = Snapshot(self.db.read_txn(), self.committed, self.rev)
        snapshot = data.draw(st.sampled_from([current, *self.snapshots]))
        _, channel = ask(self.table, snapshot.txn)
        watched = Watched(answer, answer(snapshot.model, snapshot.rev), channel)
        watched.differed = answer(self.committed, self.rev) != watched.now
        self.watched = [*self.watched, watched][-6:]

    @precondition(lambda self: self.past)
    @rule(data=st.data())
    def travel(self, data: st.DataObject) -> None:
        kept = data.draw(st.sampled_from(self.past))
        txn = self.db.read_txn_at(self.table, kept.rev, self.db.instance_id)
        self._verify(Snapshot(txn, kept.model, kept.rev))
        with pytest.raises(RevisionGone):
            self.db.read_txn_at(self.table, self.rev + 1)

    # Change iterators.

    @precondition(lambda self: self.wtxn is not None and len(self.replicas) < 3)
    @rule()
    def track(self) -> None:
        assert self.wtxn is not None
        self.fresh.append(Replica(self.table.changes(self.wtxn)))

    @precondition(lambda self: self.replicas)
    @rule(data=st.data(), limit=st.integers(0, 5))
    def read_changes(self, data: st.DataObject, limit: int) -> None:
        replica = data.draw(st.sampled_from(self.replicas))
        current = Snapshot(self.db.read_txn(), self.committed, self.rev)
        snapshot = data.draw(st.sampled_from([current, *self.snapshots]))
        changes, channel = replica.changes.next(snapshot.txn)
        assert channel.closed == (snapshot.rev != self.rev)
        complete = True
        for number, change in enumerate(changes):
            if number == 4 and limit == 4:
                complete = False
                break
            assert change.revision > replica.last
            replica.last = change.revision
            if change.deleted:
                replica.seen.pop(change.obj.id, None)
            else:
                replica.seen[change.obj.id] = (change.obj, change.revision)
        if complete and snapshot.rev >= replica.last:
            replica.last = snapshot.rev
            assert replica.seen == snapshot.model

    @precondition(lambda self: self.replicas)
    @rule(data=st.data())
    def close_changes(self, data: st.DataObject) -> None:
        self.replicas.pop(data.draw(st.integers(0, len(self.replicas) - 1))).changes.close()

    # What holds at each step.

    @invariant()
    def snapshots_stay(self) -> None:
        for snapshot in self.snapshots:
            self._verify(snapshot)
        self._verify(Snapshot(self.db.read_txn(), self.committed, self.rev))
        if self.wtxn is not None:
            self._verify(Snapshot(self.wtxn, self.model, self.next_rev))

    @invariant()
    def channels_are_exact(self) -> None:
        for watched in self.watched:
            assert watched.channel.closed == watched.differed

    @invariant()
    def nothing_piles_up(self) -> None:
        if self.wtxn is None:
            stored = len(self.table._store.rows)
            slack = 2 * stored + self.table._store.slack_rows + 3 * self.table._store.segment_rows
            assert self.table._store.log_len <= max(slack, 3 * len(IDS) + 40)

    def _verify(self, snapshot: Snapshot) -> None:
        table, txn, model = self.table, snapshot.txn, snapshot.model
        ordered = [obj for _, (obj, _) in sorted(model.items())]
        assert table.num_objects(txn) == len(model)
        assert table.revision(txn) == snapshot.rev
        for key in IDS:
            found = model.get(key)
            assert table.get(txn, key) == (found[0] if found else None)
            assert table.get_row(txn, key) == found
        assert list(table.all(txn)) == ordered
        assert list(table.lower_bound(txn, 3)) == [obj for obj in ordered if obj.id >= 3]
        assert list(table.by_revision(txn, 3)) == sorted(
            [pair for pair in model.values() if pair[1] >= 3], key=lambda pair: pair[1]
        )
        for group in range(3):
            same = [obj for obj in ordered if obj.group == group]
            assert table.list(txn, group, GROUP) == same
        for obj in ordered:
            assert table.get(txn, obj.name, NAME) is obj
        assert table.get(txn, "nobody", NAME) is None
        for tag in TAG_TEXTS:
            assert table.list(txn, tag, TAGS) == tagged(lambda own, tag=tag: own == tag, model)  # type: ignore[misc]
            assert list(table.prefix(txn, tag, TAGS)) == tagged(
                lambda own, tag=tag: own.startswith(tag),  # type: ignore[misc]
                model,
            )
            assert list(table.lower_bound(txn, tag, TAGS)) == tagged(
                lambda own, tag=tag: own >= tag,  # type: ignore[misc]
                model,
            )
        for asked, nets in COVERING.items():
            covering = [obj for net in nets for obj in ordered if obj.net == net]
            assert table.list(txn, asked, NET) == covering
            assert table.get(txn, asked, NET) == (covering[0] if covering else None)
        for asked, nets in INSIDE.items():
            inside = [obj for net in nets for obj in ordered if obj.net == net]
            assert list(table.prefix(txn, asked, NET)) == inside

    def teardown(self) -> None:
        """With all snapshots and iterators gone, nothing of the past stays."""
        if self.wtxn is not None:
            self.abort()
        for snapshot in (*self.snapshots, *self.past):
            snapshot.txn = self.db.read_txn()
        self.snapshots, self.past, self.watched = [], [], []
        for replica in self.replicas:
            replica.changes.close()
        for number in range(40):
            with self.db.write_txn(self.table) as wtxn:
                self.table.delete_all(wtxn)
                self.table.insert(wtxn, Thing(number % 2, f"t{number}"))
        assert len(self.table._store.rows) <= 3 + 4
        assert self.table.num_trackers() == 0


DatabaseMachine.TestCase.settings = settings(
    max_examples=60,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
TestModel = DatabaseMachine.TestCase
