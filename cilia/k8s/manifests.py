# SPDX-License-Identifier: Apache-2.0
"""Objects from a directory of ordinary Kubernetes manifests, followed as people edit them.

A change is announced by the kernel (watchfiles), the file is read in a thread once it is at rest,
and ``manifest_files`` says what follows. Files that vanish, are renamed over, or cannot be read
take nothing with them but what they alone had. Nobody waits for a file: one that is not at rest yet
is looked at again later, and the others are served meanwhile.
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
from watchfiles._rust_notify import RustNotify, WatchfilesRustInternalError

from cilia.k8s.directory_files import SETTLE_S, DirectoryFiles
from cilia.k8s.last_readable import LastReadable
from cilia.k8s.manifest_files import READERS, Items, Manifests, manifest_items
from cilia.k8s.objects import K8sObject
from cilia.k8s.store import ObjectStore
from cilia.k8s.watch import Event, Invalid, Problem

# Events within this time are taken as one change: an editor makes three or four for one save.
DEBOUNCE_MS: Final = 50
STEP_MS: Final = 25
# The whole directory is looked at this often even if nothing was announced (network file systems).
RESCAN_MS: Final = 60_000
# How often a directory that went away is looked for.
REOPEN_S: Final = 1.0
# Files decoded in one go by the thread, between which readers get what there is.
FILES_A_STEP: Final = 200


def is_manifest(name: str) -> bool:
    """Hidden files are what editors and atomic writers have under way."""
    return not name.startswith(".") and os.path.splitext(name)[1] in READERS


class ManifestSource:
    """Reads and watches one directory. ``run`` does the work, ``watch`` is for the readers.

    The files that ``wants`` chooses by name are read once they rest for ``settle_s`` seconds. With
    ``keeps_removed``, a file that goes leaves its objects in force and is a problem. In ``copies``,
    a directory of our own, the last readable state of each file is kept for the next agent.
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
        copies: Path | None = None,
    ) -> None:
        self.directory = directory
        self._origin = origin
        self._wants = wants
        self._store = ObjectStore()
        self._files = DirectoryFiles(
            directory,
            Manifests(origin),
            self._store.publish,
            items=items,
            settle_s=SETTLE_S if settle_s is None else settle_s,
            keeps_removed=keeps_removed,
            copies=None if copies is None else LastReadable(copies),
        )
        self._rescan_at = 0.0

    def watch(self, *kinds: type[K8sObject]) -> AsyncIterator[list[Event]]:
        return self._store.watch(*kinds)

    async def run(self) -> None:
        """Reads everything, says that the list is complete, then follows changes until cancelled.

        After a failure nothing counts as read. Raises OSError when the directory cannot be read at
        the beginning; later that is a problem row, and everything stays in force until the
        directory is back.
        """
        self._files.forget_stamps()
        while True:
            try:
                await self._follow_directory()
            except WatchfilesRustInternalError:
                # A name that is no UTF-8 ends a watch. The next one begins with a look at all
                # files; not at once, since another change of that file would end it too.
                await anyio.sleep(DEBOUNCE_MS / 1000)
            else:
                await anyio.sleep(REOPEN_S)

    async def _follow_directory(self) -> None:
        """Returns when the directory cannot be read any more; all stays in force."""
        stop = threading.Event()
        try:
            # The watch stands before the first reading, so that no change falls between the two.
            notify = RustNotify([str(self.directory)], False, False, 0, False, False)
            inode = self.directory.stat().st_ino
            await self._rescan()
            # The watch is of the directory, not of its name: another one wants a new watch.
            while self.directory.stat().st_ino == inode:
                if not self._store.complete and not self._files.waiting:
                    self._store.set_complete()
                wait_ms = max(1, int(1000 * (self._next_look() - time.monotonic())))
                changed = await anyio.to_thread.run_sync(
                    notify.watch, DEBOUNCE_MS, STEP_MS, wait_ms, stop, abandon_on_cancel=True
                )
                await self._follow(changed)
        except OSError as error:
            self._complain(f"cannot be read: {error.strerror or error}")
            if not self._store.complete:
                raise
        finally:
            stop.set()

    def _next_look(self) -> float:
        return min([self._rescan_at, *self._files.due.values()])

    async def _follow(self, changed: Any) -> None:
        """Reads the files that were announced, and those that had to rest first.

        Anything but a plain file of the directory may stand behind several of its manifests (the
        ``..data`` link of a mounted ConfigMap, the directory itself): then all are looked at.
        """
        now = time.monotonic()
        names = {name for name, at in self._files.due.items() if at <= now}
        if isinstance(changed, set):
            paths = [Path(path) for _, path in changed]
            if not all(p.parent == self.directory and not p.name.startswith("..") for p in paths):
                await self._rescan()
                return
            names.update(p.name for p in paths if self._wants(p.name))
        if now >= self._rescan_at:
            await self._rescan()
        elif names:
            await self._read(sorted(names))

    async def _rescan(self) -> None:
        self._rescan_at = time.monotonic() + RESCAN_MS / 1000
        listed = await anyio.to_thread.run_sync(os.listdir, self.directory)
        names = sorted(filter(self._wants, listed))
        await anyio.to_thread.run_sync(self._files.forget_others, names)
        await self._read([*names, *sorted(set(self._files.names) - set(names))])
        self._complain("")

    def _complain(self, message: str) -> None:
        problems = (Problem(message, str(self.directory)),) if message else ()
        self._store.publish([Invalid(f"{self._origin}:{self.directory}", problems)])

    async def _read(self, names: list[str]) -> None:
        """What went is taken out last: a renamed file's objects then only change hands."""
        gone: list[str] = []
        for i in range(0, len(names), FILES_A_STEP):
            gone += await anyio.to_thread.run_sync(self._files.read, names[i : i + FILES_A_STEP])
        self._files.remove(gone)
