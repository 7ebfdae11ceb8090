# SPDX-License-Identifier: Apache-2.0
"""Finds what a reader holds and a new list has not: that is gone.

    Listing -> begin(kind, what is held) -> seen(key) for each object -> Listed -> end(kind)

A list that is not complete takes nothing away: without a `begin`, `end` finds nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Set
from typing import Generic, TypeVar

from cilia.k8s.objects import ObjectKey

# An object, or the origin of problems.
K = TypeVar("K", ObjectKey, str)


class Sweep(Generic[K]):
    """The keys of each kind that were held when a list of it began and have not been sent since.

    Where nothing was held, as in a first list, an object costs one look into an empty set.
    """

    def __init__(self) -> None:
        self._unsent: dict[str, set[K]] = {}

    def begin(self, kind: str, held: Iterable[K]) -> None:
        """A list of this kind begins; one that was under way counts no more."""
        self._unsent[kind] = set(held)

    def seen(self, kind: str, key: K) -> None:
        """The object is there, or its deletion was told: it is not for the sweep."""
        unsent = self._unsent.get(kind)
        if unsent:
            unsent.discard(key)

    def end(self, kind: str, kept: Set[K] = frozenset()) -> list[K]:
        """Return what the list had not, in order, but for `kept`: what is there and refused."""
        return sorted(self._unsent.pop(kind, set()) - kept)

    def abandon(self) -> None:
        """Lists under way will not be completed."""
        self._unsent.clear()
