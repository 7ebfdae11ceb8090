# SPDX-License-Identifier: Apache-2.0
"""What may be forgotten, and when: tombstones, moved index entries, superseded rows of the log.

A deleted object stays in the table as a tombstone until every change iterator and every live
snapshot is past it. All of this runs at commit, under the table's lock, in bounded steps: the log
is compacted a segment at a time.

Nothing is changed in place that a live snapshot may still read, except version chains: cutting out
a version that no live snapshot sees leaves the versions before and behind it linked.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import Final

from statedb._row import Row, unlink
from statedb._store import Store

_MOVED_SLACK: Final = 64


def settle(store: Store, revs: list[int], wrote: int) -> None:
    """Forget what can be after a commit.

    `revs`: all revisions that live snapshots read, the committed one included, ascending; `wrote`:
    rows of the commit.
    """
    oldest = revs[0]
    if store.graveyard:
        collect(store, oldest)
    if len(store.moved) > min(_MOVED_SLACK, store.slack_rows) + (store.count >> 2):
        trim_moved(store, oldest)
    limit = 2 * len(store.rows) + store.slack_rows
    if store.compact_at >= 0 or store.log_len > limit:
        _compact(store, revs, 1 + 2 * wrote // store.segment_rows)
        limit = 2 * len(store.rows) + store.slack_rows
    elif len(store.tail) >= store.segment_rows:
        store.roll()
    tail_limit = store.log_len + store.segment_rows - len(store.tail)
    store.settle_at = 0 if store.compact_at >= 0 else min(limit, tail_limit)


def collect(store: Store, oldest: int) -> None:
    """Remove the tombstones that every change iterator and live snapshot has passed."""
    limit = oldest
    for tracker in store.trackers:
        if tracker.rev < limit:
            limit = tracker.rev
    graveyard = store.graveyard
    rows = store.rows
    while graveyard and graveyard[0].rev <= limit:
        row = graveyard.popleft()
        store.forgotten = row.rev
        if rows.get(row.key) is row:
            del rows[row.key]
            unlink(row)


def trim_moved(store: Store, oldest: int) -> None:
    """Remove the index entries that no live snapshot needs, and their records.

    An entry that a later record speaks of too (the object came back to the key, and left again)
    waits for that one.
    """
    kept = [record for record in store.moved if record[3] > oldest]
    waiting = {(second.position, skey, key) for second, skey, key, _ in kept}
    latest = store.moved_rev
    for second, skey, key, rev in store.moved:
        if rev > oldest:
            continue
        latest = max(latest, rev)
        row = store.rows.get(key)
        gone = row is None or row.dead or not second.has(row.obj, skey)
        if gone and (second.position, skey, key) not in waiting:
            second.remove(skey, key)
    store.moved = kept
    store.moved_rev = latest


def _compact(store: Store, revs: list[int], steps: int) -> None:
    """Drop superseded rows from the next `steps` segments; small neighbours are merged."""
    at = store.compact_at
    if at < 0:
        at = 0
        if store.tail:
            store.roll()
    segments = store.segments.copy()
    while steps and at < len(segments):
        steps -= 1
        kept = _live_rows(store, segments[at], revs)
        if at and len(segments[at - 1]) + len(kept) <= store.segment_rows:
            segments[at - 1] = segments[at - 1] + kept
            del segments[at]
        elif kept:
            segments[at] = kept
            at += 1
        else:
            del segments[at]
    store.segments = segments
    store.compact_at = at if at < len(segments) else -1


def _live_rows(store: Store, segment: list[Row], revs: list[int]) -> list[Row]:
    """Return the newest rows of a segment, and prune the versions of all keys it speaks of.

    Those of superseded rows too: the newest row of a key that is written all the time is never old
    enough to be compacted itself.
    """
    rows = store.rows
    kept: list[Row] = []
    horizon = store.log_horizon
    for row in segment:
        newest = rows.get(row.key)
        if newest is row:
            kept.append(row)
        elif row.dead and row.rev > horizon:
            horizon = row.rev
        if newest is not None and newest.prev is not None:
            _prune(newest, revs)
    store.log_horizon = horizon
    store.log_len -= len(segment) - len(kept)
    return kept


def _prune(row: Row, revs: list[int]) -> None:
    """Cut out of the chain behind `row` what no revision of the ascending `revs` sees."""
    newer = row
    while newer.prev is not None:
        older = newer.prev
        at = bisect_left(revs, older.rev)
        if at < len(revs) and revs[at] < newer.rev:
            newer = older
        else:
            newer.prev = older.prev
