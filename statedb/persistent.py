# SPDX-License-Identifier: Apache-2.0
"""Immutable map and set for use inside objects: a change gives a new one that shares the rest.

They are the ordered view of `statedb._tree` by another name: sorted, with O(log n) look-up and
change. Up to 128 keys are one sorted leaf, so that the small ones, which are most, cost two lists.

>>> labels = Map({"app": "web", "tier": "front"})
>>> labels.set("zone", "b")
Map({'app': 'web', 'tier': 'front', 'zone': 'b'})
>>> labels
Map({'app': 'web', 'tier': 'front'})
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Generic, TypeVar, cast

from statedb._tree import ABSENT, Node, View, build, patch

K = TypeVar("K")
V = TypeVar("V")


def _nodes_of(pairs: Iterable[tuple[Any, Any]]) -> list[Node]:
    """Return the nodes for (key, value) pairs; of a key given twice the last counts."""
    ordered = sorted(dict(pairs).items(), key=_key)
    return build([key for key, _ in ordered], [value for _, value in ordered])


def _key(pair: tuple[Any, Any]) -> Any:
    return pair[0]


class _Sorted:
    """What map and set have in common: sorted keys, each with a value."""

    __slots__ = ("_hash", "_len", "_view")

    def __init__(self, nodes: list[Node]) -> None:
        self._view = View(0, nodes, [], 0)
        self._len = sum(len(leaf) for node in nodes for leaf in node.keys)
        self._hash: int | None = None

    def _find(self, key: Any) -> tuple[bool, Any]:
        view = self._view
        if not view.nodes:
            return False, None
        node = view.nodes[max(bisect_right(view.mins, key) - 1, 0)]
        leaf = max(bisect_right(node.mins, key) - 1, 0)
        keys = node.keys[leaf]
        at = bisect_left(keys, key)
        if at < len(keys) and keys[at] == key:
            return True, node.objs[leaf][at]
        return False, None

    def _patched(self, changes: dict[Any, Any]) -> list[Node]:
        return patch(self._view.nodes, sorted(changes.items(), key=_key))

    def _items(self) -> Iterator[tuple[Any, Any]]:
        return zip(self._view.keys(), self._view.objects(), strict=True)

    def __len__(self) -> int:
        return self._len

    def __contains__(self, key: object) -> bool:
        return self._find(key)[0]

    def __hash__(self) -> int:
        if self._hash is None:
            self._hash = hash(tuple(self._items()))
        return self._hash


class Map(_Sorted, Generic[K, V]):
    """An immutable mapping in key order. Keys are comparable with each other."""

    __slots__ = ()

    def __init__(self, items: Mapping[K, V] | Iterable[tuple[K, V]] = ()) -> None:
        super().__init__(_nodes_of(items.items() if isinstance(items, Mapping) else items))

    @classmethod
    def _of(cls, nodes: list[Node]) -> Map[K, V]:
        made = cls.__new__(cls)
        _Sorted.__init__(made, nodes)
        return made

    def set(self, key: K, value: V) -> Map[K, V]:
        """Return a map in which the key has this value."""
        return self._of(self._patched({key: value}))

    def delete(self, key: K) -> Map[K, V]:
        """Return a map without the key; itself if it has none."""
        return self._of(self._patched({key: ABSENT})) if key in self else self

    def update(self, items: Mapping[K, V] | Iterable[tuple[K, V]]) -> Map[K, V]:
        """Return a map in which each of the keys has the value given."""
        return self._of(self._patched(dict(items)))

    def get(self, key: K, default: V | None = None) -> V | None:
        """Return the key's value, or `default`."""
        found, value = self._find(key)
        return cast("V", value) if found else default

    def __getitem__(self, key: K) -> V:
        found, value = self._find(key)
        if not found:
            raise KeyError(key)
        return cast("V", value)

    def __iter__(self) -> Iterator[K]:
        return self._view.keys()

    def keys(self) -> Iterator[K]:
        """Iterate over the keys in order."""
        return self._view.keys()

    def values(self) -> Iterator[V]:
        """Iterate over the values in key order."""
        return self._view.objects()

    def items(self) -> Iterator[tuple[K, V]]:
        """Iterate over (key, value) in key order."""
        return self._items()

    def lower_bound(self, key: K) -> Iterator[V]:
        """Iterate over the values whose key is not less than `key`."""
        return self._view.from_key(key)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Map):
            return NotImplemented
        return len(self) == len(other) and all(
            left == right for left, right in zip(self.items(), other.items(), strict=True)
        )

    __hash__ = _Sorted.__hash__

    def __repr__(self) -> str:
        return f"Map({dict(self.items())!r})"


class Set(_Sorted, Generic[K]):
    """An immutable set in order. Members are comparable with each other.

    >>> Set("cab") | Set("d")
    Set(['a', 'b', 'c', 'd'])
    """

    __slots__ = ()

    def __init__(self, members: Iterable[K] = ()) -> None:
        super().__init__(_nodes_of((member, None) for member in members))

    @classmethod
    def _of(cls, nodes: list[Node]) -> Set[K]:
        made = cls.__new__(cls)
        _Sorted.__init__(made, nodes)
        return made

    def add(self, *members: K) -> Set[K]:
        """Return a set that has these members too; itself if it has them all."""
        new: dict[Any, Any] = {member: None for member in members if member not in self}
        return self._of(self._patched(new)) if new else self

    def discard(self, *members: K) -> Set[K]:
        """Return a set without these members; itself if it has none of them."""
        gone: dict[Any, Any] = {member: ABSENT for member in members if member in self}
        return self._of(self._patched(gone)) if gone else self

    def __or__(self, other: Iterable[K]) -> Set[K]:
        return self.add(*other)

    def __sub__(self, other: Iterable[K]) -> Set[K]:
        return self.discard(*other)

    def __and__(self, other: Set[K]) -> Set[K]:
        return Set(member for member in self if member in other)

    def __iter__(self) -> Iterator[K]:
        return self._view.keys()

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Set):
            return NotImplemented
        return len(self) == len(other) and all(
            left == right for left, right in zip(self, other, strict=True)
        )

    __hash__ = _Sorted.__hash__

    def __repr__(self) -> str:
        return f"Set({list(self)!r})"
