# SPDX-License-Identifier: Apache-2.0
"""Ordered view: an immutable sorted map, made for one snapshot and patched into the next.

Three levels, copied on write: a top list of nodes, a node of up to 128 leaves, a leaf of up to 128
keys with a parallel list of objects. Two levels would do at 10,000 rows; at a million the copy of
one long spine touches the reference count of thousands of leaves.

    View   mins [a ........ m ........ t]
    Node        mins [a .. d .. h]
    Leaf             keys [a b c]   objs [A B C]

Nothing in a view changes once it is made, so that readers need no lock and share all leaves that
are untouched.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, islice, pairwise
from operator import attrgetter
from typing import Any, Final

LEAF: Final = 64
"""Keys in a leaf and leaves in a node when made in bulk; both split above twice that."""


class _Absent:
    """Marks a key that a patch takes away."""


ABSENT: Final = _Absent()


class Node:
    """A run of leaves."""

    def __init__(self, mins: list[Any], keys: list[list[Any]], objs: list[list[Any]]) -> None:
        self.mins = mins
        self.keys = keys
        self.objs = objs


_objs: Final = attrgetter("objs")
_keys: Final = attrgetter("keys")


class View:
    """All (key, object) pairs of one snapshot in key order.

    `rev` is the snapshot's revision, `moved_in` and `moved_to` say how far its table's list of
    moved index entries is worked in (see `statedb._store`).
    """

    def __init__(self, rev: int, nodes: list[Node], moved_in: list[Any], moved_to: int) -> None:
        self.rev = rev
        self.nodes = nodes
        self.mins: list[Any] = [node.mins[0] for node in nodes]
        self.moved_in = moved_in
        self.moved_to = moved_to

    def objects(self) -> Iterator[Any]:
        """Iterate over all objects in key order."""
        return chain.from_iterable(chain.from_iterable(map(_objs, self.nodes)))

    def keys(self) -> Iterator[Any]:
        """Iterate over all keys in order."""
        return chain.from_iterable(chain.from_iterable(map(_keys, self.nodes)))

    def from_key(self, key: Any) -> Iterator[Any]:
        """Iterate over the objects whose key is not less than `key`; O(log n) to start."""
        nodes = self.nodes
        if not nodes:
            return iter(())
        at = max(bisect_right(self.mins, key) - 1, 0)
        node = nodes[at]
        leaf = max(bisect_right(node.mins, key) - 1, 0)
        start = bisect_left(node.keys[leaf], key)
        return chain(
            node.objs[leaf][start:],
            chain.from_iterable(node.objs[leaf + 1 :]),
            chain.from_iterable(chain.from_iterable(map(_objs, islice(nodes, at + 1, None)))),
        )

    def starting_with(self, prefix: Any, cut: Callable[[Any], Any]) -> Iterator[Any]:
        """Iterate over the objects whose key k has `cut(k) == prefix`.

        `cut` shortens a key to the prefix's form and keeps the order of keys. `prefix` sorts before
        every key that begins with it.
        """
        nodes = self.nodes
        if not nodes:
            return iter(())
        first = self._seek_left(prefix)
        last = self._seek_cut(prefix, cut)
        return self._between(first, last)

    def _seek_left(self, key: Any) -> tuple[int, int, int]:
        at = max(bisect_right(self.mins, key) - 1, 0)
        node = self.nodes[at]
        leaf = max(bisect_right(node.mins, key) - 1, 0)
        return at, leaf, bisect_left(node.keys[leaf], key)

    def _seek_cut(self, prefix: Any, cut: Callable[[Any], Any]) -> tuple[int, int, int]:
        at = max(bisect_right(self.mins, prefix, key=cut) - 1, 0)
        node = self.nodes[at]
        leaf = max(bisect_right(node.mins, prefix, key=cut) - 1, 0)
        return at, leaf, bisect_right(node.keys[leaf], prefix, key=cut)

    def _between(self, first: tuple[int, int, int], last: tuple[int, int, int]) -> Iterator[Any]:
        at, leaf, start = first
        end_at, end_leaf, end = last
        node = self.nodes[at]
        if at == end_at:
            if leaf == end_leaf:
                return iter(node.objs[leaf][start:end])
            return chain(
                node.objs[leaf][start:],
                chain.from_iterable(node.objs[leaf + 1 : end_leaf]),
                node.objs[end_leaf][:end],
            )
        end_node = self.nodes[end_at]
        return chain(
            node.objs[leaf][start:],
            chain.from_iterable(node.objs[leaf + 1 :]),
            chain.from_iterable(
                chain.from_iterable(map(_objs, islice(self.nodes, at + 1, end_at)))
            ),
            chain.from_iterable(end_node.objs[:end_leaf]),
            end_node.objs[end_leaf][:end],
        )

    def check(self) -> None:
        """Raise AssertionError unless the keys are strictly ascending and all levels agree."""
        keys = list(self.keys())
        for left, right in pairwise(keys):
            assert left < right, (left, right)
        for node in self.nodes:
            assert node.mins == [leaf[0] for leaf in node.keys]
            assert [len(leaf) for leaf in node.keys] == [len(leaf) for leaf in node.objs]


def build(keys: list[Any], objs: list[Any]) -> list[Node]:
    """Return the nodes for ascending `keys` and their objects; O(n)."""
    leaf_keys = [keys[at : at + LEAF] for at in range(0, len(keys), LEAF)]
    leaf_objs = [objs[at : at + LEAF] for at in range(0, len(objs), LEAF)]
    return _nodes_of(leaf_keys, leaf_objs)


def _nodes_of(keys: list[list[Any]], objs: list[list[Any]]) -> list[Node]:
    nodes = []
    for at in range(0, len(keys), LEAF):
        part = keys[at : at + LEAF]
        nodes.append(Node([leaf[0] for leaf in part], part, objs[at : at + LEAF]))
    return nodes


def patch(nodes: list[Node], changes: Sequence[tuple[Any, Any]]) -> list[Node]:
    """Return `nodes` with each (key, object or ABSENT) of the ascending `changes` put in or taken
    away.

    O(d log n) for d changes, and a copy of each touched leaf and of the top list.
    """
    if not nodes:
        kept = [pair for pair in changes if pair[1] is not ABSENT]
        return build([pair[0] for pair in kept], [pair[1] for pair in kept])
    mins = [node.mins[0] for node in nodes]
    result: list[Node] = []
    done = 0
    lo = 0
    total = len(changes)
    while lo < total:
        at = max(bisect_right(mins, changes[lo][0]) - 1, 0)
        hi = _run_end(changes, lo, mins, at)
        result.extend(nodes[done:at])
        result.extend(_patch_node(nodes[at], changes, lo, hi))
        done = at + 1
        lo = hi
    result.extend(nodes[done:])
    return result


def _run_end(changes: Sequence[tuple[Any, Any]], lo: int, mins: list[Any], at: int) -> int:
    """Return where the changes end that fall into the child number `at`."""
    if at + 1 >= len(mins):
        return len(changes)
    limit = mins[at + 1]
    if not changes[-1][0] >= limit:
        return len(changes)
    hi = lo + 1
    while changes[hi][0] < limit:
        hi += 1
    return hi


def _patch_node(node: Node, changes: Sequence[tuple[Any, Any]], lo: int, end: int) -> list[Node]:
    keys: list[list[Any]] = []
    objs: list[list[Any]] = []
    done = 0
    mins = node.mins
    part = changes[lo:end]
    lo = 0
    end = len(part)
    while lo < end:
        at = max(bisect_right(mins, part[lo][0]) - 1, 0)
        hi = _run_end(part, lo, mins, at)
        keys.extend(node.keys[done:at])
        objs.extend(node.objs[done:at])
        _patch_leaf(node.keys[at], node.objs[at], part[lo:hi], keys, objs)
        done = at + 1
        lo = hi
    keys.extend(node.keys[done:])
    objs.extend(node.objs[done:])
    if not keys:
        return []
    if len(keys) <= 2 * LEAF:
        return [Node([leaf[0] for leaf in keys], keys, objs)]
    return _nodes_of(keys, objs)


def _patch_leaf(
    keys: list[Any],
    objs: list[Any],
    changes: Sequence[tuple[Any, Any]],
    out_keys: list[list[Any]],
    out_objs: list[list[Any]],
) -> None:
    """Append the patched copy of a leaf, which is none, one or several leaves, to the lists."""
    keys = keys.copy()
    objs = objs.copy()
    for key, obj in changes:
        at = bisect_left(keys, key)
        if at < len(keys) and keys[at] == key:
            if obj is ABSENT:
                del keys[at]
                del objs[at]
            else:
                keys[at] = key
                objs[at] = obj
        elif obj is not ABSENT:
            keys.insert(at, key)
            objs.insert(at, obj)
    if len(keys) <= 2 * LEAF:
        if keys:
            out_keys.append(keys)
            out_objs.append(objs)
        return
    for at in range(0, len(keys), LEAF):
        out_keys.append(keys[at : at + LEAF])
        out_objs.append(objs[at : at + LEAF])
