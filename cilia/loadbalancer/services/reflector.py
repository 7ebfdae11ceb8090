# SPDX-License-Identifier: Apache-2.0
"""Services and EndpointSlices into the load-balancing tables.

Events are gathered by service, in the order in which each service first appears, converted before
the transaction opens, and written as one change a service. What is remembered between batches is a
cache of the source: it is built by the first list and corrected by every further one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final

import anyio
import msgspec
import structlog

from cilia.cluster.batch import WAIT_S, batches
from cilia.k8s.change_time import Changed
from cilia.k8s.objects import EndpointSlice, K8sObject, ObjectKey, Service, unexpected
from cilia.k8s.watch import Delete, Event, Listed, Listing, Source, Upsert
from cilia.loadbalancer.annotations import depends_on_node
from cilia.loadbalancer.health_checks import health_service
from cilia.loadbalancer.services.conversion import ConvertedService, Warnings, convert_service
from cilia.loadbalancer.services.endpoints import Backends, convert_slice, service_of
from cilia.loadbalancer.services.known_slices import KnownSlices
from cilia.loadbalancer.services.writer import KEEP, Keep, ServiceChange, Writer
from statedb import WriteTxn
from tables.addressing import ServiceName
from tables.problems import Problem, replace_problems
from tables.sources import Source as Origin

log = structlog.get_logger("services")

KINDS: Final = (Service, EndpointSlice)
# Services written in one transaction: more would keep others from the tables for too long.
SERVICES_A_TXN: Final = 500


class Report(msgspec.Struct, frozen=True):
    """What one batch did, for health and metrics."""

    upserted: int
    deleted: int
    total: int
    seconds: float

    def __str__(self) -> str:
        return f"{self.upserted} upserted, {self.deleted} deleted, {self.total} total objects"


class ObjectChange(msgspec.Struct, frozen=True):
    """A change of an object whose time the source knows, as it was taken into the tables."""

    key: ObjectKey
    service: ServiceName
    changed: Changed
    deleted: bool = False


class _Touched:
    """What a batch says of one service."""

    __slots__ = ("service", "slices_changed")

    def __init__(self) -> None:
        self.service: ConvertedService | Keep | None = KEEP
        self.slices_changed = False


class _Batch:
    """What one transaction will say: of services, in the order in which they appear, and problems
    by their origin."""

    __slots__ = ("changes", "problems", "touched")

    def __init__(self) -> None:
        self.changes: list[ObjectChange] = []
        self.touched: dict[ServiceName, _Touched] = {}
        self.problems: dict[str, list[Problem]] = {}

    def touch(self, name: ServiceName) -> _Touched:
        what = self.touched.get(name)
        if what is None:
            what = self.touched[name] = _Touched()
        return what


class ServiceReflector:
    """Follows one source. ``run`` ends only when it is cancelled."""

    def __init__(
        self,
        source: Source,
        writer: Writer,
        *,
        origin: Origin = Origin.K8S,
        wait_s: float = WAIT_S,
        report: Callable[[Report], None] = lambda report: None,
        committed: Callable[[Sequence[ObjectChange], int], None] = lambda changes, revision: None,
    ) -> None:
        """``committed`` is told changes with a time once they are in the tables, and the revision
        that the frontends had before."""
        self._source = source
        self._writer = writer
        self._committed = committed
        self._origin = origin
        self._wait_s = wait_s
        self._report = report
        self._complete = writer.register_initializer(f"{origin}-services")
        self._completed = False
        self._unlisted = {kind.KIND for kind in KINDS}
        # Caches of the source, see above.
        # Each name leads to itself: the one object that all who name the service share.
        self._services: dict[ServiceName, ServiceName] = {}
        # The only objects that are looked at again.
        self._for_some_nodes: dict[ServiceName, Service] = {}
        self._slices = KnownSlices()
        # Slices that say no service.
        self._bare: set[ObjectKey] = set()
        # Objects sent since the ``Listing`` of their kind, while a list is under way; of a kind of
        # which nothing was held before, all that is held came with the list, and none are noted.
        self._listing: dict[str, set[ObjectKey]] = {}
        # Services of batches that could not be written: what is in the tables may be older.
        self._unwritten: set[ServiceName] = set()
        # Problem rows of this reflector, so that an object without any costs no look-up.
        self._complaints: set[str] = set()

    async def run(self) -> None:
        self.begin()
        async for events in batches(self._source.watch(*KINDS), self._wait_s):
            for part in _parts(events, SERVICES_A_TXN):
                self.apply(part)
                # Others get their turn between two transactions of a long list.
                await anyio.sleep(0)

    def begin(self) -> None:
        """A full list follows, also after a failure: nothing counts as listed before its end."""
        self._listing.clear()
        if not self._completed:
            self._unlisted = {kind.KIND for kind in KINDS}

    def apply(self, events: Iterable[Event]) -> None:
        """Writes one batch, in one transaction.

        What one object makes fail is a problem of that object, which keeps what it has.
        """
        started = time.perf_counter()
        batch = _Batch()
        upserted = deleted = 0
        for event in events:
            match event:
                case Upsert():
                    upserted += 1
                    key = event.obj.key
                    self._upsert(key, event.obj, batch)
                    self._note_change(key, event.changed, batch)
                case Delete():
                    deleted += 1
                    self._note_change(event.key, event.changed, batch, deleted=True)
                    self._delete(event.key, batch)
                case Listing():
                    if self._held(event.kind):
                        self._listing[event.kind] = set()
                case Listed():
                    deleted += self._forget_unlisted(event, batch)
                    self._unlisted.discard(event.kind)
        self._write(batch)
        total = len(self._services) + len(self._slices)
        self._report(Report(upserted, deleted, total, time.perf_counter() - started))

    def reconvert_node_dependent(self) -> None:
        """After a change of the node's labels: looks again at services meant for some nodes."""
        batch = _Batch()
        for name, svc in self._for_some_nodes.items():
            self._convert(svc.key, svc, name, batch)
        self._write(batch)

    # -- one event

    def _note_change(
        self, key: ObjectKey, changed: Changed | None, batch: _Batch, *, deleted: bool = False
    ) -> None:
        """To be called while the object is known."""
        if changed is None:
            return
        if key[0] == Service.KIND:
            batch.changes.append(
                ObjectChange(key, ServiceName(f"{key[1]}/{key[2]}"), changed, deleted)
            )
        elif (known := self._slices.get(key)) is not None:
            batch.changes.append(ObjectChange(key, known.service, changed, deleted))

    def _upsert(self, key: ObjectKey, obj: K8sObject, batch: _Batch) -> None:
        if (sent := self._listing.get(key[0])) is not None:
            sent.add(key)
        if isinstance(obj, Service):
            self._upsert_service(key, obj, batch)
        elif isinstance(obj, EndpointSlice):
            self._upsert_slice(key, obj, batch)

    def _upsert_service(
        self,
        key: ObjectKey,
        obj: Service,
        batch: _Batch,
    ) -> None:
        name = ServiceName(f"{key[1]}/{key[2]}")
        name = self._services.setdefault(name, name)
        self._convert(key, obj, name, batch)
        if depends_on_node(obj.metadata.annotations) or self._has_health_service(obj):
            self._for_some_nodes[name] = obj
        elif self._for_some_nodes:
            self._for_some_nodes.pop(name, None)

    def _has_health_service(self, obj: Service) -> bool:
        """Its backends are the node's addresses."""
        wanted = self._writer.config.health_check_loadbalancer_ip
        return wanted and bool(obj.spec.health_check_node_port)

    def _convert(
        self,
        key: ObjectKey,
        obj: Service,
        name: ServiceName,
        batch: _Batch,
    ) -> None:
        writer = self._writer
        try:
            converted = convert_service(obj, writer.config, writer.node, self._origin, name)
        except Exception as error:  # noqa: BLE001 - of this object alone
            self._complain(key, [("", unexpected(error))], batch)
            return
        batch.touch(name).service = converted
        self._complain(key, converted.warnings, batch)

    def _upsert_slice(
        self,
        key: ObjectKey,
        obj: EndpointSlice,
        batch: _Batch,
    ) -> None:
        service = service_of(obj)
        before = self._slices.get(key)
        if before is not None and before.service != service:
            self._drop_slice(key, batch)
        if service is None:
            self._bare.add(key)
            path = f"metadata.labels[{EndpointSlice.SERVICE_LABEL}]"
            self._complain(key, [(path, "is missing, so the slice serves nothing")], batch)
            return
        service = self._services.get(service, service)
        try:
            converted = convert_slice(obj, service, self._writer.config, self._origin)
        except Exception as error:  # noqa: BLE001 - of this object alone
            if self._slices.get(key) is None:
                self._bare.add(key)
            self._complain(key, [("", unexpected(error))], batch)
            return
        self._bare.discard(key)
        self._complain(key, converted.warnings, batch)
        self._slices.put(key, service, converted.backends)
        batch.touch(service).slices_changed = True

    def _delete(
        self,
        key: ObjectKey,
        batch: _Batch,
    ) -> None:
        kind, namespace, name = key
        if kind == Service.KIND:
            service = ServiceName(f"{namespace}/{name}")
            if service in self._services:
                del self._services[service]
                self._for_some_nodes.pop(service, None)
                batch.touch(service).service = None
        else:
            self._bare.discard(key)
            self._drop_slice(key, batch)
        self._complain(key, [], batch)

    def _drop_slice(self, key: ObjectKey, batch: _Batch) -> None:
        service = self._slices.drop(key)
        if service is not None:
            batch.touch(service).slices_changed = True

    def _forget_unlisted(
        self,
        event: Listed,
        batch: _Batch,
    ) -> int:
        """Deletes what is held of the kind and was not in the list; returns how many."""
        kind = event.kind
        sent = self._listing.pop(kind, None)
        if sent is None:
            return 0
        if kind == Service.KIND:
            held = {(kind, name.namespace, name.name) for name in self._services}
        else:
            held = self._slices.keys() | self._bare
        gone = sorted(held - sent - event.refused)
        for key in gone:
            self._delete(key, batch)
        return len(gone)

    def _held(self, kind: str) -> bool:
        """Whether anything of a kind is held."""
        if kind == Service.KIND:
            return bool(self._services)
        return bool(len(self._slices) or self._bare)

    # -- one batch

    def _change(self, name: ServiceName, what: _Touched) -> ServiceChange:
        backends: Backends | Keep = KEEP
        if what.slices_changed:
            backends = self._slices.backends_of(name)
        converted = what.service
        if converted is KEEP:
            return ServiceChange(name, KEEP, (), backends, self._origin)
        if converted is None or converted.service is None:
            return ServiceChange(name, None, (), backends, self._origin)
        return ServiceChange(name, converted.service, converted.frontends, backends, self._origin)

    def _write(self, batch: _Batch) -> None:
        complete = not self._unlisted and not self._completed
        if not self._unlisted:
            # A slice without its service is an error only when all services have been seen.
            for name in batch.touched:
                self._check_orphans(name, batch)
            if complete:
                for name in sorted(self._slices.services() - self._services.keys()):
                    self._check_orphans(name, batch)
        self._touch_unwritten(batch)
        self._unwritten.update(batch.touched)
        changes = [self._change(name, what) for name, what in batch.touched.items()]
        if self._writer.config.health_check_loadbalancer_ip:
            changes += self._health_changes(batch)
        refused: dict[ServiceName, Exception] = {}
        try:
            before = self._commit(changes, batch, complete=complete)
        except Exception:
            refused = self._refused(changes)
            if len(refused) == len(changes):
                raise  # it is not a service that is wrong
            log.exception("services cannot be written", services=sorted(refused))
            changes = [change for change in changes if change.name not in refused]
            for name, error in refused.items():
                batch.problems[self._problem_origin(f"Service:{name}")] = [
                    self._unwritable(name, error)
                ]
            before = self._commit(changes, batch, complete=complete)
        self._completed = self._completed or complete
        self._unwritten = set(refused)
        if batch.changes:
            self._committed(batch.changes, before)

    def _commit(self, changes: Iterable[ServiceChange], batch: _Batch, *, complete: bool) -> int:
        """Writes all in one transaction; the revision that the frontends had before."""
        with self._writer.write_txn() as wtxn:
            before = self._writer.tables.frontends.revision(wtxn)
            for change in changes:
                self._writer.apply(wtxn, change)
            for origin, rows in batch.problems.items():
                self._replace_problems(wtxn, origin, rows)
            if complete:
                self._complete(wtxn)
        return before

    def _refused(self, changes: Iterable[ServiceChange]) -> dict[ServiceName, Exception]:
        """Writes each change on its own; those that cannot be written, and why."""
        refused: dict[ServiceName, Exception] = {}
        for change in changes:
            try:
                with self._writer.write_txn() as wtxn:
                    self._writer.apply(wtxn, change)
            except Exception as error:  # noqa: BLE001 - of this service alone
                refused[change.name] = error
        return refused

    def _touch_unwritten(self, batch: _Batch) -> None:
        """Has a batch say again what an earlier one could not write."""
        for name in self._unwritten - batch.touched.keys():
            what = batch.touch(name)
            what.slices_changed = True
            if name not in self._services:
                what.service = None

    def _health_changes(self, batch: _Batch) -> Iterator[ServiceChange]:
        for name, what in batch.touched.items():
            if what.service is not KEEP:
                converted = what.service or ConvertedService(name, None)
                yield health_service(converted, self._writer.node)

    # -- problems

    def _complain(self, key: ObjectKey, warnings: Warnings, batch: _Batch) -> None:
        """Notes what is wrong with an object now, if it or its last reading has anything."""
        if not (warnings or batch.problems or self._complaints):
            return
        kind, namespace, name = key
        origin = self._problem_origin(f"{kind}:{namespace}/{name}")
        if warnings or origin in self._complaints or origin in batch.problems:
            batch.problems[origin] = [
                Problem(origin, message, "", 0, kind, namespace, name, path)
                for path, message in warnings
            ]

    def _problem_origin(self, origin: str) -> str:
        """Two sources may each have an object of one name."""
        return origin if self._origin is Origin.K8S else f"{self._origin}:{origin}"

    def _unwritable(self, name: ServiceName, error: Exception) -> Problem:
        origin = self._problem_origin(f"Service:{name}")
        message = unexpected(error)
        return Problem(origin, message, "", 0, Service.KIND, name.namespace, name.name)

    def _check_orphans(self, name: ServiceName, batch: _Batch) -> None:
        has_service = name in self._services or name not in self._slices
        if has_service and not self._complaints:
            return
        origin = self._problem_origin(f"EndpointSlice:for {name}")
        if has_service:
            if origin in self._complaints:
                batch.problems[origin] = []
            return
        path = f"metadata.labels[{EndpointSlice.SERVICE_LABEL}]"
        batch.problems[origin] = [
            Problem(origin, f"there is no Service {name}", "", 0, *key, path)
            for key in self._slices.keys_of(name)
        ]

    def _replace_problems(self, wtxn: WriteTxn, origin: str, rows: list[Problem]) -> None:
        if rows:
            self._complaints.add(origin)
        else:
            self._complaints.discard(origin)
        replace_problems(self._writer.tables.problems, wtxn, origin, rows, time.time())


def _parts(events: Sequence[Event], size: int) -> Iterator[Sequence[Event]]:
    for i in range(0, len(events), size):
        yield events[i : i + size]
