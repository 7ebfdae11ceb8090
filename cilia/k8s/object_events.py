# SPDX-License-Identifier: Apache-2.0
"""From the bytes of one resource's objects to events for its readers."""

from __future__ import annotations

import msgspec

from cilia.k8s import change_time
from cilia.k8s.change_time import Changed, TimeSource
from cilia.k8s.objects import InvalidObject, K8sObject, ObjectKey, decode_json
from cilia.k8s.watch import Delete, Event, Invalid, Problem, Upsert


class ObjectEvents:
    """Remembers what one event alone does not tell: which objects are refused, and which trigger
    times of EndpointSlices have counted already."""

    def __init__(self, kind: type[K8sObject]) -> None:
        self._kind = kind
        self._triggers: dict[ObjectKey, str] = {}
        self._refused: set[ObjectKey] = set()

    @property
    def refused(self) -> frozenset[ObjectKey]:
        """The objects that are there and cannot be used."""
        return frozenset(self._refused)

    def of_object(self, key: ObjectKey, raw: msgspec.Raw, now: float) -> list[Event]:
        """An object that is there; `now` is when it came, 0 if it is no change."""
        try:
            obj = decode_json(self._kind, key, raw)
            upsert = Upsert(obj, self._changed(key, obj, raw, now))
        except InvalidObject as error:
            self._refused.add(key)
            return [Invalid(_origin(key), _problems(error))]
        if key in self._refused:
            self._refused.discard(key)
            return [upsert, Invalid(_origin(key))]
        return [upsert]

    def of_deletion(self, key: ObjectKey, now: float) -> list[Event]:
        """An object that is gone; `now` as above."""
        self._triggers.pop(key, None)
        delete = Delete(key, Changed(now, TimeSource.ARRIVAL, now) if now else None)
        if key in self._refused:
            self._refused.discard(key)
            return [delete, Invalid(_origin(key))]
        return [delete]

    def _changed(
        self, key: ObjectKey, obj: K8sObject, raw: msgspec.Raw, now: float
    ) -> Changed | None:
        trigger = (obj.metadata.annotations or {}).get(change_time.TRIGGER, "")
        last = self._triggers.get(key, "") if trigger else ""
        if trigger != last:
            self._triggers[key] = trigger
        return change_time.changed(raw, trigger, last, now) if now else None


def _origin(key: ObjectKey) -> str:
    kind, namespace, name = key
    return f"api:{kind}:{namespace}/{name}"


def _problems(error: InvalidObject) -> tuple[Problem, ...]:
    return tuple(
        Problem(message, "", 0, error.kind, error.namespace, error.name, field)
        for field, message in error.errors
    )
