# SPDX-License-Identifier: Apache-2.0
"""The EndpointSlices that a source has sent: the service and backends of each, and the slices of a
service. A cache of the source, kept by `known_objects`."""

from __future__ import annotations

from cilia.k8s.objects import ObjectKey
from cilia.loadbalancer.services.endpoints import Backends, merge_slices
from cilia.loadbalancer.services.known_slice import KnownSlice
from tables.addressing import ServiceName


class KnownSlices:
    """Nearly every service has one slice, so its keys are a tuple and not a dictionary."""

    def __init__(self) -> None:
        self._slices: dict[ObjectKey, KnownSlice] = {}
        self._keys: dict[ServiceName, tuple[ObjectKey, ...]] = {}

    def __len__(self) -> int:
        return len(self._slices)

    def __contains__(self, service: object) -> bool:
        """Whether a service has any."""
        return service in self._keys

    def get(self, key: ObjectKey) -> KnownSlice | None:
        return self._slices.get(key)

    def keys(self) -> set[ObjectKey]:
        return set(self._slices)

    def services(self) -> set[ServiceName]:
        return set(self._keys)

    def keys_of(self, service: ServiceName) -> tuple[ObjectKey, ...]:
        """Return the slices of the service, sorted by key."""
        return self._keys.get(service, ())

    def backends_of(self, service: ServiceName) -> Backends:
        """Of all slices of the service together."""
        keys = self._keys.get(service)
        if keys is None:
            return ()
        if len(keys) == 1:
            return self._slices[keys[0]].backends
        return merge_slices([self._slices[key].backends for key in keys])

    def put(self, key: ObjectKey, service: ServiceName, backends: Backends) -> None:
        """A slice that was of another service has to be dropped first."""
        if key not in self._slices:
            keys = self._keys.get(service)
            self._keys[service] = (key,) if keys is None else tuple(sorted((*keys, key)))
        self._slices[key] = KnownSlice(service, backends)

    def drop(self, key: ObjectKey) -> ServiceName | None:
        """Forget a slice; the service that had it."""
        known = self._slices.pop(key, None)
        if known is None:
            return None
        keys = self._keys.pop(known.service)
        if len(keys) > 1:
            self._keys[known.service] = tuple([other for other in keys if other != key])
        return known.service
