# SPDX-License-Identifier: Apache-2.0
"""Hear at once when a path leads somewhere else: renames, links, removals and mounts on the way.

An inotify watch is of a directory, not of its name. So the directory of each entry on the way to
the path is watched, the targets of symbolic links included (path_resolution(7)); a mount over one
of them is announced by /proc/self/mountinfo instead.
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final, Self

import anyio.to_thread
from watchfiles._rust_notify import RustNotify

from cilia.linux.mounts import MountWatch

__all__ = ["PathWatch", "entries"]

# Events within this time are taken as one change: an editor makes three or four for one save.
DEBOUNCE_MS: Final = 50
STEP_MS: Final = 25
# As many as the kernel follows.
_MOST_LINKS: Final = 40
# A wait without end is one after the other of this length.
_LONGEST_S: Final = 3600.0


def entries(path: Path) -> Iterator[Path]:
    """Yield each directory entry on the way to `path`, in the order in which they are looked up."""
    parts, at, links = _parts(path.absolute()), Path("/"), 0
    while parts:
        part = parts.pop()
        if part == "..":
            at = at.parent
            continue
        at = at / part
        yield at
        if links == _MOST_LINKS or not at.is_symlink():
            continue
        target = Path(os.readlink(at))
        parts += _parts(target)
        at = Path("/") if target.is_absolute() else at.parent
        links += 1


def _parts(path: Path) -> list[str]:
    """The names of a path, the last one first."""
    return [part for part in reversed(path.parts) if part != "/"]


class PathWatch:
    """Waits for changes on the way to `paths`, and in the directories `contents`.

    A way that leads nowhere is watched as far as it goes. Whoever is told makes a new watch, since
    the ways may be others now. Leave the block to end it.

    Raises:
        OSError: no more watches can be had.
    """

    def __init__(self, paths: Iterable[Path], contents: Iterable[Path] = ()) -> None:
        self.paths = frozenset(paths)
        self._contents = frozenset(contents)
        # Set when a mount made a way lead elsewhere, and to end a wait.
        self._woken = threading.Event()
        self._places = self._look_up()
        self._mounts = MountWatch(self._mounted)
        try:
            self._look()
            self._mounted()  # if it happened before
        except BaseException:
            self._mounts.close()
            raise

    def _look(self) -> None:
        """A way that changed before its watch stood is looked at again."""
        watched: frozenset[Path] | None = None
        while watched != (found := frozenset(e for path in self.paths for e in entries(path))):
            watched = self._entries = found
            self._inside = frozenset(path.resolve() for path in self._contents)
            directories = {entry.parent for entry in found} | self._inside
            usable = [str(d) for d in sorted(directories) if d.is_dir() and os.access(d, os.R_OK)]
            self._notify = RustNotify(usable, False, False, 0, False, False)

    def _mounted(self) -> None:
        """Others mount all the time: only what concerns the ways wakes the wait, which then forgets
        the changes of files that it was about to tell.
        """
        if self._look_up() != self._places:
            self._woken.set()

    def _look_up(self) -> list[tuple[int, int] | None]:
        """The file systems and inodes that the ways lead to; None where there is nothing."""
        return [_place(path) for path in sorted(self.paths)]

    async def wait(self, timeout_s: float = math.inf) -> frozenset[Path]:
        """Return what changed, at the latest after a time: entries on the ways, and in the
        directories. After a mount on the way it returns at once, and has nothing to tell.

        Raises:
            WatchfilesRustInternalError: a name that is no UTF-8 ended the watch.
        """
        deadline = anyio.current_time() + timeout_s
        try:
            while True:
                left_ms = int(1000 * min(deadline - anyio.current_time(), _LONGEST_S))
                changed = await anyio.to_thread.run_sync(
                    self._notify.watch,
                    DEBOUNCE_MS,
                    STEP_MS,
                    max(left_ms, 1),
                    self._woken,
                    abandon_on_cancel=True,
                )
                concerned = self._concerned(changed)
                is_over = self._woken.is_set() or anyio.current_time() >= deadline
                if concerned or is_over:
                    return concerned
        except anyio.get_cancelled_exc_class():
            self._woken.set()  # for the thread
            raise

    def leads_elsewhere(self, changed: frozenset[Path]) -> bool:
        """True if an entry on a way is among what changed, or something was mounted there."""
        return self._woken.is_set() or not self._entries.isdisjoint(changed)

    def _concerned(self, changed: object) -> frozenset[Path]:
        """Others have files beside the entries."""
        paths = [Path(path) for _, path in changed] if isinstance(changed, set) else []
        return frozenset(p for p in paths if p in self._entries or p.parent in self._inside)

    def close(self) -> None:
        self._mounts.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _place(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino
