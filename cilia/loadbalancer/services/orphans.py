# SPDX-License-Identifier: Apache-2.0
"""EndpointSlices whose Service no source has: slices may be of one source and their Service of
another.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from cilia.k8s.objects import ObjectKey
from cilia.loadbalancer.services.batch import Batch
from cilia.loadbalancer.services.complaints import Complaints
from tables.addressing import ServiceName

__all__ = ["Orphans"]


class Known(Protocol):
    """What a source has."""

    def has_service(self, name: ServiceName) -> bool: ...

    def slices_of(self, name: ServiceName) -> tuple[ObjectKey, ...]: ...

    def services_missing(self) -> Iterable[ServiceName]:
        """Return those that slices name, and that the source itself does not have."""
        ...


class Orphans:
    """One for all sources of an agent. Nothing is told before each source has listed all, for the
    Service may be in what is missing.
    """

    def __init__(self) -> None:
        #: Of all sources' complaints: one writes what is noted for another.
        self.with_rows: set[str] = set()
        self._sources: list[tuple[Known, Complaints]] = []
        self._listing: set[int] = set()

    def add(self, known: Known, complaints: Complaints) -> int:
        """Another source; return its number, for `listed`."""
        self._sources.append((known, complaints))
        self._listing.add(len(self._sources))
        return len(self._sources)

    def listed(self, number: int, batch: Batch) -> None:
        """The source has listed all; if it is the last one, note what is true of all."""
        self._listing.discard(number)
        for known, _ in self._sources:
            for name in sorted(known.services_missing()):
                self.note(name, batch)

    def note(self, name: ServiceName, batch: Batch) -> None:
        """Note the slices that name a Service, if it is not there; and none, if it is."""
        if self._listing:
            return
        is_there = any(known.has_service(name) for known, _ in self._sources)
        for known, complaints in self._sources:
            complaints.note_orphans(name, () if is_there else known.slices_of(name), batch)
