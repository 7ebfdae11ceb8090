# SPDX-License-Identifier: Apache-2.0
"""Writes a batch as one change a service, in one transaction.

A service that the tables refuse is a problem of that service: the others are written without it.
What a batch could not write is said again by the next one, since the tables may be older than what
is known of the source.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import structlog

from cilia.loadbalancer.health_checks import health_service
from cilia.loadbalancer.services.batch import Batch, ObjectChange, Touched
from cilia.loadbalancer.services.complaints import Complaints
from cilia.loadbalancer.services.conversion import ConvertedService
from cilia.loadbalancer.services.endpoints import Backends
from cilia.loadbalancer.services.known_objects import KnownObjects
from cilia.loadbalancer.services.writer import KEEP, Keep, ServiceChange, Writer
from statedb import WriteTxn
from tables.addressing import ServiceName
from tables.sources import Source as Origin

log = structlog.get_logger("services")

# Told changes with a time once they are in the tables, and the revision that the frontends had.
Committed = Callable[[Sequence[ObjectChange], int], None]


class BatchWriter:
    """Writes what is known of one source."""

    def __init__(
        self,
        writer: Writer,
        origin: Origin,
        known: KnownObjects,
        complaints: Complaints,
        committed: Committed,
    ) -> None:
        self._writer = writer
        self._origin = origin
        self._known = known
        self._complaints = complaints
        self._committed = committed
        # Services of batches that could not be written.
        self._unwritten: set[ServiceName] = set()

    def write(self, batch: Batch, complete: Callable[[WriteTxn], None] | None = None) -> None:
        """Write all; `complete` is called in the same transaction.

        Raises what made it fail, if it is not one of several services.
        """
        self._touch_unwritten(batch)
        self._unwritten.update(batch.touched)
        changes = [self._change(name, what) for name, what in batch.touched.items()]
        if self._writer.config.health_check_loadbalancer_ip:
            changes += self._health_changes(batch)
        refused: dict[ServiceName, Exception] = {}
        try:
            before = self._commit(changes, batch, complete)
        except Exception:
            refused = self._refused(changes)
            if len(refused) == len(changes):
                raise  # it is not a service that is wrong
            log.exception("services cannot be written", services=sorted(refused))
            for name, error in refused.items():
                self._complaints.note_unwritable(name, error, batch)
            accepted = [change for change in changes if change.name not in refused]
            before = self._commit(accepted, batch, complete)
        self._unwritten = set(refused)
        if batch.changes:
            self._committed(batch.changes, before)

    def _touch_unwritten(self, batch: Batch) -> None:
        """Have a batch say again what an earlier one could not write."""
        for name in self._unwritten - batch.touched.keys():
            what = batch.touch(name)
            what.slices_changed = True
            if not self._known.has_service(name):
                what.service = None

    def _change(self, name: ServiceName, what: Touched) -> ServiceChange:
        backends: Backends | Keep = KEEP
        if what.slices_changed:
            backends = self._known.backends_of(name)
        converted = what.service
        if converted is KEEP:
            return ServiceChange(name, KEEP, (), backends, self._origin)
        if converted is None or converted.service is None:
            return ServiceChange(name, None, (), backends, self._origin)
        return ServiceChange(name, converted.service, converted.frontends, backends, self._origin)

    def _health_changes(self, batch: Batch) -> Iterator[ServiceChange]:
        for name, what in batch.touched.items():
            if what.service is not KEEP:
                converted = what.service or ConvertedService(name, None)
                yield health_service(converted, self._writer.node)

    def _commit(
        self,
        changes: Iterable[ServiceChange],
        batch: Batch,
        complete: Callable[[WriteTxn], None] | None,
    ) -> int:
        """Write all in one transaction; return the revision that the frontends had before."""
        with self._writer.write_txn() as wtxn:
            before = self._writer.tables.frontends.revision(wtxn)
            for change in changes:
                self._writer.apply(wtxn, change)
            self._complaints.write(wtxn, batch)
            if complete is not None:
                complete(wtxn)
        return before

    def _refused(self, changes: Iterable[ServiceChange]) -> dict[ServiceName, Exception]:
        """Write each change on its own; return those that cannot be written, and why."""
        refused: dict[ServiceName, Exception] = {}
        for change in changes:
            try:
                with self._writer.write_txn() as wtxn:
                    self._writer.apply(wtxn, change)
            except Exception as error:  # noqa: BLE001 - of this service alone
                refused[change.name] = error
        return refused
