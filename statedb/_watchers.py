# SPDX-License-Identifier: Apache-2.0
"""Which channels a commit closes: the watched queries of one table.

Nothing hangs on rows or nodes. A watched query is an entry of a dictionary, by what it asked; a
commit intersects the keys it wrote with the keys that are watched. A commit without watchers pays
one comparison, and a channel closes only when the answer of its own query may have changed.

Registration races with commits. A query registers first and compares its snapshot with the
committed one after: a commit before the comparison is seen there, a commit after it finds the
registration.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from typing import Any, Final

from statedb._row import Row, visible
from statedb.lpm import LpmKey, covers
from statedb.watch import Channel

ROWS: Final = 0
"""Any write (argument: None)."""
KEY: Final = 1
"""The objects of one key."""
PREFIX: Final = 2
"""The objects whose key begins with the argument."""
BOUND: Final = 3
"""The objects whose key is not less than the argument."""
COVER: Final = 4
"""Longest-prefix match: the prefixes that cover the argument."""
INSIDE: Final = 5
"""Longest-prefix match: the prefixes inside the argument."""
REVISION: Final = 6
"""The rows whose revision is not less than the argument."""
COUNT: Final = 7
"""The number of objects (argument: None)."""
INIT: Final = 8
"""Whether the table is initialized (argument: None), or filled (argument: FILLED)."""

FILLED: Final = "filled"

_SWEEP_AT: Final = 1024
"""Registered queries before those that nobody holds any more are looked for."""


class Difference:
    """Two states of one table, compared as far as a watched query asks.

    `newest`: the table's rows by key; `keys_of`: index number -> object -> keys; `rows`: all that
    were written between the revisions `before` and `after`.
    """

    def __init__(
        self,
        newest: dict[Any, Row],
        keys_of: Callable[[int], Callable[[Any], list[Any]]],
        rows: list[Row],
        before: int,
        after: int,
        number_differs: bool,
        initialized_differs: bool,
        initializers_differ: bool,
    ) -> None:
        self.newest = newest
        self.keys_of = keys_of
        self.rows = rows
        self.before = before
        self.after = after
        self.number_differs = number_differs
        self.initialized_differs = initialized_differs
        self.initializers_differ = initializers_differ
        self._versions: list[Row] | None = None

    def versions(self) -> list[Row]:
        """Return the versions, old and new, of all objects that differ; costs a look at every
        row, once.
        """
        if self._versions is None:
            changed: list[Row] = []
            for row in self.rows:
                if visible(self.newest.get(row.key), self.after) is not row:
                    continue
                if not row.dead:
                    changed.append(row)
                old = visible(row, self.before)
                if old is not None and not old.dead:
                    changed.append(old)
            self._versions = changed
        return self._versions

    def touched(self, position: int) -> set[Any]:
        """Return the keys in an index that the differing versions have."""
        if position == 0:
            return {row.key for row in self.versions()}
        keys_of = self.keys_of(position)
        return {key for row in self.versions() for key in keys_of(row.obj)}


class Watchers:
    """The watched queries of one table: (kind, position of the index) -> argument -> channel."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._queries: dict[tuple[int, int], dict[Any, Channel]] = {}
        self.count = 0
        self._sweep_at: int = _SWEEP_AT

    def register(self, kind: int, position: int, argument: Any) -> Channel:
        """Return the channel of this query; all who ask the same share it."""
        with self._lock:
            queries = self._queries.get((kind, position))
            if queries is None:
                queries = {}
                self._queries[(kind, position)] = queries
            channel = queries.get(argument)
            if channel is None:
                if self.count >= self._sweep_at:
                    self._sweep()
                channel = Channel()
                queries[argument] = channel
                self.count += 1
            return channel

    def take(self, difference: Difference) -> list[Channel]:
        """Remove and return the channels whose answer may differ."""
        with self._lock:
            taken: list[Channel] = []
            for (kind, position), queries in self._queries.items():
                if queries:
                    hits = _hits(kind, position, queries, difference)
                    taken.extend([queries.pop(argument) for argument in hits])
            self.count -= len(taken)
            return taken

    def _sweep(self) -> None:
        """Forget the channels that only this registry holds."""
        kept = 0
        for queries in self._queries.values():
            _drop_unheld(queries)
            kept += len(queries)
        self.count = kept
        self._sweep_at = max(_SWEEP_AT, 2 * kept)


def _drop_unheld(queries: dict[Any, Channel]) -> None:
    """Let go of all channels, and take back those that live on."""
    refs = [(argument, weakref.ref(channel)) for argument, channel in queries.items()]
    queries.clear()
    for argument, ref in refs:
        channel = ref()
        if channel is not None:
            queries[argument] = channel


def answer_differs(kind: int, position: int, argument: Any, difference: Difference) -> bool:
    """Whether the answer to this query may differ."""
    probe = Watchers()
    probe.register(kind, position, argument)
    return bool(probe.take(difference))


def _hits(
    kind: int, position: int, queries: dict[Any, Channel], difference: Difference
) -> list[Any]:
    """Return the arguments of the queries of this kind whose answer may differ."""
    if kind == ROWS:
        return list(queries) if difference.rows else []
    if kind == COUNT:
        return list(queries) if difference.number_differs else []
    if kind == INIT:
        if difference.initialized_differs:
            return list(queries)
        return [asked for asked in queries if asked == FILLED and difference.initializers_differ]
    if kind == REVISION:
        last = max([row.rev for row in difference.versions()], default=0)
        return [bound for bound in queries if bound <= last]
    return _key_hits(kind, queries, difference.touched(position))


def _key_hits(kind: int, queries: dict[Any, Channel], touched: set[Any]) -> list[Any]:
    """Return the arguments of the queries whose answer depends on a touched key."""
    if not touched:
        return []
    if kind == KEY:
        return list(queries.keys() & touched)
    if kind == BOUND:
        last = max(touched)
        return [bound for bound in queries if bound <= last]
    if kind == PREFIX:
        hits: list[Any] = []
        for length in {len(prefix) for prefix in queries}:
            cuts = {key[:length] for key in touched}
            hits.extend(prefix for prefix in queries if len(prefix) == length and prefix in cuts)
        return hits
    if kind == COVER:
        return [asked for asked in queries if _covered_by_any(asked, touched)]
    return [asked for asked in queries if any(covers(asked, key) for key in touched)]


def _covered_by_any(asked: LpmKey, touched: set[Any]) -> bool:
    """Whether one of the touched prefixes covers what was asked for."""
    width, value, most = asked
    lengths = {key[2] for key in touched if key[0] == width and key[2] <= most}
    for length in lengths:
        if (width, value >> (width - length) << (width - length), length) in touched:
            return True
    return False
