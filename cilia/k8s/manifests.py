# SPDX-License-Identifier: Apache-2.0
"""Objects from a directory of ordinary Kubernetes manifests, followed as people edit them.

A change is announced by the kernel (watchfiles), the file is read in a thread once it is at rest,
and ``manifest_files`` says what follows. Files that vanish, are renamed over, or cannot be read
take nothing with them but what they alone had.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, Final

import anyio
import anyio.to_thread
from watchfiles._rust_notify import RustNotify

from cilia.k8s.manifest_files import (
    READERS,
    FileContent,
    Items,
    Manifests,
    decode_file,
    manifest_items,
)
from cilia.k8s.objects import K8sObject
from cilia.k8s.store import ObjectStore
from cilia.k8s.watch import Event, Invalid, Problem

# A file written in place is first empty, then partial; it is read when it has been at rest this
# long.
SETTLE_S: Final = 0.03
# Events within this time are taken as one change: an editor makes three or four for one save.
DEBOUNCE_MS: Final = 50
STEP_MS: Final = 25
# The whole directory is looked at this often even if nothing was announced (network file systems).
RESCAN_MS: Final = 60_000
# How often a directory that went away is looked for.
REOPEN_S: Final = 1.0
# Files decoded in one go by the thread, between which readers get what there is.
FILES_A_STEP: Final = 200

# Inode, size and modification time in ns.
Stamp = tuple[int, int, int]


def is_manifest(name: str) -> bool:
    """Hidden files are what editors and atomic writers have under way."""
    return not name.startswith(".") and os.path.splitext(name)[1] in READERS


class ManifestSource:
    """Reads and watches one directory. ``run`` does the work, ``watch`` is for the readers.

    The files that ``wants`` chooses by name are read once they rest for ``settle_s`` seconds. With
    ``keeps_removed``, a file that goes leaves its objects in force and is a problem.
    """

    def __init__(
        self,
        directory: Path,
        *,
        origin: str = "manifests",
        wants: Callable[[str], bool] = is_manifest,
        items: Items = manifest_items,
        settle_s: float | None = None,
        keeps_removed: bool = False,
    ) -> None:
        self.directory = directory
        self._origin = origin
        self._wants = wants
        self._items = items
        self._settle_s = SETTLE_S if settle_s is None else settle_s
        self._keeps_removed = keeps_removed
        self._manifests = Manifests(origin)
        self._store = ObjectStore()
        # A cache: what of each file has been read already.
        self._stamps: dict[str, Stamp] = {}

    def watch(self, *kinds: type[K8sObject]) -> AsyncIterator[list[Event]]:
        return self._store.watch(*kinds)

    async def run(self) -> None:
        """Reads everything, says that the list is complete, then follows changes until cancelled.

        Raises OSError when the directory cannot be read at the beginning; later that is a problem
        row, and everything stays in force until the directory is back.
        """
        while True:
            await self._follow_directory()
            await anyio.sleep(REOPEN_S)

    async def _follow_directory(self) -> None:
        """Returns when the directory cannot be read any more; all stays in force."""
        stop = threading.Event()
        try:
            # The watch stands before the first reading, so that no change falls between the two.
            notify = RustNotify([str(self.directory)], False, False, 0, False, False)
            inode = self.directory.stat().st_ino
            await self._rescan()
            if not self._store.complete:
                self._store.set_complete()
            # The watch is of the directory, not of its name: another one wants a new watch.
            while self.directory.stat().st_ino == inode:
                changed = await anyio.to_thread.run_sync(
                    notify.watch, DEBOUNCE_MS, STEP_MS, RESCAN_MS, stop, abandon_on_cancel=True
                )
                await self._follow(changed)
        except OSError as error:
            self._complain(f"cannot be read: {error.strerror or error}")
            if not self._store.complete:
                raise
        finally:
            stop.set()

    async def _follow(self, changed: Any) -> None:
        """Reads the files that were announced.

        Anything but a plain file of the directory may stand behind several of its manifests (the
        ``..data`` link of a mounted ConfigMap, the directory itself): then all are looked at.
        """
        if isinstance(changed, set):
            paths = [Path(path) for _, path in changed]
            if all(p.parent == self.directory and not p.name.startswith("..") for p in paths):
                await self._read(sorted({p.name for p in paths if self._wants(p.name)}))
                return
        await self._rescan()

    async def _rescan(self) -> None:
        listed = await anyio.to_thread.run_sync(os.listdir, self.directory)
        names = sorted(filter(self._wants, listed))
        await self._read([*names, *sorted(set(self._manifests.files) - set(names))])
        self._complain("")

    def _complain(self, message: str) -> None:
        problems = (Problem(message, str(self.directory)),) if message else ()
        self._store.publish([Invalid(f"{self._origin}:{self.directory}", problems)])

    async def _read(self, names: list[str]) -> None:
        """What went is taken out last: a renamed file's objects then only change hands."""
        gone: list[str] = []
        for i in range(0, len(names), FILES_A_STEP):
            step = names[i : i + FILES_A_STEP]
            events: list[Event] = []
            for name, content in await anyio.to_thread.run_sync(self._read_step, step):
                if content is None:
                    gone.append(name)
                else:
                    events += self._manifests.put(name, content)
            self._store.publish(events)
        self._store.publish([event for name in gone for event in self._manifests.remove(name)])

    def _read_step(self, names: list[str]) -> list[tuple[str, FileContent | None]]:
        """Reads and decodes files that changed since they were read last; runs in a thread."""
        found: list[tuple[str, FileContent | None]] = []
        for name in names:
            try:
                stamp, data = read_settled(
                    self.directory / name, self._stamps.get(name), self._settle_s
                )
            except OSError as error:
                self._stamps.pop(name, None)
                if isinstance(error, FileNotFoundError) and not self._keeps_removed:
                    found.append((name, None))
                    continue
                problem = Problem(f"cannot be read: {error.strerror}", name)
                found.append((name, FileContent(problems=(problem,), keep_all=True)))
                continue
            if data is not None:
                self._stamps[name] = stamp
                found.append((name, decode_file(name, data, self._items)))
        return found


def read_settled(
    path: Path, known: Stamp | None, settle_s: float = SETTLE_S
) -> tuple[Stamp, bytes | None]:
    """The stamp and content of a file that is at rest; no content when the stamp is the known one.

    A file that was just written, or is written while it is read, is read again once it has not
    changed for ``settle_s`` seconds. Blocks. Raises OSError.
    """
    while True:
        before = _stamp(os.stat(path))
        if before == known:
            return before, None
        with open(path, "rb") as file:
            data = file.read()
            after = _stamp(os.fstat(file.fileno()))
        age_s = time.time() - after[2] / 1e9
        if before == after and not 0 <= age_s < settle_s:
            return after, data
        time.sleep(max(0.001, min(settle_s, settle_s - age_s)))


def _stamp(status: os.stat_result) -> Stamp:
    return (status.st_ino, status.st_size, status.st_mtime_ns)
