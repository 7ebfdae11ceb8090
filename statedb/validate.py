# SPDX-License-Identifier: Apache-2.0
"""Invariants of a table, checked before each commit when STATEDB_VALIDATE=1 is set. O(table), for
tests.
"""

from __future__ import annotations

from typing import Any

from statedb._row import NEWEST
from statedb._store import Store
from statedb._views import build_view, view_of
from statedb.errors import InvariantBroken


def validate(store: Store) -> None:
    """Check the state that the open transaction is about to commit.

    Raises:
        InvariantBroken: with the first rule that does not hold.
    """
    _check_log(store)
    _check_rows(store)
    _check_secondaries(store)
    _check_views(store)


def _broken(store: Store, rule: str, *seen: Any) -> InvariantBroken:
    return InvariantBroken(f"table {store.name!r}: {rule}: {', '.join(map(repr, seen))}")


def _check_log(store: Store) -> None:
    """The log is in strict revision order and ends at the table's revision."""
    log = [row for segment in [*store.segments, store.tail] for row in segment]
    last = 0
    for row in log:
        if row.rev <= last:
            raise _broken(store, "the log is not in revision order", last, row.rev)
        last = row.rev
    if last > store.rev:
        raise _broken(store, "the log is ahead of the revision", last, store.rev)
    if len(log) != store.log_len + len(store.tail) - store.start:
        raise _broken(store, "the length of the log is miscounted", len(log), store.log_len)
    newest = {row.rev for row in log}
    for row in store.rows.values():
        if row.rev not in newest:
            raise _broken(store, "a newest row is not in the log", row.key, row.rev)


def _check_rows(store: Store) -> None:
    """Chains descend, the count is the number of live rows, tombstones are in the graveyard."""
    live = 0
    dead = {row.rev for row in store.graveyard}
    for key, row in store.rows.items():
        if row.key != key or store.primary.keys_of(row.obj) != [key]:
            raise _broken(store, "a row is under another key than its own", key, row.key)
        if row.dead and row.rev not in dead:
            raise _broken(store, "a tombstone is not in the graveyard", key)
        live += not row.dead
        while row.prev is not None:
            if row.prev.rev >= row.rev:
                raise _broken(store, "a version chain does not descend", key, row.rev, row.prev.rev)
            row = row.prev
    if live != store.count:
        raise _broken(store, "the number of objects is miscounted", live, store.count)


def _check_secondaries(store: Store) -> None:
    """Every live object is found under each of its secondary keys, and unique keys are."""
    for second in store.secondaries:
        owners: dict[Any, Any] = {}
        for key, row in store.rows.items():
            if row.dead:
                continue
            for skey in second.index.keys_of(row.obj):
                if key not in second.candidates(skey):
                    raise _broken(store, "an index entry is missing", second.index.name, skey, key)
                if second.unique and owners.setdefault(skey, key) != key:
                    raise _broken(store, "a unique key is taken twice", second.index.name, skey)


def _check_views(store: Store) -> None:
    """A patched view equals one that is made anew."""
    for position, view in enumerate(store.live.views):
        if view is None or not store.usable(view, position):
            continue
        patched = view_of(store, store.live, position)
        patched.check()
        fresh = build_view(store, store.live, position, store.rev)
        if list(patched.keys()) != list(fresh.keys()):
            raise _broken(store, "the keys of a view are wrong", position)
        pairs = zip(patched.objects(), fresh.objects(), strict=True)
        if any(left is not right for left, right in pairs):
            raise _broken(store, "the objects of a view are wrong", position)
    assert store.live.rev == NEWEST
