# SPDX-License-Identifier: Apache-2.0
"""The protocol between a source of Kubernetes objects and its readers: list, then watch.

For each kind a reader gets ``Listing``, the objects that exist as ``Upsert``, ``Listed``, and from
then on changes. When the source has to list again (a watch expired, a resync) that is repeated:
what the reader holds of the kind and was not sent between ``Listing`` and ``Listed`` is gone. A
source that cannot send all for now says ``Unread``: nothing is gone, and ``Listed`` is to come. An
object that is refused is an ``Invalid``; what was in force before stays in force.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Protocol, runtime_checkable

import msgspec

from cilia.k8s.change_time import Changed
from cilia.k8s.objects import K8sObject, ObjectKey
from cilia.k8s.watch_state import WatchState


class Upsert(msgspec.Struct, frozen=True, gc=False):
    obj: K8sObject
    # When it was made, if it is a change of what was known, and the source can tell.
    changed: Changed | None = None


class Delete(msgspec.Struct, frozen=True, gc=False):
    key: ObjectKey
    changed: Changed | None = None


class Listing(msgspec.Struct, frozen=True, gc=False):
    """All objects of this kind follow."""

    kind: str


class Listed(msgspec.Struct, frozen=True, gc=False):
    """All objects of this kind have been sent since its ``Listing``, but those that are there and
    ``refused``: what a reader holds of these stays."""

    kind: str
    refused: frozenset[ObjectKey] = frozenset()


class Unread(msgspec.Struct, frozen=True, gc=False):
    """All objects of this kind that can be read now have been sent; there may be others."""

    kind: str


class Problem(msgspec.Struct, frozen=True, gc=False):
    """One thing that is wrong, and where it stands. Documents of a file count from 1."""

    message: str
    file: str = ""
    document: int = 0
    kind: str = ""
    namespace: str = ""
    name: str = ""
    field: str = ""


class Invalid(msgspec.Struct, frozen=True, gc=False):
    """The problems of one origin (a file), in place of all that it had; empty: all is well."""

    origin: str
    problems: tuple[Problem, ...] = ()


Event = Upsert | Delete | Listing | Listed | Unread | Invalid

# The kind of what is no object: a reader of problems has them listed by this name.
PROBLEMS = "Problem"


class Source(Protocol):
    """Where objects come from. Each call of ``watch`` is a reader of its own, from the start."""

    def watch(self, *kinds: type[K8sObject]) -> AsyncIterator[list[Event]]:
        """Batches of events of these kinds, in order; without kinds, the problems.

        A batch is everything that came since the last one was taken: whoever is slow gets more.
        """
        ...


@runtime_checkable
class FollowedSource(Protocol):
    """A source that follows something which can fail, and tells how that goes."""

    def observe(self, observer: Callable[[WatchState], None]) -> None:
        """Have each change of a watch's state told from now on."""
