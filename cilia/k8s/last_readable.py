# SPDX-License-Identifier: Apache-2.0
"""What is in force from each manifest file, kept for the time after a restart.

While an agent runs, what was in force from a file that is broken now stays in force. An agent that
starts anew does not know what that was, and would remove it from the kernel. So the objects that
are in force from each file are kept, as a manifest of their own under a digest of the file's name::

    DIRECTORY/complete        each file that anything is in force from has its copy here; in it,
                              the directory of the files (device, inode, time of birth)
    DIRECTORY/DIGEST.json     a List of the objects in force from one file

A copy is written before its objects are published, so that a kill leaves no older one. One that
cannot be replaced (a full disk) is removed, the mark before it: an old state is never taken for the
last one. Without the mark, nothing is known of a file that has no copy.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final

import structlog

from cilia.k8s.manifest_files import decode_file
from cilia.k8s.objects import K8sObject, ObjectKey
from cilia.linux.identity import Place
from cilia.linux.records import NEW, make_directory, replace_file
from cilia.regular_files import read_regular

__all__ = ["LastReadable", "is_copy"]

log = structlog.get_logger("manifests")

_COMPLETE: Final = "complete"
_SUFFIX: Final = ".json"
_COPY: Final = re.compile(r"[0-9a-f]{64}\.json")
# Files that a message names.
_EXAMPLES: Final = 3

Objects = Mapping[ObjectKey, K8sObject]


def is_copy(name: str) -> bool:
    """Return whether a file of this name in such a directory is one of ours."""
    if name.startswith(".") and name.endswith(NEW):
        name = name[1 : -len(NEW)]
    return name == _COMPLETE or bool(_COPY.fullmatch(name))


class LastReadable:
    """Copies in a directory of our own. That one cannot be kept is a problem, and harms nobody
    until the file is broken and the agent starts anew.

    `after_restart`: programs of an agent before this one may have files' objects in force.
    """

    def __init__(self, directory: Path, *, after_restart: bool = False) -> None:
        self.directory = directory
        # Without an earlier agent nothing is in force from any file.
        self._is_complete = not after_restart or (directory / _COMPLETE).exists()
        # What this process wrote or found there.
        self._kept: set[str] = set()
        # Why a file has no copy, by its name.
        self._unkept: dict[str, str] = {}

    @property
    def is_complete(self) -> bool:
        """True if each file that anything is in force from has its copy."""
        return self._is_complete

    @property
    def unkept(self) -> list[str]:
        """Names of the files whose copy could not be written."""
        return list(self._unkept)

    def prepare(self) -> None:
        """Make the directory; whoever keeps a copy is told why there is none."""
        with contextlib.suppress(OSError):
            # Its parent is the state directory, which others make and lock.
            make_directory(self.directory)

    def keep(self, name: str, objects: Objects) -> None:
        """Replace the copy of a file as a whole, or remove it."""
        path = self._path(name)
        self._unkept.pop(name, None)
        try:
            self._write(path, _encode(objects))
        except OSError as error:
            self._kept.discard(path.name)
            self._unkept[name] = error.strerror or str(error)
        else:
            self._kept.add(path.name)

    def _write(self, path: Path, data: bytes) -> None:
        """Raises: OSError; there is no copy then, or one that cannot be removed."""
        if _read(path) == data:
            return
        # Its parent is the state directory, which others make and lock.
        make_directory(self.directory)
        try:
            # Not durable: after a power cut nothing is in force that it could keep there.
            replace_file(path, data)
        except OSError:
            # First the mark: a kill in between leaves the copy of what is in force still.
            (self.directory / _COMPLETE).unlink(missing_ok=True)
            path.unlink(missing_ok=True)
            replace_file(path, data)  # where the old one was there may be room

    def last_place(self) -> Place | None:
        """Return the directory whose files have copies here; None if that is not known."""
        try:
            device, inode, born = read_regular(self.directory / _COMPLETE).split()
            return Place(int(device), int(inode), int(born))
        except (OSError, ValueError):
            return None

    def all(self) -> Iterator[tuple[str, Objects | None]]:
        """What was in force from each file, by the name of its copy; None: it cannot be read."""
        for name in sorted(self._found()):
            if _COPY.fullmatch(name):
                yield name, self._decoded(self.directory / name)

    def last(self, name: str) -> Objects | None:
        """Return what was in force from a file when the agent before ended; None: not known."""
        if name in self._unkept:
            return {}  # it went, and its old copy could not be removed
        try:
            return self._decoded(self._path(name))
        except (FileNotFoundError, NotADirectoryError):
            return {} if self._is_complete else None

    @staticmethod
    def _decoded(path: Path) -> Objects | None:
        """An object that another version took and this one refuses is left out: its file tells.

        Raises: FileNotFoundError, NotADirectoryError.
        """
        try:
            content = decode_file(path.name, read_regular(path))
        except (FileNotFoundError, NotADirectoryError):
            raise
        except OSError as error:
            log.warning("a copy of a manifest cannot be read", path=str(path), error=str(error))
            return None
        for problem in content.problems:
            log.warning("a copy of a manifest is refused", path=str(path), error=problem)
        return None if content.keep_all else content.objects

    def forget(self, name: str) -> None:
        """The file is gone: remove its copy."""
        self._unkept.pop(name, None)
        path = self._path(name)
        self._kept.discard(path.name)
        try:
            path.unlink(missing_ok=True)
        except NotADirectoryError:
            return
        except OSError as error:
            self._unkept[name] = f"an old copy cannot be removed: {error.strerror}"

    def lost(self, names: Iterable[str]) -> list[str]:
        """Return those of these files whose copy somebody removed since it was written."""
        found = self._found()
        if self._kept <= found:
            return []
        gone = self._kept - found
        return [name for name in names if self._path(name).name in gone]

    def _found(self) -> set[str]:
        try:
            return set(os.listdir(self.directory))
        except OSError:
            return set()

    def retain(self, names: Iterable[str]) -> None:
        """Forget all other files."""
        wanted = {_COMPLETE, *(self._path(name).name for name in names)}
        self._kept &= wanted
        for copy in filter(is_copy, self._found() - wanted):
            try:
                (self.directory / copy).unlink(missing_ok=True)
            except OSError as error:
                log.warning("an old copy of a manifest stays", copy=copy, error=str(error))

    def mark_complete(self, place: Place) -> None:
        """Note that each file of this directory that anything is in force from has its copy."""
        self._is_complete = True
        mark = self.directory / _COMPLETE
        if self._unkept or self.last_place() == place:
            return
        try:
            make_directory(self.directory)
            replace_file(mark, b"%d %d %d\n" % place)
        except OSError as error:
            log.warning("copies of manifests are not complete", path=str(mark), error=str(error))

    def problem(self) -> str:
        """Return a sentence for the operator; empty if all copies are kept."""
        if not self._unkept:
            return ""
        more = len(self._unkept) - _EXAMPLES
        names = ", ".join(
            [*list(self._unkept)[:_EXAMPLES], *([f"{more} more"] if more > 0 else [])]
        )
        reason = next(reversed(self._unkept.values()))
        return (
            f"what is in force from {names} cannot be kept for the next agent: {reason}: make room"
            " or make it writable; until then do not restart the agent while such a file is broken"
        )

    def _path(self, name: str) -> Path:
        return self.directory / (hashlib.sha256(os.fsencode(name)).hexdigest() + _SUFFIX)


def _read(path: Path) -> bytes | None:
    try:
        return read_regular(path)
    except (FileNotFoundError, NotADirectoryError):
        return None


def _encode(objects: Objects) -> bytes:
    """Return a List, in the form that a manifest has."""
    items = ",".join(map(_form, objects.values()))
    return f'{{"apiVersion":"v1","kind":"List","items":[{items}]}}'.encode()


def _form(obj: K8sObject) -> str:
    fields = obj.model_dump_json(by_alias=True, exclude_defaults=True)
    return f'{{"apiVersion":"{obj.API_VERSION}","kind":"{obj.KIND}",{fields[1:]}'
