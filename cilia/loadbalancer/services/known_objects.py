# SPDX-License-Identifier: Apache-2.0
"""The Services and EndpointSlices that a source has sent: each event changes them, and is noted in
the batch that will be written.

A cache of the source: built by the first list, corrected by every further one. Of a Service its
name is kept; the object itself only where it has to be looked at again.
"""

from __future__ import annotations

from cilia.cluster.sweep import Sweep
from cilia.k8s.change_time import Changed
from cilia.k8s.objects import EndpointSlice, K8sObject, ObjectKey, Service, unexpected
from cilia.k8s.watch import Listed
from cilia.loadbalancer.annotations import depends_on_node
from cilia.loadbalancer.services.batch import Batch, ObjectChange
from cilia.loadbalancer.services.complaints import SERVICE_LABEL, Complaints
from cilia.loadbalancer.services.conversion import convert_service
from cilia.loadbalancer.services.endpoints import Backends, convert_slice, service_of
from cilia.loadbalancer.services.known_slices import KnownSlices
from cilia.loadbalancer.services.writer import Writer
from tables.addressing import ServiceName
from tables.sources import Source as Origin


class KnownObjects:
    """Converts what comes; what one object makes fail is a problem of that object, which keeps
    what it has."""

    def __init__(self, writer: Writer, origin: Origin, complaints: Complaints) -> None:
        self._writer = writer
        self._origin = origin
        self._complaints = complaints
        # Each name leads to itself: the one object that all who name the service share.
        self._services: dict[ServiceName, ServiceName] = {}
        # The only objects that are looked at again.
        self._for_some_nodes: dict[ServiceName, Service] = {}
        self._slices = KnownSlices()
        # Slices that say no service.
        self._bare: set[ObjectKey] = set()
        self._sweep = Sweep[ObjectKey]()

    def __len__(self) -> int:
        return len(self._services) + len(self._slices)

    def has_service(self, name: ServiceName) -> bool:
        return name in self._services

    def slices_of(self, name: ServiceName) -> tuple[ObjectKey, ...]:
        return self._slices.keys_of(name)

    def services_missing(self) -> set[ServiceName]:
        """Return those that slices name, and that the source does not have."""
        return self._slices.services() - self._services.keys()

    def backends_of(self, name: ServiceName) -> Backends:
        return self._slices.backends_of(name)

    # -- events

    def upsert(self, obj: K8sObject, changed: Changed | None, batch: Batch) -> None:
        key = obj.key
        self._sweep.seen(key[0], key)
        if isinstance(obj, Service):
            self._upsert_service(key, obj, batch)
        elif isinstance(obj, EndpointSlice):
            self._upsert_slice(key, obj, batch)
        self._note_change(key, changed, batch)

    def delete(self, key: ObjectKey, changed: Changed | None, batch: Batch) -> None:
        self._note_change(key, changed, batch, deleted=True)
        self._sweep.seen(key[0], key)
        self._delete(key, batch)

    def begin_list(self, kind: str) -> None:
        """A full list of the kind follows."""
        if kind == Service.KIND:
            self._sweep.begin(kind, [(kind, name.namespace, name.name) for name in self._services])
        else:
            self._sweep.begin(kind, self._slices.keys() | self._bare)

    def end_list(self, event: Listed, batch: Batch) -> int:
        """Delete what is held of the kind and was not in the list; return how many."""
        gone = self._sweep.end(event.kind, event.refused)
        for key in gone:
            self._delete(key, batch)
        return len(gone)

    def abandon_lists(self) -> None:
        """Lists under way will not be completed."""
        self._sweep.abandon()

    # -- what an event does not say

    def reconvert_node_dependent(self, batch: Batch) -> None:
        """Convert again what is meant for some nodes only."""
        for name, svc in self._for_some_nodes.items():
            self._convert(svc.key, svc, name, batch)

    # -- services

    def _upsert_service(self, key: ObjectKey, obj: Service, batch: Batch) -> None:
        name = ServiceName(f"{key[1]}/{key[2]}")
        name = self._services.setdefault(name, name)
        self._convert(key, obj, name, batch)
        if depends_on_node(obj.metadata.annotations) or self._has_health_service(obj):
            self._for_some_nodes[name] = obj
        elif self._for_some_nodes:
            self._for_some_nodes.pop(name, None)

    def _has_health_service(self, obj: Service) -> bool:
        """True if a Service for its health check port is made, whose backends are the node's."""
        wanted = self._writer.config.health_check_loadbalancer_ip
        return wanted and bool(obj.spec.health_check_node_port)

    def _convert(self, key: ObjectKey, obj: Service, name: ServiceName, batch: Batch) -> None:
        writer = self._writer
        try:
            converted = convert_service(obj, writer.config, writer.node, self._origin, name)
        except Exception as error:  # noqa: BLE001 - of this object alone
            self._complaints.note(key, [("", unexpected(error))], batch)
            return
        batch.touch(name).service = converted
        self._complaints.note(key, converted.warnings, batch)

    # -- slices

    def _upsert_slice(self, key: ObjectKey, obj: EndpointSlice, batch: Batch) -> None:
        service = service_of(obj)
        before = self._slices.get(key)
        if before is not None and before.service != service:
            self._drop_slice(key, batch)
        if service is None:
            self._bare.add(key)
            warning = (SERVICE_LABEL, "is missing, so the slice serves nothing")
            self._complaints.note(key, [warning], batch)
            return
        service = self._services.get(service, service)
        try:
            converted = convert_slice(obj, service, self._writer.config, self._origin)
        except Exception as error:  # noqa: BLE001 - of this object alone
            if self._slices.get(key) is None:
                self._bare.add(key)
            self._complaints.note(key, [("", unexpected(error))], batch)
            return
        self._bare.discard(key)
        self._complaints.note(key, converted.warnings, batch)
        self._slices.put(key, service, converted.backends)
        batch.touch(service).slices_changed = True

    def _drop_slice(self, key: ObjectKey, batch: Batch) -> None:
        service = self._slices.drop(key)
        if service is not None:
            batch.touch(service).slices_changed = True

    # -- both

    def _delete(self, key: ObjectKey, batch: Batch) -> None:
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
        self._complaints.note(key, [], batch)

    def _note_change(
        self, key: ObjectKey, changed: Changed | None, batch: Batch, *, deleted: bool = False
    ) -> None:
        """To be called while the object is known."""
        if changed is None:
            return
        if key[0] == Service.KIND:
            name = ServiceName(f"{key[1]}/{key[2]}")
            batch.changes.append(ObjectChange(key, name, changed, deleted))
        elif (known := self._slices.get(key)) is not None:
            batch.changes.append(ObjectChange(key, known.service, changed, deleted))
