# SPDX-License-Identifier: Apache-2.0
"""What manifest files say, one by one and together; no waiting and no reading of files here.

``decode_file`` turns one file into objects and problems. ``Manifests`` holds all files and tells
what changes when one of them does: an object goes only when a readable file no longer has it, what
a broken document had in force stays in force, and an object in two files belongs to the file that
had it first.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final

import msgspec

from cilia.k8s.documents import Document, read_json, read_yaml
from cilia.k8s.objects import InvalidObject, K8sObject, ObjectKey, decode
from cilia.k8s.watch import Delete, Event, Invalid, Problem, Upsert
from statedb.shown.text import shortened, visible

READERS: Final[dict[str, Callable[[bytes], list[Document]]]] = {
    ".yaml": read_yaml,
    ".yml": read_yaml,
    ".json": read_json,
}


class FileContent(msgspec.Struct, frozen=True):
    """What one reading of a file gave."""

    objects: dict[ObjectKey, K8sObject] = {}
    problems: tuple[Problem, ...] = ()
    # Objects whose present text is broken: what they were stays in force.
    keep: frozenset[ObjectKey] = frozenset()
    # A broken part does not say which object it is, or the file could not be read: all stays in
    # force.
    keep_all: bool = False


# Turns the plain form of a document into its objects in plain form, each with its path.
Items = Callable[[Any], Iterable[tuple[str, Any]]]


def manifest_items(form: Any) -> Iterator[tuple[str, Any]]:
    """The objects of a document: itself, or the items of a list."""
    kind = form.get("kind") if isinstance(form, dict) else None
    if not isinstance(kind, str) or not kind.endswith("List") or "items" not in form:
        yield "", form
        return
    # The items of a ServiceList say neither kind nor version: the list does.
    kind, version = kind.removesuffix("List"), form.get("apiVersion")
    default = {"apiVersion": version, "kind": kind} if kind else {}
    yield from list_items("items", form["items"], default)


def list_items(path: str, items: Any, default: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The objects of a list that stands at ``path``, with what they do not say themselves."""
    if not isinstance(items, list | None):
        yield path, items
        return
    for i, item in enumerate(items or ()):
        yield f"{path}[{i}]", {**default, **item} if isinstance(item, dict) else item


# Problems of one file that are told one by one.
MOST_PROBLEMS: Final = 100


def unreadable(file: str, message: str) -> FileContent:
    """Return the content of a file of which nothing is known but that it is there."""
    return FileContent(problems=(Problem(message, file),), keep_all=True)


def decode_file(file: str, data: bytes, items: Items = manifest_items) -> FileContent:
    """Decodes all documents of a file; never raises for what stands in it."""
    try:
        return _decode(file, READERS[os.path.splitext(file)[1]](data), items)
    except Exception as error:  # noqa: BLE001 - of this file alone: what it had stays in force
        return unreadable(file, f"cannot be decoded: {type(error).__name__}: {error}"[:300])


def _decode(file: str, documents: Iterable[Document], items: Items) -> FileContent:
    objects: dict[ObjectKey, K8sObject] = {}
    problems: list[Problem] = []
    keep: set[ObjectKey] = set()
    keep_all = False
    for document in documents:
        if document.error:
            keep_all = True
            problems.append(_unreadable(file, document))
            continue
        for path, form in items(document.form):
            try:
                obj = decode(form)
                if obj.key in objects:
                    raise _repeated(obj)
                objects[obj.key] = obj
            except InvalidObject as error:
                keep.add((error.kind, error.namespace or "default", error.name))
                keep.add((error.kind, "", error.name))
                keep_all = keep_all or not error.name
                problems.extend(_invalid(file, document.number, path, error))
    return FileContent(
        objects, _bounded(file, problems), frozenset(keep - objects.keys()), keep_all
    )


def _bounded(file: str, problems: list[Problem]) -> tuple[Problem, ...]:
    more = len(problems) - MOST_PROBLEMS
    if more <= 0:
        return tuple(problems)
    return (*problems[:MOST_PROBLEMS], Problem(f"has {more} more problems", file))


def _unreadable(file: str, document: Document) -> Problem:
    return Problem(
        document.error,
        file,
        document.number,
        document.kind,
        document.namespace,
        document.name,
    )


def _invalid(file: str, number: int, path: str, error: InvalidObject) -> Iterator[Problem]:
    for field, message in error.errors:
        where = f"{path}.{field}" if path and field else path or field
        yield Problem(
            message, file, number, error.kind, error.namespace, error.name, shortened(where)
        )


def _repeated(obj: K8sObject) -> InvalidObject:
    message = "is in this file already; the first one is used"
    return InvalidObject(obj.KIND, obj.metadata.namespace, obj.metadata.name, [("", message)])


class Manifests:
    """What all files say together. An object in two files belongs to the file that had it first.

    ``origin`` is the name under which their problems are reported.
    """

    def __init__(self, origin: str = "manifests") -> None:
        self._origin = origin
        self._files: dict[str, FileContent] = {}
        self._claims: dict[ObjectKey, list[str]] = {}
        self._problems: dict[str, tuple[Problem, ...]] = {}

    @property
    def files(self) -> Iterable[str]:
        return self._files.keys()

    def objects(self, file: str) -> Mapping[ObjectKey, K8sObject]:
        """Return what is in force from a file, or waits for the file that had it first."""
        content = self._files.get(file)
        return {} if content is None else content.objects

    def alone(self, file: str) -> dict[ObjectKey, K8sObject]:
        """Return what would go with the file: what no other file has."""
        objects = self.objects(file)
        return {key: obj for key, obj in objects.items() if len(self._claims[key]) == 1}

    def put(self, file: str, content: FileContent) -> list[Event]:
        """Takes a new reading of a file; returns what changes because of it."""
        old = self._files.get(file, FileContent())
        objects = dict(content.objects)
        for key, obj in old.objects.items():
            if key not in objects and (content.keep_all or key in content.keep):
                objects[key] = obj
        return self._replace(file, msgspec.structs.replace(content, objects=objects))

    def lost(self, file: str, content: FileContent) -> frozenset[ObjectKey]:
        """The objects that the file has, and would not have with this content."""
        old = self._files.get(file, FileContent()).objects.keys()
        if content.keep_all:
            return frozenset()
        return frozenset(old - content.objects.keys() - content.keep)

    def remove(self, file: str) -> list[Event]:
        """The file is gone, and with it what it alone had."""
        return self._replace(file, None) if file in self._files else []

    def _replace(self, file: str, content: FileContent | None) -> list[Event]:
        old = self._files.pop(file, FileContent())
        before = {key: self._in_force(key, file, old) for key in old.objects}
        if content is not None:
            self._files[file] = content
        new = content or FileContent()
        for key in old.objects.keys() - new.objects.keys():
            self._drop_claim(key, file)
        for key in new.objects.keys() - old.objects.keys():
            self._claims.setdefault(key, []).append(file)
        # Additions in the order of the file, then what went.
        keys = dict.fromkeys([*new.objects, *old.objects])
        events = [e for key in keys if (e := self._change(key, before.get(key))) is not None]
        return [*self._order(events), *self._complaints(file, keys)]

    def _drop_claim(self, key: ObjectKey, file: str) -> None:
        claims = self._claims[key]
        claims.remove(file)
        if not claims:
            del self._claims[key]

    def _in_force(self, key: ObjectKey, file: str, content: FileContent) -> K8sObject | None:
        owner = self._claims[key][0]
        return content.objects[key] if owner == file else self._files[owner].objects[key]

    def _change(self, key: ObjectKey, before: K8sObject | None) -> Event | None:
        claims = self._claims.get(key)
        if claims is None:
            return Delete(key)
        now = self._files[claims[0]].objects[key]
        if before is None and len(claims) > 1:
            return None
        return None if before == now else Upsert(now)

    @staticmethod
    def _order(events: list[Event]) -> list[Event]:
        """Deletes last: a renamed object is there before its predecessor goes."""
        return sorted(events, key=lambda event: isinstance(event, Delete))

    def _complaints(self, file: str, keys: Iterable[ObjectKey]) -> list[Event]:
        """The problems of this file, and of others that wait for the same objects."""
        touched = {file: None, **{f: None for key in keys for f in self._claims.get(key, ())}}
        events: list[Event] = []
        for name in touched:
            problems = self._problems_of(name)
            if problems != self._problems.pop(name, ()):
                events.append(Invalid(f"{self._origin}:{visible(name)}", problems))
            if problems:
                self._problems[name] = problems
        return events

    def _problems_of(self, file: str) -> tuple[Problem, ...]:
        content = self._files.get(file)
        if content is None:
            return ()
        waiting = [key for key in content.objects if self._claims[key][0] != file]
        return content.problems + tuple(
            Problem(
                f"is in {visible(self._claims[key][0])} already, which is used",
                visible(file),
                0,
                *key,
            )
            for key in waiting[:MOST_PROBLEMS]
        )
