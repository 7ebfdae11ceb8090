# SPDX-License-Identifier: Apache-2.0
"""Objects from a directory of ordinary Kubernetes manifests, followed as people edit them.

A change is announced by the kernel (inotify), the file is read in a thread once it is at rest,
and ``manifest_files`` says what follows. Files that vanish, are renamed over, or cannot be read
take nothing with them but what they alone had. Nobody waits for a file: one that is not at rest yet
is looked at again later, and the others are served meanwhile. While a file is there of which nobody
knows what was in force from it, the list is not complete: readers are told all the rest.
"""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator, Callable, Iterable
from pathlib import Path
from typing import Final

import anyio.to_thread

from cilia.k8s.directory_files import SETTLE_S, DirectoryFiles
from cilia.k8s.last_readable import LastReadable
from cilia.k8s.manifest_files import READERS, Items, Manifests, manifest_items
from cilia.k8s.objects import K8sObject
from cilia.k8s.store import ObjectStore
from cilia.k8s.watch import Event, Invalid, Problem
from cilia.k8s.watch_state import State, WatchState
from cilia.linux.identity import Place, place_of
from cilia.linux.path_watch import PathWatch

# The whole directory is looked at this often even if nothing was announced (network file systems).
RESCAN_S: Final = 60.0
# How often a directory that went away is looked for, if nothing is announced.
REOPEN_S: Final = 1.0
# How often a copy that could not be written is tried again: nobody tells of room on a disk.
KEEP_AGAIN_S: Final = 5.0
# Files decoded in one go by the thread, between which readers get what there is.
FILES_A_STEP: Final = 200


def is_manifest(name: str) -> bool:
    """Hidden files are what editors and atomic writers have under way."""
    return not name.startswith(".") and os.path.splitext(name)[1] in READERS


class ManifestSource:
    """Reads and watches one directory. ``run`` does the work, ``watch`` is for the readers.

    The files that ``wants`` chooses by name are read once they rest for ``settle_s`` seconds. With
    ``keeps_removed``, a file that goes leaves its objects in force and is a problem. In `copies`,
    what is in force from each file is kept for the next agent. Files named in `always` are asked
    for also if the directory does not have them.
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
        copies: LastReadable | None = None,
        always: Iterable[str] = (),
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
            copies=copies,
        )
        self._always = frozenset(always)
        # Files that are symbolic links: what they lead to is watched too.
        self._links: frozenset[Path] = frozenset()
        self._rescan_at = 0.0
        self._state = WatchState(origin, server=str(directory))
        self._observers: list[Callable[[WatchState], None]] = []

    def observe(self, observer: Callable[[WatchState], None]) -> None:
        """Have the state told now, and each change of it."""
        self._observers.append(observer)
        observer(self._state)

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
            await anyio.to_thread.run_sync(self._files.prepare_copies)
            with PathWatch(self._ways(), [self.directory]) as watch:
                await self._follow_directory(watch)

    async def _follow_directory(self, watch: PathWatch) -> None:
        """Returns when another watch is needed. While there is no directory all stays in force."""
        try:
            # The watch stands before the first reading, so that no change falls between the two.
            place = self._place()
            await self._rescan()
            while watch.paths == self._ways() and self._place() == place:
                self._conclude()
                changed = await watch.wait(self._next_look() - time.monotonic())
                if watch.leads_elsewhere(changed):
                    return
                await self._follow(changed)
        except OSError as error:
            said = f"cannot be read: {error.strerror or error}"
            self._complain(said)
            self._enter(State.FAILED, said)
            if not self._store.complete:
                raise
            await watch.wait(REOPEN_S)

    def _conclude(self) -> None:
        """Say that the list is complete, or that what is missing cannot be read now."""
        store, files = self._store, self._files
        if not store.complete:
            if not files.waiting:
                store.set_complete()
            elif not store.partly and not files.hopeful:
                store.set_partly()
        if store.complete:
            self._enter(State.WATCHING)
        elif store.partly:
            self._enter(State.FAILED, files.unread)
        else:
            self._enter(State.LISTING)

    def _enter(self, state: State, error: str = "") -> None:
        known = self._state
        now = (state, self._store.complete, len(self._store), error)
        if now == (known.state, known.listed, known.objects, known.error):
            return
        known.state, known.listed, known.objects, known.error = now
        for observer in self._observers:
            observer(known)

    def _ways(self) -> set[Path]:
        """The paths of which it matters where they lead."""
        copies = self._files.copies_directory
        return {self.directory, *self._links, *([] if copies is None else [copies])}

    def _place(self) -> Place:
        """The directory that the name leads to now. Raises OSError."""
        return place_of(self.directory)

    def _next_look(self) -> float:
        times = [self._rescan_at, *self._files.due.values()]
        if self._files.has_unkept:
            times.append(time.monotonic() + KEEP_AGAIN_S)
        return min(times)

    async def _follow(self, changed: frozenset[Path]) -> None:
        """Reads the files that were announced, and those that had to rest first.

        Anything but a plain file of the directory may stand behind several of its manifests (the
        ``..data`` link of a mounted ConfigMap, the directory itself): then all are looked at.
        """
        now = time.monotonic()
        names = {name for name, at in self._files.due.items() if at <= now}
        here = self.directory.resolve()
        names |= {path.name for path in changed if path.parent == here and self._wants(path.name)}
        others = any(path.parent != here or path.name.startswith("..") for path in changed)
        others = others or self._place() != self._files.place
        if others or self._links_changed(names) or now >= self._rescan_at:
            await self._rescan()
        else:
            await self._read(sorted(names))

    def _links_changed(self, names: Iterable[str]) -> bool:
        """True if one of these files is a symbolic link now and was none before, or the reverse."""
        paths = (self.directory / name for name in names)
        return any(path.is_symlink() != (path in self._links) for path in paths)

    async def _rescan(self) -> None:
        self._rescan_at = time.monotonic() + RESCAN_S
        names, self._links = await anyio.to_thread.run_sync(self._list)
        place = self._place()
        if place != self._files.place and not names:
            said = await anyio.to_thread.run_sync(self._files.keep_all)
            if said:
                self._complain(said)
                return
        self._files.begin(place)
        await anyio.to_thread.run_sync(self._files.forget_others, names)
        await self._read([*names, *sorted(set(self._files.names) - set(names))])
        self._complain("")

    def _list(self) -> tuple[list[str], frozenset[Path]]:
        """The names of the files, and those that are symbolic links. Raises OSError."""
        with os.scandir(self.directory) as found:
            wanted = [entry for entry in found if self._wants(entry.name)]
        links = frozenset(Path(entry.path) for entry in wanted if entry.is_symlink())
        names = sorted(self._always.union(entry.name for entry in wanted))
        return names, links

    def _complain(self, message: str) -> None:
        problems = (Problem(message, str(self.directory)),) if message else ()
        self._store.publish([Invalid(f"{self._origin}:{self.directory}", problems)])

    async def _read(self, names: list[str]) -> None:
        """What went is taken out last: a renamed file's objects then only change hands."""
        gone: list[str] = []
        for i in range(0, len(names), FILES_A_STEP):
            gone += await anyio.to_thread.run_sync(self._files.read, names[i : i + FILES_A_STEP])
        await anyio.to_thread.run_sync(self._files.finish, gone)
