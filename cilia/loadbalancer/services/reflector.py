# SPDX-License-Identifier: Apache-2.0
"""Services and EndpointSlices into the load-balancing tables.

    events -> KnownObjects (converts, remembers) -> Batch -> BatchWriter -> one transaction

Events are gathered by service, in the order in which each service first appears, converted before
the transaction opens, and written as one change a service.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final

import anyio
import msgspec

from cilia.cluster.batch import WAIT_S, batches
from cilia.k8s.objects import EndpointSlice, Service
from cilia.k8s.watch import Delete, Event, Listed, Listing, Source, Unread, Upsert
from cilia.loadbalancer.services.batch import Batch
from cilia.loadbalancer.services.batch_writer import BatchWriter, Committed
from cilia.loadbalancer.services.complaints import Complaints
from cilia.loadbalancer.services.known_objects import KnownObjects
from cilia.loadbalancer.services.orphans import Orphans
from cilia.loadbalancer.services.writer import Writer
from tables.sources import Source as Origin

KINDS: Final = (Service, EndpointSlice)
# Services written in one transaction: more would keep others from the tables for too long.
SERVICES_A_TXN: Final = 500


def initializer_of(origin: Origin) -> str:
    """Return the name of the initializer of what has this origin."""
    return f"{origin}-services"


class Report(msgspec.Struct, frozen=True):
    """What one batch did, for health and metrics."""

    upserted: int
    deleted: int
    total: int
    seconds: float

    def __str__(self) -> str:
        return f"{self.upserted} upserted, {self.deleted} deleted, {self.total} total objects"


class ServiceReflector:
    """Follows one source. ``run`` ends only when it is cancelled.

    Its own state is how complete the tables are: they are once each kind was listed; its
    initializer is stalled while the source cannot send all of what is missing.
    """

    def __init__(
        self,
        source: Source,
        writer: Writer,
        *,
        origin: Origin = Origin.K8S,
        orphans: Orphans | None = None,
        wait_s: float = WAIT_S,
        report: Callable[[Report], None] = lambda report: None,
        committed: Committed = lambda changes, revision: None,
    ) -> None:
        """``orphans`` is shared by all sources of an agent. ``committed`` is told changes with a
        time once they are in the tables, and the revision that the frontends had before."""
        self._source = source
        self._wait_s = wait_s
        self._report = report
        self._orphans = orphans or Orphans()
        complaints = Complaints(writer.tables.problems, origin, self._orphans.with_rows)
        self._known = KnownObjects(writer, origin, complaints)
        self._number = self._orphans.add(self._known, complaints)
        self._batch_writer = BatchWriter(writer, origin, self._known, complaints, committed)
        self._complete = writer.register_initializer(initializer_of(origin))
        self._completed = False
        self._unlisted = {kind.KIND for kind in KINDS}
        # Kinds of which the source has sent what it can.
        self._unread: set[str] = set()

    async def run(self) -> None:
        self.begin()
        async for events in batches(self._source.watch(*KINDS), self._wait_s):
            for part in _parts(events, SERVICES_A_TXN):
                self.apply(part)
                # Others get their turn between two transactions of a long list.
                await anyio.sleep(0)

    def begin(self) -> None:
        """A full list follows, also after a failure: nothing counts as listed before its end."""
        self._known.abandon_lists()
        if not self._completed:
            self._unlisted = {kind.KIND for kind in KINDS}

    def apply(self, events: Iterable[Event]) -> None:
        """Write one batch, in one transaction."""
        started = time.perf_counter()
        batch = Batch()
        upserted = deleted = 0
        for event in events:
            match event:
                case Upsert():
                    upserted += 1
                    self._known.upsert(event.obj, event.changed, batch)
                case Delete():
                    deleted += 1
                    self._known.delete(event.key, event.changed, batch)
                case Listing():
                    self._known.begin_list(event.kind)
                case Listed():
                    deleted += self._known.end_list(event, batch)
                    self._unlisted.discard(event.kind)
                case Unread():
                    self._unread.add(event.kind)
        self._write(batch)
        seconds = time.perf_counter() - started
        self._report(Report(upserted, deleted, len(self._known), seconds))

    def reconvert_node_dependent(self) -> None:
        """After a change of the node's labels: looks again at services meant for some nodes."""
        batch = Batch()
        self._known.reconvert_node_dependent(batch)
        self._write(batch)

    def _write(self, batch: Batch) -> None:
        if self._unlisted:
            stalled = self._unlisted <= self._unread
            self._batch_writer.write(batch, self._complete.stall if stalled else None)
            return
        for name in batch.touched:
            self._orphans.note(name, batch)
        if self._completed:
            self._batch_writer.write(batch)
            return
        self._orphans.listed(self._number, batch)
        self._batch_writer.write(batch, self._complete)
        self._completed = True


def _parts(events: Sequence[Event], size: int) -> Iterator[Sequence[Event]]:
    for i in range(0, len(events), size):
        yield events[i : i + size]
