# SPDX-License-Identifier: Apache-2.0
"""Ordered views of a table's snapshots: made by the first ordered read, from the newest one before.

Writers pay nothing for order. The log since an older view, and the index entries that moved since,
say which keys may differ; only those are put into a copy (see `statedb._tree`). A view is kept with
its snapshot, and the newest one with the store, where the next begins.
"""

from __future__ import annotations

from operator import attrgetter
from typing import Any, Final

from statedb._row import NEWEST, visible
from statedb._store import Snap, Store
from statedb._tree import ABSENT, View, build, patch

_key_of: Final = attrgetter("key")


def view_of(store: Store, snap: Snap, position: int) -> View:
    """Return the ordered view of the snapshot, made from the newest one before it if any."""
    base = snap.views[position]
    rev = store.rev if snap.rev == NEWEST else snap.rev
    if base is not None and base.rev == rev:
        return base
    if snap.rev == NEWEST and base is not None and not store.usable(base, position):
        base = None
    if base is None:
        view = build_view(store, snap, position, rev)
    else:
        view = _patch(store, snap, position, rev, base)
    views = snap.views.copy()
    views[position] = view
    snap.views = views
    if snap.rev != NEWEST:
        _offer(store, view, position)
    return view


def _offer(store: Store, view: View, position: int) -> None:
    """Make the view the start of the next ones, if it is the newest.

    Readers may race here: the loser's view is made again when it is needed. `Store.seal` refuses
    one that is too old.
    """
    store.viewed = True
    newest = store.views[position]
    if newest is None or newest.rev < view.rev:
        views = store.views.copy()
        views[position] = view
        store.views = views


def build_view(store: Store, snap: Snap, position: int, rev: int) -> View:
    at = snap.rev
    moved_to = len(store.moved) if at == NEWEST else snap.moved_len
    moved_in = store.moved if at == NEWEST else snap.moved
    live = [
        row
        for row in [visible(row, at) for row in list(store.rows.values())]
        if row is not None and not row.dead
    ]
    if position == 0:
        live.sort(key=_key_of)
        nodes = build([row.key for row in live], [row.obj for row in live])
        return View(rev, nodes, moved_in, moved_to)
    index = store.secondaries[position - 1].index
    pairs = [((skey, row.key), row.obj) for row in live for skey in index.keys_of(row.obj)]
    pairs.sort(key=_first)
    nodes = build([pair[0] for pair in pairs], [pair[1] for pair in pairs])
    return View(rev, nodes, moved_in, moved_to)


def _patch(store: Store, snap: Snap, position: int, rev: int, base: View) -> View:
    at = snap.rev
    moved_to = len(store.moved) if at == NEWEST else snap.moved_len
    moved_in = store.moved if at == NEWEST else snap.moved
    keys = {row.key: None for run in store.runs_after(snap, base.rev) for row in run}
    changes: dict[Any, Any] = {}
    if position == 0:
        for key in keys:
            row = store.lookup(key, at)
            changes[key] = ABSENT if row is None else row.obj
    else:
        second = store.secondaries[position - 1]
        first = base.moved_to if base.moved_in is moved_in else 0
        for owner, skey, key, _ in moved_in[first:moved_to]:
            if owner is second:
                changes[(skey, key)] = ABSENT
                keys[key] = None
        for key in keys:
            row = store.lookup(key, at)
            if row is not None:
                for skey in second.index.keys_of(row.obj):
                    changes[(skey, key)] = row.obj
    nodes = patch(base.nodes, sorted(changes.items(), key=_first))
    return View(rev, nodes, moved_in, moved_to)


def _first(pair: tuple[Any, Any]) -> Any:
    return pair[0]
