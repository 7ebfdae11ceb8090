# SPDX-License-Identifier: Apache-2.0
"""Objects as files of one directory, shared by the programs of one machine: a small API server.

    /apis/cilium.io/v2/ciliumidentities/300  ->  DIR/ciliumidentities.cilium.io_300.json

Writers hold a lock on the directory (flock(2), which ends with its holder) while they compare
versions and put a new file in the place of the old one, so a kill leaves the old object or the new
one. Readers follow the directory as one of manifests: a file that is broken harms no other object.
Versions of an object grow, and are told from those of an object that had its name before by the
clock and by the uid.
"""

from __future__ import annotations

import fcntl
import os
import re
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

import anyio.to_thread
import msgspec
import orjson

from cilia.k8s.errors import StatusError, StorageFailed
from cilia.k8s.manifests import ManifestSource
from cilia.k8s.object_writer import CONFLICT, NOT_FOUND, Form
from cilia.k8s.objects import K8sObject
from cilia.linux.lock import holder_of
from cilia.linux.records import replace_file
from cilia.regular_files import NotRegular, read_regular

__all__ = ["ObjectFiles", "object_files_source"]

T = TypeVar("T")

SUFFIX: Final = ".json"
INVALID: Final = 422

#: How long another program may hold the lock: a write takes milliseconds.
LOCK_WAIT_S: Final = 5.0
#: How often the lock is tried: flock(2) has no time limit, and nothing tells that it is free.
LOCK_RETRY_S: Final = 0.005

_SEGMENT: Final = r"[a-z0-9](?:[-a-z0-9.]*[a-z0-9])?"
_PATH: Final = re.compile(
    rf"/(?:api|apis/(?P<group>{_SEGMENT}))/(?P<version>{_SEGMENT})"
    rf"(?:/namespaces/(?P<namespace>{_SEGMENT}))?/(?P<resource>{_SEGMENT})/(?P<name>{_SEGMENT})"
)


class _Place:
    """An object's path, taken apart."""

    def __init__(self, path: str) -> None:
        """Raises: StatusError for a path of no object."""
        parts = _PATH.fullmatch(path)
        if parts is None:
            raise StatusError(INVALID, f"{path} is no path of an object")
        self.path = path
        self.name = parts["name"]
        self.namespace = parts["namespace"] or ""
        self.api_version = f"{parts['group']}/{parts['version']}" if parts["group"] else "v1"
        names = [_kind_name(parts["resource"], parts["group"] or ""), self.namespace, self.name]
        self.file = "_".join(filter(None, names)) + SUFFIX


class ObjectFiles:
    """An `ObjectWriter` over a directory, which must be there. Several may have one directory.

    Beyond the errors of `ObjectWriter`, each method raises StorageFailed (a full disk …).
    """

    def __init__(self, directory: Path, lock_wait_s: float = LOCK_WAIT_S) -> None:
        self.directory = directory
        self._lock_wait_s = lock_wait_s

    async def fetch(self, path: str) -> bytes:
        """Return the object as JSON."""
        place = _Place(path)
        return await _in_thread(partial(self._fetch, place))

    async def create(self, path: str, form: Form) -> Form:
        """Make the object; 409 if the name is taken."""
        place = _Place(path)
        _check(place, form)
        return await _in_thread(partial(self._create, place, form))

    async def replace(self, path: str, form: Form) -> Form:
        """Write the object over the version that it names; 409 if that is not the last one."""
        place = _Place(path)
        _check(place, form)
        return await _in_thread(partial(self._replace, place, form))

    async def delete(self, path: str, uid: str, options: Form, version: str = "") -> Form:
        """Delete the object with this uid, if it is of this version where one is named."""
        place = _Place(path)
        return await _in_thread(partial(self._delete, place, uid, version))

    # -- in a thread --

    def _fetch(self, place: _Place) -> bytes:
        with _told(self.directory):
            return orjson.dumps(self._read(place))

    def _create(self, place: _Place, form: Form) -> Form:
        with self._locked():
            file = self.directory / place.file
            if file.exists():
                raise StatusError(CONFLICT, f"{place.path} is there already")
            now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
            managed = {"uid": str(uuid.uuid4()), "creationTimestamp": now}
            return self._write(place, form, managed, _next_version("0"))

    def _replace(self, place: _Place, form: Form) -> Form:
        with self._locked():
            found = self._read(place)["metadata"]
            said = form["metadata"].get("resourceVersion")
            if not said:
                raise StatusError(INVALID, "metadata.resourceVersion: must say what is replaced")
            if said != found["resourceVersion"] or form["metadata"].get("uid") != found["uid"]:
                raise StatusError(CONFLICT, f"{place.path} is not what it was when it was read")
            managed = {"uid": found["uid"], "creationTimestamp": found.get("creationTimestamp")}
            return self._write(place, form, managed, _next_version(found["resourceVersion"]))

    def _delete(self, place: _Place, uid: str, version: str) -> Form:
        with self._locked():
            found = self._read(place)
            metadata = found["metadata"]
            if metadata["uid"] != uid or version not in ("", metadata["resourceVersion"]):
                raise StatusError(CONFLICT, f"{place.path} is not what it was when it was read")
            (self.directory / place.file).unlink()
            return found

    def _write(self, place: _Place, form: Form, managed: Form, version: str) -> Form:
        metadata = {**form["metadata"], **managed, "resourceVersion": version}
        if place.namespace:
            metadata["namespace"] = place.namespace
        written = {**form, "metadata": metadata}
        text = orjson.dumps(written, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)
        replace_file(self.directory / place.file, text, durable=True)
        return written

    def _read(self, place: _Place) -> Form:
        """Raises: StatusError, StorageFailed, OSError."""
        try:
            text = read_regular(self.directory / place.file)
            msgspec.json.decode(text, type=_Stored)
        except FileNotFoundError:
            raise StatusError(NOT_FOUND, f"{place.path} is not there") from None
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, NotRegular) as error:
            reason = str(error)
        else:
            return orjson.loads(text)  # type: ignore[no-any-return]
        raise StorageFailed(
            f"{self.directory / place.file} is broken ({reason}): mend or remove it"
        )

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the lock of the directory. Raises: StorageFailed."""
        with _told(self.directory):
            directory = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                self._lock(directory)
                yield
            finally:
                os.close(directory)

    def _lock(self, directory: int) -> None:
        deadline = time.monotonic() + self._lock_wait_s
        while True:
            try:
                return fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    break
            time.sleep(LOCK_RETRY_S)
        pid = holder_of(self.directory)
        raise StorageFailed(
            f"{self.directory} is locked for {self._lock_wait_s:g} s by"
            f" {f'pid {pid}' if pid else 'another program'}: end it if it is stopped"
        )


class _StoredMetadata(msgspec.Struct, rename="camel"):
    """Fields by which the versions of an object are told."""

    name: str
    uid: str
    resource_version: str
    # A person who writes a file may leave it out.
    creation_timestamp: str | None = None


class _Stored(msgspec.Struct):
    metadata: _StoredMetadata


def object_files_source(directory: Path, *kinds: type[K8sObject]) -> ManifestSource:
    """Return the source of the objects of these kinds in a directory of `ObjectFiles`.

    Files are put there whole, so none is waited for.
    """
    prefixes = {_kind_name(kind.RESOURCE, _group(kind)) for kind in kinds}

    def wants(name: str) -> bool:
        return name.endswith(SUFFIX) and name.partition("_")[0] in prefixes

    return ManifestSource(directory, origin="objects", wants=wants, settle_s=0.0)


def _group(kind: type[K8sObject]) -> str:
    return kind.API_VERSION.partition("/")[0] if "/" in kind.API_VERSION else ""


def _kind_name(resource: str, group: str) -> str:
    return f"{resource}.{group}" if group else resource


def _next_version(last: str) -> str:
    """Return a version above the last one of the object, and not one of an object before it."""
    return str(max(time.time_ns(), (int(last) if last.isdecimal() else 0) + 1))


def _check(place: _Place, form: Form) -> None:
    """Raises: StatusError for an object that is not of its path."""
    metadata = form.get("metadata")
    if not isinstance(metadata, dict) or metadata.get("name") != place.name:
        raise StatusError(INVALID, f"metadata.name: must be {place.name}")
    if metadata.get("namespace", place.namespace) != place.namespace:
        raise StatusError(INVALID, f"metadata.namespace: must be {place.namespace or 'left out'}")
    if form.get("apiVersion") != place.api_version:
        raise StatusError(INVALID, f"apiVersion: must be {place.api_version}")
    if not form.get("kind"):
        raise StatusError(INVALID, "kind: is missing")


async def _in_thread(work: Callable[[], T]) -> T:
    return await anyio.to_thread.run_sync(work)


@contextmanager
def _told(directory: Path) -> Iterator[None]:
    """Turn what the kernel refuses into StorageFailed."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        where = error.filename or directory
        raise StorageFailed(f"{where}: {reason}") from None
