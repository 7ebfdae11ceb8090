# SPDX-License-Identifier: Apache-2.0
"""An API server in this process: lists in pages, watches with bookmarks, a history that expires.

It keeps objects as their JSON forms and knows no kinds: a path is a resource once something was put
there or it was announced.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

import orjson

from cilia.k8s import crds  # noqa: F401 - its kinds are looked for
from cilia.k8s.objects import K8sObject
from tests.cilia.k8s.h2_server import Closed, H2Server, Reply, Request

METADATA_ONLY: Final = "as=PartialObjectMetadataList"

Key = tuple[str, str]


class _Resource:
    def __init__(self) -> None:
        self.objects: dict[Key, dict[str, Any]] = {}
        # (revision, type, object), oldest first.
        self.history: list[tuple[int, str, dict[str, Any]]] = []
        self.changed = asyncio.Event()


class Backup(NamedTuple):
    """All objects by path, and the revision they were copied at."""

    revision: int
    objects: dict[str, dict[Key, dict[str, Any]]]


class FakeApi:
    """`start` it, `put` and `delete` objects, and read `server.url`."""

    def __init__(self, *paths: str) -> None:
        self.server = H2Server(self._handle)
        self.revision = 100
        self.oldest = 100
        # The only valid one; empty: nobody is asked.
        self.token = ""
        self.requests: list[Request] = []
        # Paths that something before the server answers with 404; None: all.
        self.not_found: set[str] | None = set()
        # Paths that whoever asks has no right to.
        self.forbidden: set[str] = set()
        # Paths whose requests get no answer.
        self.silent: set[str] = set()
        # What lists call themselves, if not what they are; and whether no list ever ends.
        self.list_kind = ""
        self.always_more = False
        self.bookmark_s = 60.0
        self.watch_s: float | None = None
        self._resources = {path: _Resource() for path in paths}
        self._snapshots: dict[str, tuple[int, list[dict[str, Any]]]] = {}
        self._snapshot_names = itertools.count()

    async def start(self) -> None:
        await self.server.start()

    async def stop(self) -> None:
        await self.server.stop()

    def announce(self, path: str) -> None:
        self._resources.setdefault(path, _Resource())

    def put(self, path: str, form: dict[str, Any]) -> int:
        """Creates or replaces; returns the revision."""
        resource = self._resources.setdefault(path, _Resource())
        meta = form["metadata"]
        key = (meta.get("namespace", ""), meta["name"])
        type_ = "MODIFIED" if key in resource.objects else "ADDED"
        self.revision += 1
        obj = {**form, "metadata": {**meta, "resourceVersion": str(self.revision)}}
        resource.objects[key] = obj
        self._changed(resource, type_, obj)
        return self.revision

    def delete(self, path: str, namespace: str, name: str) -> int:
        resource = self._resources[path]
        obj = resource.objects.pop((namespace, name))
        self.revision += 1
        obj = {**obj, "metadata": {**obj["metadata"], "resourceVersion": str(self.revision)}}
        self._changed(resource, "DELETED", obj)
        return self.revision

    def remove_resource(self, path: str) -> None:
        resource = self._resources.pop(path)
        resource.changed.set()

    def expire(self) -> None:
        """The server remembers nothing of what was before now, and no list that is under way."""
        self.oldest = self.revision
        self._snapshots.clear()

    def backup(self) -> Backup:
        """Return a copy of everything, for `restore`."""
        objects = {path: dict(resource.objects) for path, resource in self._resources.items()}
        return Backup(self.revision, objects)

    def restore(self, backup: Backup) -> None:
        """Go back, as an etcd from a backup does: objects, revision and no history."""
        self.revision = backup.revision
        for path, objects in backup.objects.items():
            self._resources[path].objects = dict(objects)
            self._resources[path].history.clear()
        self.expire()

    def versions(self, path: str) -> dict[Key, int]:
        return {
            key: int(obj["metadata"]["resourceVersion"])
            for key, obj in self._resources[path].objects.items()
        }

    def _changed(self, resource: _Resource, type_: str, obj: dict[str, Any]) -> None:
        resource.history.append((self.revision, type_, obj))
        resource.changed.set()
        resource.changed = asyncio.Event()

    # -- requests

    async def _handle(self, request: Request, reply: Reply) -> None:
        self.requests.append(request)
        if request.path in self.silent:
            await asyncio.Event().wait()
        if self.token and _bearer(request) != self.token:
            await self._refuse(reply, 401, "Unauthorized")
        elif self.not_found is None or request.path in self.not_found:
            await reply.whole(404, b"<html>default backend - 404</html>")
        elif request.path in self.forbidden:
            await self._refuse(reply, 403, "Forbidden")
        elif request.path == "/apis" or request.path in self._versions():
            await reply.whole(200, orjson.dumps(self._discovery(request.path)))
        elif request.path not in self._resources:
            await self._refuse(reply, 404, "the server could not find the requested resource")
        elif request.query.get("watch"):
            await self._watch(request, reply)
        else:
            await self._list(request, reply)

    def _versions(self) -> dict[str, list[str]]:
        """`/apis/GROUP/VERSION` of all groups, with the names of their resources."""
        found: dict[str, list[str]] = {"/apis/apps/v1": []}
        for path in self._resources:
            version, _, name = path.rpartition("/")
            if path.startswith("/apis/"):
                found.setdefault(version, []).append(name)
        return found

    def _discovery(self, path: str) -> dict[str, Any]:
        versions = self._versions()
        if path in versions:
            return {
                "kind": "APIResourceList",
                "groupVersion": path.removeprefix("/apis/"),
                "resources": [{"name": name} for name in versions[path]],
            }
        names = [version.removeprefix("/apis/") for version in versions]
        groups = [
            {"name": name.partition("/")[0], "versions": [{"groupVersion": name}]} for name in names
        ]
        return {"kind": "APIGroupList", "groups": groups}

    async def _refuse(self, reply: Reply, code: int, message: str) -> None:
        await reply.whole(code, orjson.dumps(_status(code, message)))

    async def _list(self, request: Request, reply: Reply) -> None:
        token = request.query.get("continue", "")
        if token:
            name, _, start = token.partition(":")
            if name not in self._snapshots:
                await self._refuse(reply, 410, "The provided continue parameter is too old")
                return
            revision, objects = self._snapshots[name]
        else:
            resource = self._resources[request.path]
            revision, objects = (
                self.revision,
                [resource.objects[k] for k in sorted(resource.objects)],
            )
            name, start = f"s{next(self._snapshot_names)}", "0"
            self._snapshots[name] = (revision, objects)
        first, limit = int(start), int(request.query.get("limit", 0)) or len(objects)
        items = objects[first : first + limit]
        more = f"{name}:{first + limit}" if first + limit < len(objects) else ""
        partial = METADATA_ONLY in request.headers["accept"]
        if partial:
            items = [{"metadata": item["metadata"]} for item in items]
        kind = "PartialObjectMetadataList" if partial else _list_kind(request.path)
        if self.always_more:
            more = f"{name}:0"
        metadata = {"resourceVersion": str(revision), "continue": more}
        form = {"kind": self.list_kind or kind, "metadata": metadata, "items": items}
        await reply.whole(200, orjson.dumps(form))

    async def _watch(self, request: Request, reply: Reply) -> None:
        sent = int(request.query["resourceVersion"])
        reply.head(200)
        if sent < self.oldest:
            await reply.send(event("ERROR", _status(410, f"too old resource version: {sent}")))
            reply.end()
            return
        resource = self._resources[request.path]
        loop = asyncio.get_running_loop()
        end = loop.time() + (self.watch_s or float(request.query["timeoutSeconds"]))
        while request.path in self._resources:
            changed = resource.changed
            for revision, type_, obj in resource.history:
                if revision > sent:
                    await reply.send(event(type_, obj))
                    sent = revision
            left_s = end - loop.time()
            if left_s <= 0:
                break
            try:
                async with asyncio.timeout(min(left_s, self.bookmark_s)):
                    await changed.wait()
            except TimeoutError:
                sent = max(sent, self.revision)
                await reply.send(event("BOOKMARK", {"metadata": {"resourceVersion": str(sent)}}))
        reply.end()


def _bearer(request: Request) -> str:
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    return token if scheme.lower() == "bearer" else ""


def _list_kind(path: str) -> str:
    name = path.rpartition("/")[2]
    kinds = [kind for kind in _kinds(K8sObject) if name == kind.RESOURCE]
    return f"{kinds[0].KIND}List"


def _kinds(base: type[K8sObject]) -> Iterator[type[K8sObject]]:
    for kind in base.__subclasses__():
        if hasattr(kind, "RESOURCE"):
            yield kind
        yield from _kinds(kind)


def event(type_: str, obj: dict[str, Any]) -> bytes:
    return orjson.dumps({"type": type_, "object": obj}) + b"\n"


def _status(code: int, message: str) -> dict[str, Any]:
    return {"kind": "Status", "apiVersion": "v1", "code": code, "message": message}


__all__ = ["Closed", "FakeApi", "event"]
