# SPDX-License-Identifier: Apache-2.0
"""What the model does not reach: misuse, its errors and their texts, other key types,
initializers, usage.
"""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from statedb import (
    DB,
    BadKey,
    DuplicateKey,
    ForeignTransaction,
    Index,
    InitializerExists,
    InstanceMismatch,
    IteratorClosed,
    LpmIndex,
    NoParser,
    NotSupported,
    RegistrationError,
    RevisionGone,
    RWTable,
    TableExists,
    TableNotLocked,
    TransactionClosed,
    TransactionError,
    TransactionOpen,
    UnknownIndex,
    UnknownTable,
    new_table,
)


class Pod(msgspec.Struct, frozen=True):
    name: str
    labels: tuple[str, ...] = ()
    node: str = ""


NAME = Index("name", key=lambda pod: pod.name, parse=str)
LABELS = Index("labels", keys=lambda pod: pod.labels, unique=False)
NODE = Index("node", key=lambda pod: pod.node, unique=False, parse=str.lower)


@pytest.fixture
def db() -> DB:
    made = DB("test")
    made.validating = True
    return made


@pytest.fixture
def pods(db: DB) -> RWTable[Pod]:
    return new_table(db, "pods", NAME, LABELS, NODE, row_type=Pod)


def put(db: DB, table: RWTable[Any], *objs: Any) -> None:
    with db.write_txn(table) as wtxn:
        assert table.insert_many(wtxn, objs) == len(objs)


# Registration.


def test_table_is_refused_when_its_name_is_taken(db: DB, pods: RWTable[Pod]) -> None:
    with pytest.raises(TableExists, match="'pods'"):
        new_table(db, "pods", NAME)
    assert db.tables() == [pods]
    assert db.table("pods") is pods
    with pytest.raises(UnknownTable, match="nodes"):
        db.table("nodes")


def test_table_is_refused_when_its_indexes_do_not_fit(db: DB) -> None:
    with pytest.raises(RegistrationError, match="primary"):
        new_table(db, "pods", LABELS)
    with pytest.raises(RegistrationError, match="one name"):
        new_table(db, "pods", NAME, Index("name", key=str))
    with pytest.raises(RegistrationError, match="either"):
        Index("both", key=str, keys=list)
    assert db.tables() == []


def test_index_is_found_by_name(pods: RWTable[Pod]) -> None:
    assert pods.index("node") is NODE
    with pytest.raises(UnknownIndex, match="color"):
        pods.index("color")
    assert pods.indexes == (NAME, LABELS, NODE)


def test_query_is_refused_when_the_index_is_another_tables(db: DB, pods: RWTable[Pod]) -> None:
    foreign = Index("node", key=lambda pod: pod.node)
    for ask in (pods.get, pods.list, pods.prefix, pods.lower_bound, pods.get_watch):
        with pytest.raises(UnknownIndex, match="node"):
            ask(db.read_txn(), "a", foreign)


# Transactions.


def test_write_is_refused_when_the_table_is_not_held(db: DB, pods: RWTable[Pod]) -> None:
    other: RWTable[Pod] = new_table(db, "others", NAME)
    writes: list[Callable[[Any], object]] = [
        lambda wtxn: pods.insert(wtxn, Pod("a")),
        lambda wtxn: pods.insert_many(wtxn, [Pod("a")]),
        lambda wtxn: pods.modify(wtxn, Pod("a"), lambda old, new: new),
        lambda wtxn: pods.delete(wtxn, Pod("a")),
        lambda wtxn: pods.delete_key(wtxn, "a"),
        lambda wtxn: pods.delete_all(wtxn),
        lambda wtxn: pods.compare_and_swap(wtxn, 1, Pod("a")),
        lambda wtxn: pods.compare_and_delete(wtxn, 1, Pod("a")),
        lambda wtxn: pods.register_initializer(wtxn, "x"),
        lambda wtxn: pods.changes(wtxn),
    ]
    with db.write_txn(other) as wtxn:
        for write in writes:
            with pytest.raises(
                TableNotLocked, match=r"'pods' .* others, opened at .*test_table\.py"
            ):
                write(wtxn)
    for write in writes:
        with pytest.raises(TransactionClosed, match="closed"):
            write(wtxn)


def test_closed_transaction_is_refused_when_used(db: DB, pods: RWTable[Pod]) -> None:
    wtxn = db.write_txn(pods)
    states = [wtxn.closed]
    wtxn.commit()
    assert [*states, wtxn.closed] == [False, True]
    with pytest.raises(TransactionClosed, match=r"pods, opened at .*test_table\.py:\d+"):
        wtxn.commit()
    with pytest.raises(TransactionClosed):
        pods.get(wtxn, "a")
    with pytest.raises(TransactionClosed):
        pods.all(wtxn)
    with pytest.raises(TransactionClosed):
        wtxn.base()
    wtxn.abort()


def test_second_transaction_is_refused_when_this_thread_holds_the_table(
    db: DB, pods: RWTable[Pod]
) -> None:
    other: RWTable[Pod] = new_table(db, "others", NAME)
    wtxn = db.write_txn(pods)
    with pytest.raises(
        TransactionOpen, match=r"pods, opened at .*test_table\.py:\d+ is still open"
    ):
        db.write_txn(pods, other)
    with db.write_txn(other):
        pass
    wtxn.abort()
    with db.write_txn(other, pods, pods) as both:
        assert "pods, others, opened at" in both.opened


def test_message_names_the_line_where_the_transaction_was_opened(
    db: DB, pods: RWTable[Pod]
) -> None:
    line = threading.current_thread  # keeps the next line's number in one place
    del line
    wtxn = db.write_txn(pods)
    first = test_message_names_the_line_where_the_transaction_was_opened.__code__.co_firstlineno
    assert wtxn.opened.endswith(f"test_table.py:{first + 5}")
    wtxn.abort()


def test_dropped_transaction_is_aborted_and_reported(
    db: DB, pods: RWTable[Pod], monkeypatch: pytest.MonkeyPatch
) -> None:
    reported: list[Any] = []
    monkeypatch.setattr("sys.unraisablehook", lambda args: reported.append(args.exc_value))
    wtxn = db.write_txn(pods)
    pods.insert(wtxn, Pod("a"))
    del wtxn
    gc.collect()
    assert [type(error).__name__ for error in reported] == ["TransactionForgotten"]
    assert "pods, opened at" in str(reported[0])
    put(db, pods, Pod("b"))
    assert list(pods.all(db.read_txn())) == [Pod("b")]


def test_transaction_of_another_database_is_refused(db: DB, pods: RWTable[Pod]) -> None:
    stranger = DB("stranger")
    theirs: RWTable[Pod] = new_table(stranger, "pods", NAME)
    for ask in (pods.get, pods.list):
        with pytest.raises(ForeignTransaction, match="stranger"):
            ask(stranger.read_txn(), "a")
    with pytest.raises(UnknownTable, match="pods"):
        db.write_txn(theirs)
    with pytest.raises(UnknownTable, match="pods"):
        db.write_txn(pods, theirs)
    with pytest.raises(TransactionError, match="at least one"):
        db.write_txn()


def test_snapshot_older_than_the_table_is_refused(db: DB) -> None:
    txn = db.read_txn()
    pods: RWTable[Pod] = new_table(db, "pods", NAME)
    with pytest.raises(ForeignTransaction, match="newer"):
        pods.get(txn, "a")


def test_block_that_raises_leaves_no_trace(db: DB, pods: RWTable[Pod]) -> None:
    put(db, pods, Pod("a", node="n1"))
    before = db.read_txn()

    def fail() -> None:
        with db.write_txn(pods) as wtxn:
            pods.insert(wtxn, Pod("a", node="n2"))
            pods.insert(wtxn, Pod("b"))
            pods.delete_all(wtxn)
            pods.changes(wtxn)
            pods.register_initializer(wtxn, "x")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    txn = db.read_txn()
    assert txn is before
    assert list(pods.all(txn)) == [Pod("a", node="n1")]
    assert pods.initialized(txn)
    assert pods.num_trackers() == 0
    assert pods.revision(txn) == 1


def test_commit_without_writes_makes_no_new_snapshot(db: DB, pods: RWTable[Pod]) -> None:
    before = db.read_txn()
    with db.write_txn(pods) as wtxn:
        assert pods.delete(wtxn, Pod("a")) == (None, False)
    assert db.read_txn() is before


def test_tables_are_written_together(db: DB, pods: RWTable[Pod]) -> None:
    other: RWTable[Pod] = new_table(db, "others", NAME)
    third: RWTable[Pod] = new_table(db, "third", NAME)
    put(db, third, Pod("t"))
    with db.write_txn(other, pods) as wtxn:
        pods.insert(wtxn, Pod("a"))
        assert pods.num_objects(db.read_txn()) == 0
        other.insert(wtxn, Pod("b"))
        assert third.get(wtxn, "t") == Pod("t")
        assert list(pods.all(wtxn)) == [Pod("a")]
    txn = db.read_txn()
    assert (pods.num_objects(txn), other.num_objects(txn)) == (1, 1)


def test_unique_index_refuses_a_second_owner_and_the_rest_is_committed(db: DB) -> None:
    unique = Index("node", key=lambda pod: pod.node)
    pods: RWTable[Pod] = new_table(db, "pods", NAME, unique, LABELS)
    put(db, pods, Pod("a", node="n1"))
    with db.write_txn(pods) as wtxn:
        with pytest.raises(DuplicateKey, match="'node' has 'n1' for object 'a', refused for 'b'"):
            pods.insert(wtxn, Pod("b", ("x",), node="n1"))
        pods.insert(wtxn, Pod("b", ("y",), node="n2"))
        pods.insert(wtxn, Pod("a", node="n3"))
        pods.insert(wtxn, Pod("b", ("y",), node="n1"))
    txn = db.read_txn()
    assert pods.get(txn, "n1", unique) == Pod("b", ("y",), "n1")
    assert pods.get(txn, "n2", unique) is None
    assert pods.list(txn, "x", LABELS) == []


def test_index_function_that_raises_leaves_the_table_as_it_was(db: DB) -> None:
    def keys(pod: Pod) -> tuple[str, ...]:
        if pod.node == "bad":
            raise ZeroDivisionError
        return pod.labels

    raising = Index("raising", keys=keys, unique=False)
    pods: RWTable[Pod] = new_table(db, "pods", NAME, NODE, raising)
    with db.write_txn(pods) as wtxn:
        pods.insert(wtxn, Pod("a", ("x",)))
        with pytest.raises(ZeroDivisionError):
            pods.insert(wtxn, Pod("a", ("y",), "bad"))
    txn = db.read_txn()
    assert pods.list(txn, "x", raising) == [Pod("a", ("x",))]
    assert pods.list(txn, "bad", NODE) == []
    assert pods.revision(txn) == 1


# Keys.


def test_modify_follows_the_key_of_what_is_merged(db: DB, pods: RWTable[Pod]) -> None:
    with db.write_txn(pods) as wtxn:
        pods.insert(wtxn, Pod("a", node="one"))
        moved = Pod("b", node="two")
        assert pods.modify(wtxn, Pod("a"), lambda old, new: moved) == (None, False)
        kept = Pod("a", node="two")
        assert pods.modify(wtxn, Pod("a"), lambda old, new: kept) == (Pod("a", node="one"), True)
    txn = db.read_txn()
    assert list(pods.all(txn)) == [kept, moved]
    assert pods.list(txn, "one", NODE) == []
    assert pods.list(txn, "two", NODE) == [kept, moved]


@pytest.mark.parametrize("nested", ["insert", "delete"])
def test_modify_sees_what_its_merge_function_wrote(db: DB, pods: RWTable[Pod], nested: str) -> None:
    with db.write_txn(pods) as wtxn:
        pods.insert(wtxn, Pod("a", node="one"))
    inner = Pod("a", node="two")

    def merge(old: Pod, new: Pod) -> Pod:
        getattr(pods, nested)(wtxn, inner)
        return new

    with db.write_txn(pods) as wtxn:
        replaced = pods.modify(wtxn, Pod("a", node="three"), merge)
    assert replaced == ((inner, True) if nested == "insert" else (None, False))
    txn = db.read_txn()
    assert [pods.list(txn, node, NODE) for node in ("one", "two")] == [[], []]
    assert pods.list(txn, "three", NODE) == [Pod("a", node="three")]
    assert pods.num_objects(txn) == 1


def test_modify_is_refused_when_its_merge_function_ended_the_transaction(
    db: DB, pods: RWTable[Pod]
) -> None:
    with db.write_txn(pods) as wtxn:
        pods.insert(wtxn, Pod("a"))
    wtxn = db.write_txn(pods)

    def merge(old: Pod, new: Pod) -> Pod:
        wtxn.abort()
        return new

    with pytest.raises(TransactionClosed):
        pods.modify(wtxn, Pod("a", node="two"), merge)
    assert list(pods.all(db.read_txn())) == [Pod("a")]


def test_prefix_is_refused_when_keys_have_none(db: DB) -> None:
    numbers: RWTable[Any] = new_table(db, "numbers", Index("n", key=lambda obj: obj))
    put(db, numbers, 3, 1, 2)
    with pytest.raises(NotSupported, match="int keys"):
        numbers.prefix(db.read_txn(), 1)
    with pytest.raises(NotSupported, match="int keys"):
        numbers.prefix_watch(db.read_txn(), 1)
    with pytest.raises(BadKey, match="'x'"):
        numbers.lower_bound(db.read_txn(), "x")
    assert list(numbers.lower_bound(db.read_txn(), 2)) == [2, 3]


def test_prefix_of_tuples_takes_whole_elements(db: DB) -> None:
    table: RWTable[Any] = new_table(db, "tuples", Index("t", key=lambda obj: obj))
    rows = [("a", 1), ("a", 2), ("ab", 1), ("b", 1)]
    put(db, table, *reversed(rows))
    txn = db.read_txn()
    assert list(table.prefix(txn, ("a",))) == rows[:2]
    assert list(table.prefix(txn, ())) == rows
    assert list(table.prefix(txn, ("a", 2))) == [("a", 2)]


def test_text_is_parsed_by_the_index(pods: RWTable[Pod]) -> None:
    assert NODE.parse_key("N1") == "n1"
    with pytest.raises(NoParser, match="labels"):
        LABELS.parse_key("x")
    with pytest.raises(BadKey, match="'x' is no key"):
        Index("n", key=len, parse=int).parse_key("x")


def test_primary_index_may_be_one_of_prefixes(db: DB) -> None:
    by_net = LpmIndex("net", key=lambda net: net)
    nets: RWTable[str] = new_table(db, "nets", by_net)
    put(db, nets, "10.0.0.0/8", "10.1.0.0/16", "::/0", "0.0.0.0/0")
    txn = db.read_txn()
    assert nets.get(txn, "10.1.2.3") == "10.1.0.0/16"
    assert nets.get_row(txn, "10.2.2.3") == ("10.0.0.0/8", 1)
    assert nets.get(txn, "2001::1") == "::/0"
    assert nets.list(txn, "10.1.2.3") == ["10.1.0.0/16", "10.0.0.0/8", "0.0.0.0/0"]
    assert list(nets.prefix(txn, "10.0.0.0/8")) == ["10.0.0.0/8", "10.1.0.0/16"]
    assert list(nets.all(txn)) == ["0.0.0.0/0", "10.0.0.0/8", "10.1.0.0/16", "::/0"]
    _, channel = nets.get_watch(txn, "10.1.2.3")
    _, far = nets.get_watch(txn, "11.1.2.3")
    with db.write_txn(nets) as wtxn:
        assert nets.delete_key(wtxn, "10.1.0.0/16") == ("10.1.0.0/16", True)
    assert [channel.closed, far.closed] == [True, False]
    assert nets.get(db.read_txn(), "10.1.2.3") == "10.0.0.0/8"


# Initializers, history, usage, iterators.


def test_table_is_initialized_when_all_initializers_are_done(db: DB, pods: RWTable[Pod]) -> None:
    assert pods.initialized(db.read_txn())
    _, before = pods.initialized_watch(db.read_txn())
    with db.write_txn(pods) as wtxn:
        one = pods.register_initializer(wtxn, "one")
        two = pods.register_initializer(wtxn, "two")
        with pytest.raises(InitializerExists, match="'one'"):
            pods.register_initializer(wtxn, "one")
    assert before.closed
    txn = db.read_txn()
    ready, channel = pods.initialized_watch(txn)
    assert not ready
    assert pods.pending_initializers(txn) == ("one", "two")
    with db.write_txn(pods) as wtxn:
        one(wtxn)
        one(wtxn)
        assert pods.pending_initializers(wtxn) == ("two",)
    states = [channel.closed]
    with pytest.raises(TransactionClosed):
        two(wtxn)
    with db.write_txn(pods) as wtxn:
        two(wtxn)
    assert [*states, channel.closed] == [False, True]
    assert pods.initialized(db.read_txn())
    assert not pods.initialized(txn)


def test_table_is_filled_when_what_is_missing_cannot_be_had(db: DB, pods: RWTable[Pod]) -> None:
    with db.write_txn(pods) as wtxn:
        one = pods.register_initializer(wtxn, "one")
        two = pods.register_initializer(wtxn, "two")
    txn = db.read_txn()
    filled, channel = pods.filled_watch(txn)
    _, whole = pods.initialized_watch(txn)
    assert not filled
    with db.write_txn(pods) as wtxn:
        one.stall(wtxn)
        one.stall(wtxn)
        wtxn.abort()
    states = [channel.closed]
    with db.write_txn(pods) as wtxn:
        one.stall(wtxn)
        one.stall(wtxn)
        assert pods.stalled_initializers(wtxn) == ("one",)
        assert not pods.filled(wtxn)
        two(wtxn)
        two.stall(wtxn)
        assert pods.filled(wtxn)
    assert [*states, channel.closed] == [False, True]
    states = [whole.closed]  # what is missing is not known to be gone
    assert not pods.initialized(db.read_txn())
    assert not pods.filled(txn), "a snapshot keeps its answer"
    with db.write_txn(pods) as wtxn:
        one(wtxn)
    assert [*states, whole.closed] == [False, True]
    assert pods.stalled_initializers(db.read_txn()) == ()
    assert pods.filled(db.read_txn())


def test_past_is_read_as_far_as_history_goes() -> None:
    db = DB("past", history=2)
    pods: RWTable[Pod] = new_table(db, "pods", NAME)
    for name in "abc":
        put(db, pods, Pod(name))
    assert len(list(pods.all(db.read_txn_at(pods, 2)))) == 2
    assert len(list(pods.all(db.read_txn_at(pods, 3, db.instance_id)))) == 3
    with pytest.raises(RevisionGone, match="no longer"):
        db.read_txn_at(pods, 1)
    with pytest.raises(RevisionGone, match="not reached"):
        db.read_txn_at(pods, 4)
    with pytest.raises(InstanceMismatch, match="elsewhere"):
        db.read_txn_at(pods, 3, "elsewhere")
    assert DB("x").instance_id != DB("x").instance_id


def test_usage_is_reported_beside_the_budget_and_drops_nothing(db: DB) -> None:
    blobs: RWTable[Any] = new_table(
        db, "blobs", Index("n", key=lambda obj: obj[0]), budget_bytes=100_000
    )
    assert blobs.usage(db.read_txn()).bytes == 0
    put(db, blobs, *[(n, bytes(1000)) for n in range(50)])
    few = blobs.usage(db.read_txn())
    assert 50_000 < few.bytes < 100_000
    assert not few.over_budget
    put(db, blobs, *[(n, bytes(1000)) for n in range(500)])
    many = blobs.usage(db.read_txn())
    assert many.objects == 500
    assert 500_000 < many.bytes < 800_000
    assert many.over_budget
    assert blobs.num_objects(db.read_txn()) == 500


def test_iterator_yields_what_is_there_first_and_no_earlier_deletes(
    db: DB, pods: RWTable[Pod]
) -> None:
    put(db, pods, Pod("a"), Pod("b"))
    with db.write_txn(pods) as wtxn:
        keeper = pods.changes(wtxn)
    with db.write_txn(pods) as wtxn:
        pods.delete(wtxn, Pod("a"))
        changes = pods.changes(wtxn)
    seen = [(change.obj.name, change.deleted) for change in changes.next(db.read_txn())[0]]
    assert seen == [("b", False)]
    seen = [(change.obj.name, change.deleted) for change in keeper.next(db.read_txn())[0]]
    assert seen == [("b", False), ("a", True)]


def test_iterator_given_a_write_transaction_yields_only_what_is_committed(
    db: DB, pods: RWTable[Pod]
) -> None:
    put(db, pods, Pod("a"))
    with db.write_txn(pods) as wtxn:
        changes = pods.changes(wtxn)
    with db.write_txn(pods) as wtxn:
        pods.insert(wtxn, Pod("b"))
        assert [change.obj.name for change in changes.next(wtxn)[0]] == ["a"]
    assert [change.obj.name for change in changes.next(db.read_txn())[0]] == ["b"]


def test_tombstones_go_when_the_last_iterator_passed_closed_or_was_dropped(
    db: DB, pods: RWTable[Pod]
) -> None:
    put(db, pods, Pod("a"), Pod("b"))
    with db.write_txn(pods) as wtxn:
        passing, closing, dropping = (pods.changes(wtxn) for _ in range(3))
    with db.write_txn(pods) as wtxn:
        pods.delete_all(wtxn)
    assert pods.graveyard_size() == 2
    list(passing.next(db.read_txn())[0])
    passing.next(db.read_txn())
    closing.close()
    closing.close()
    assert pods.graveyard_size() == 2
    with pytest.raises(IteratorClosed, match="pods"):
        closing.next(db.read_txn())
    del dropping
    gc.collect()
    assert pods.graveyard_size() == 0
    assert not pods._store.rows


def test_versions_of_a_hot_key_stay_bounded_when_a_reader_is_always_there() -> None:
    db = DB("hot", history=5)
    pods: RWTable[Pod] = new_table(db, "pods", NAME)
    pods._store.segment_rows = 64
    pods._store.slack_rows = 32
    put(db, pods, *[Pod(f"p{number}") for number in range(40)])
    longest = 0
    for number in range(2_000):
        put(db, pods, Pod("p0", node=str(number)))
        row, versions = pods._store.rows["p0"], 1
        while row.prev is not None:
            row, versions = row.prev, versions + 1
        longest = max(longest, versions)
    assert 5 < longest < 120


def test_watched_queries_that_nobody_holds_are_forgotten(db: DB, pods: RWTable[Pod]) -> None:
    kept = [pods.get_watch(db.read_txn(), f"kept{n}")[1] for n in range(10)]
    for number in range(10_000):
        pods.get_watch(db.read_txn(), f"gone{number}")
    assert pods._store.watchers.count < 3_000
    put(db, pods, *[Pod(f"kept{n}") for n in range(10)])
    assert all(channel.closed for channel in kept)


def test_log_and_versions_stay_bounded_when_a_reader_is_always_there(
    db: DB, pods: RWTable[Pod]
) -> None:
    db.validating = False
    held: list[Any] = []
    for number in range(20_000):
        put(db, pods, Pod(f"p{number % 10}", node=str(number)))
        held = [*held[-2:], db.read_txn()]
    assert pods._store.log_len < 10_000
    chain = 0
    row = pods._store.rows["p3"]
    while row.prev is not None:
        row = row.prev
        chain += 1
    assert chain < 500
    assert sum(len(str(entry)) for entry in pods._store.moved[:1]) < 1_000
    assert len(pods._store.moved) < 1_000


def test_long_chains_of_versions_are_freed_in_one_piece() -> None:
    """In a process of its own that checks its memory: a wrong free writes over neighbours."""
    script = """
import gc
import os
import subprocess
import sys
from statedb import DB, Index, new_table

def chained(length):
    db = DB()
    table = new_table(db, "t", Index("id", key=lambda obj: 0))
    held = []
    for number in range(length):
        with db.write_txn(table) as wtxn:
            table.insert(wtxn, (number,))
        held.append(db.read_txn())
    assert table.get(held[0], 0) == (0,)
    return db, table, held

for length in (10, 100, 3_000):
    db, table, held = chained(length)
    del held[:]
    with db.write_txn(table) as wtxn:
        table.insert(wtxn, ("last",))
    assert table._store.rows[0].prev is None
    del db, table, held, wtxn
    kept = chained(length)
    del kept
    gc.collect()
"""
    environment = os.environ | {"PYTHONMALLOC": "debug", "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", script], env=environment, check=True, timeout=15)
