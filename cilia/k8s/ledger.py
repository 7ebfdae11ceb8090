# SPDX-License-Identifier: Apache-2.0
"""What the readers of one resource were told: each object's version, and how far the stream is.

Resource versions grow with every write of a resource, and a watch delivers them in that order. So a
stream can be checked as it is read, and compared with a list without the objects themselves: a
version names one write. Versions are taken as numbers, as Kubernetes itself promises by now.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum

import msgspec

from cilia.k8s.objects import ObjectKey


class Verdict(Enum):
    NEW = "new"
    # Known already: nothing to do, nothing lost.
    DUPLICATE = "duplicate"
    # Newer than anything known, but it follows on a state that was never sent: something is lost.
    GAP = "gap"
    # Older than what the stream has sent: what it is worth cannot be told any more.
    DISORDER = "disorder"


class Differences(msgspec.Struct, frozen=True):
    """What a list has and the readers were not told."""

    added: tuple[ObjectKey, ...] = ()
    changed: tuple[ObjectKey, ...] = ()
    deleted: tuple[ObjectKey, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.added or self.changed or self.deleted)

    @property
    def count(self) -> int:
        return len(self.added) + len(self.changed) + len(self.deleted)


class Ledger:
    """See above. `revision` is 0 until a list is complete."""

    def __init__(self) -> None:
        self.versions: dict[ObjectKey, int] = {}
        self.revision = 0
        # Deletes of the stream while a proof is under way, see `differences`.
        self._deleted: dict[ObjectKey, int] | None = None

    def take(self, key: ObjectKey, revision: int, type_: str) -> Verdict:
        """Takes an event of the stream (ADDED, MODIFIED, DELETED), unless it is worth nothing."""
        known = self.versions.get(key)
        deleted = type_ == "DELETED"
        if revision <= self.revision:
            if known == revision or (deleted and known is None and revision == self.revision):
                return Verdict.DUPLICATE
            # Several objects of one write have one revision.
            if revision < self.revision or (known or 0) > revision:
                return Verdict.DISORDER
        self.revision = revision
        if deleted:
            self.versions.pop(key, None)
            if self._deleted is not None:
                self._deleted[key] = revision
        else:
            self.versions[key] = revision
        follows = (known is None) is (type_ == "ADDED")
        return Verdict.NEW if follows else Verdict.GAP

    def reach(self, revision: int) -> bool:
        """A bookmark: everything up to this revision was sent. False if more was sent before."""
        if revision < self.revision:
            return False
        self.revision = revision
        return True

    def forget(self) -> None:
        """There are no objects, and no history: a proof under way proves nothing any more."""
        self.versions = {}
        self.revision = 0
        self._deleted = None

    @property
    def proving(self) -> bool:
        """True from the beginning of a proof to its end, or until everything was forgotten."""
        return self._deleted is not None

    def begin_proof(self) -> None:
        self._deleted = {}

    def end_proof(self) -> None:
        self._deleted = None

    def differences(self, listed: Mapping[ObjectKey, int], revision: int) -> Differences:
        """What differs from a list that was read at `revision`, after `begin_proof`.

        The stream may be ahead of the list; that is no difference.
        """
        later = self._deleted or {}
        versions = self.versions
        added, changed = [], []
        for key, version in listed.items():
            known = versions.get(key)
            if known is None:
                if later.get(key, 0) < version:
                    added.append(key)
            elif known < version or version < known <= revision:
                # An older version in a newer list is of another history.
                changed.append(key)
        deleted = [
            key for key, known in versions.items() if key not in listed and known <= revision
        ]
        return Differences(tuple(added), tuple(changed), tuple(deleted))
