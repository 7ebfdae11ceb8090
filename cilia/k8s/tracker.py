# SPDX-License-Identifier: Apache-2.0
"""An API server in memory, for scripts: objects as they were written, with resource versions.

It is a source like any other: its readers list and watch. Objects are kept in the plain form too,
so that they are shown as their author wrote them. Thread-safe.
"""

from __future__ import annotations

import copy
import threading
import uuid
from collections.abc import AsyncIterator, Collection, Iterable
from typing import Any, Final

import msgspec
import yaml

from cilia.k8s.documents import read_yaml
from cilia.k8s.objects import KINDS, InvalidObject, K8sObject, ObjectKey, decode
from cilia.k8s.store import ObjectStore
from cilia.k8s.watch import Delete, Event, Upsert

# Fields that differ from run to run and are left out of what is shown, by the names of the option.
REDACTED: Final = {"resource-version": "resourceVersion", "uid": "uid"}
DOMAIN: Final = "*"


class TrackerError(Exception):
    """A request that an API server would refuse."""


class NotFound(TrackerError):
    """There is no such object."""


class Conflict(TrackerError):
    """The object has changed since it was read."""


class _Tracked(msgspec.Struct):
    form: dict[str, Any]
    obj: K8sObject
    revision: int


def resource_name(kind: type[K8sObject]) -> str:
    """``v1.services``, ``discovery.k8s.io.v1.endpointslices``."""
    return f"{kind.API_VERSION.replace('/', '.')}.{kind.RESOURCE}"


class Tracker:
    """The objects of one cluster."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._objects: dict[ObjectKey, _Tracked] = {}
        self._seen: dict[str, None] = {}
        self._revision = 0
        self._store = ObjectStore()
        self._store.set_complete()

    def watch(self, *kinds: type[K8sObject]) -> AsyncIterator[list[Event]]:
        return self._store.watch(*kinds)

    def add(self, data: bytes) -> None:
        """Puts an object, whether or not it is there. Raises TrackerError for what is no object."""
        with self._lock:
            self._put(*_decoded(data))

    def update(self, data: bytes, *, strict: bool = False) -> None:
        """Replaces an object that exists.

        Raises:
            NotFound: it does not.
            Conflict: with ``strict``, it does with another resourceVersion.
        """
        form, obj = _decoded(data)
        with self._lock:
            known = self._get(obj.key)
            if strict and obj.metadata.resource_version != str(known.revision):
                raise Conflict(
                    f"{_shown(obj.key)} has resourceVersion {known.revision}, "
                    f"not {obj.metadata.resource_version!r}"
                )
            self._put(form, obj)

    def delete(self, data: bytes) -> None:
        """Removes the object of this kind, namespace and name. Raises NotFound."""
        _, obj = _decoded(data)
        with self._lock:
            self._get(obj.key)
            del self._objects[obj.key]
            self._revision += 1
            self._store.publish([Delete(obj.key)])

    def get(self, resource: str, name: str, show: Collection[str] = ()) -> str:
        """One object as YAML with sorted keys; ``name`` is ``namespace/name`` or ``name``.

        Raises NotFound.
        """
        kind = self._kind(resource)
        namespace, _, plain = name.rpartition("/")
        with self._lock:
            known = self._get((kind.KIND, namespace, plain))
            return _yaml(_redacted(known.form, show))

    def list_objects(self, resource: str, namespace: str = "", show: Collection[str] = ()) -> str:
        """The objects of a resource in a namespace (all, if empty), as a YAML list, by name."""
        kind = self._kind(resource)
        with self._lock:
            keys = sorted(
                key for key in self._objects if key[0] == kind.KIND and namespace in ("", key[1])
            )
            return _yaml([_redacted(self._objects[key].form, show) for key in keys])

    def resync(self, resource: str, documents: Iterable[bytes] = ()) -> None:
        """Replaces all objects of a resource; readers are not told what went and list again."""
        kind = self._kind(resource)
        decoded = [_decoded(data) for data in documents]
        wrong = [obj for _, obj in decoded if obj.KIND != kind.KIND]
        if wrong:
            raise TrackerError(f"{_shown(wrong[0].key)} is not one of {resource_name(kind)}")
        with self._lock:
            for key in [key for key in self._objects if key[0] == kind.KIND]:
                del self._objects[key]
            self._revision += 1
            for form, obj in decoded:
                self._keep(form, obj)
            self._store.relist(kind.KIND, [obj for _, obj in decoded])

    def summary(self) -> str:
        """How many objects there are of each resource, in the order of first appearance."""
        with self._lock:
            counts = dict.fromkeys(self._seen, 0)
            for tracked in self._objects.values():
                counts[resource_name(type(tracked.obj))] += 1
        lines = [f"- {resource}: {count}\n" for resource, count in counts.items() if count]
        return f"{DOMAIN}:\n" + "".join(lines)

    @staticmethod
    def resources() -> list[str]:
        """The names of all known resources."""
        return sorted(resource_name(kind) for kind in KINDS.values())

    def _kind(self, resource: str) -> type[K8sObject]:
        """By whole name, else by the one resource that has the text in its name."""
        by_name = {resource_name(kind): kind for kind in KINDS.values()}
        if resource in by_name:
            return by_name[resource]
        matching = [name for name in by_name if resource in name]
        if len(matching) != 1:
            known = ", ".join(sorted(matching or by_name))
            raise TrackerError(f"{resource!r} is not one resource (there are {known})")
        return by_name[matching[0]]

    def _get(self, key: ObjectKey) -> _Tracked:
        known = self._objects.get(key)
        if known is None:
            raise NotFound(f"{_shown(key)} not found")
        return known

    def _put(self, form: dict[str, Any], obj: K8sObject) -> None:
        self._revision += 1
        self._keep(form, obj)
        self._store.publish([Upsert(obj)])

    def _keep(self, form: dict[str, Any], obj: K8sObject) -> None:
        """Gives the object its version and, if it has none, its unique id."""
        known = self._objects.get(obj.key)
        meta = obj.metadata
        meta.resource_version = str(self._revision)
        meta.uid = meta.uid or (known.obj.metadata.uid if known else str(uuid.uuid4()))
        form["metadata"] = {
            **form["metadata"],
            "resourceVersion": meta.resource_version,
            "uid": meta.uid,
        }
        if meta.namespace:
            form["metadata"]["namespace"] = meta.namespace
        self._seen.setdefault(resource_name(type(obj)))
        self._objects[obj.key] = _Tracked(form, obj, self._revision)


def _decoded(data: bytes) -> tuple[dict[str, Any], K8sObject]:
    documents = read_yaml(data)
    if len(documents) != 1:
        raise TrackerError(f"one object is expected, there are {len(documents)}")
    if documents[0].error:
        raise TrackerError(documents[0].error)
    form = documents[0].form
    try:
        return form, decode(form)
    except InvalidObject as error:
        raise TrackerError(f"{error.kind} {error.namespace}/{error.name}: {error}") from None


def _shown(key: ObjectKey) -> str:
    kind, namespace, name = key
    return f"{kind} {namespace}/{name}" if namespace else f"{kind} {name}"


def _redacted(form: dict[str, Any], show: Collection[str]) -> dict[str, Any]:
    shown = copy.deepcopy(form)
    for option, field in REDACTED.items():
        if option not in show:
            shown["metadata"].pop(field, None)
    return shown


class _Dumper(yaml.SafeDumper):
    """Repeats what is shared instead of writing an anchor."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _yaml(value: Any) -> str:
    text: str = yaml.dump(value, Dumper=_Dumper, sort_keys=True, default_flow_style=False)
    return text
