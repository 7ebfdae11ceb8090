# SPDX-License-Identifier: Apache-2.0
"""Hear at once when a path leads somewhere else: renames, links, removals and mounts on the way.

An inotify(7) watch is of a directory, not of its name. So the directory of each entry on the way to
the path is watched, the targets of symbolic links included (path_resolution(7)); a mount over one
of them is announced by /proc/self/mountinfo instead.
"""

from __future__ import annotations

import ctypes
import errno
import math
import os
import select
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final, Self

import anyio
import inotify_simple
from inotify_simple import INotify, flags

from cilia.linux.mounts import MountWatch

__all__ = ["PathWatch", "entries"]

# Its own search for the C library starts a process, which has our locks until it executes.
inotify_simple._libc = ctypes.CDLL(None, use_errno=True)

# Events within this time are taken as one change: an editor makes three or four for one save.
DEBOUNCE_S: Final = 0.03
# As many as the kernel follows.
_MOST_LINKS: Final = 40
# A name comes, goes, or leads to other content or permissions.
_EVENTS: Final = (
    flags.CREATE
    | flags.DELETE
    | flags.MOVED_FROM
    | flags.MOVED_TO
    | flags.MODIFY
    | flags.CLOSE_WRITE
    | flags.ATTRIB
    | flags.ONLYDIR
)


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
        OSError: no more watches can be had; it names the setting that is too low.
    """

    def __init__(self, paths: Iterable[Path], contents: Iterable[Path] = ()) -> None:
        self.paths = frozenset(paths)
        self._contents = frozenset(contents)
        self._inotify = _new_inotify()
        # A mount made a way lead elsewhere, or events were lost. The descriptor ends a wait.
        self._is_elsewhere = False
        self._elsewhere = os.eventfd(0, os.EFD_CLOEXEC)
        self._ready = select.epoll()
        for descriptor in (self._inotify.fileno(), self._elsewhere):
            self._ready.register(descriptor, select.EPOLLIN)
        self._places = self._look_up()
        self._mounts: MountWatch | None = None
        try:
            self._mounts = MountWatch(self._mounted)
            self._look()
            self._mounted()  # if it happened before
        except BaseException:
            self.close()
            raise

    def _look(self) -> None:
        """A way that changed before its watch stood is looked at again."""
        watched: frozenset[Path] | None = None
        while watched != (found := frozenset(e for path in self.paths for e in entries(path))):
            watched = self._entries = found
            self._inside = frozenset(path.resolve() for path in self._contents)
            self._directories: dict[int, set[Path]] = {}
            for directory in {entry.parent for entry in found} | self._inside:
                try:
                    number = self._inotify.add_watch(directory, _EVENTS)
                except (FileNotFoundError, NotADirectoryError, PermissionError):
                    continue  # the way is watched as far as it goes
                except OSError as error:
                    raise _too_low(error, "max_user_watches") from None
                # Two paths of one directory (a bind mount) have one number.
                self._directories.setdefault(number, set()).add(directory)

    def _mounted(self) -> None:
        """Others mount all the time: only what concerns the ways ends the wait."""
        if self._look_up() != self._places:
            self._lead_elsewhere()

    def _lead_elsewhere(self) -> None:
        self._is_elsewhere = True
        os.eventfd_write(self._elsewhere, 1)

    def _look_up(self) -> list[tuple[int, int] | None]:
        """The file systems and inodes that the ways lead to; None where there is nothing."""
        return [_place(path) for path in sorted(self.paths)]

    async def wait(self, timeout_s: float = math.inf) -> frozenset[Path]:
        """Return what changed, at the latest after a time: entries on the ways, and in the
        directories. It is empty after a mount on the way, or when events were lost.
        """
        with anyio.move_on_after(timeout_s):
            while True:
                await anyio.wait_readable(self._ready.fileno())
                if not self._is_elsewhere:
                    await anyio.sleep(DEBOUNCE_S)
                changed = self._changed()
                if changed or self._is_elsewhere:
                    return changed
        return frozenset()

    def _changed(self) -> frozenset[Path]:
        """Others have files beside the entries."""
        changed: set[Path] = set()
        for event in self._inotify.read(timeout=0):
            if event.mask & flags.Q_OVERFLOW:
                self._lead_elsewhere()
            if event.name:
                changed.update(d / event.name for d in self._directories.get(event.wd, ()))
        return frozenset(p for p in changed if p in self._entries or p.parent in self._inside)

    def leads_elsewhere(self, changed: frozenset[Path]) -> bool:
        """True if an entry on a way is among what changed, something was mounted there, or events
        were lost.
        """
        return self._is_elsewhere or not self._entries.isdisjoint(changed)

    def close(self) -> None:
        if self._mounts is not None:
            self._mounts.close()
        self._ready.close()
        self._inotify.close()
        os.close(self._elsewhere)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _new_inotify() -> INotify:
    """Raises: OSError."""
    try:
        return INotify(nonblocking=True)
    except OSError as error:
        raise _too_low(error, "max_user_instances") from None


def _too_low(error: OSError, setting: str) -> OSError:
    """Others of the machine use the same few; the kernel's words speak of files or of a disk."""
    if error.errno not in (errno.EMFILE, errno.ENOSPC):
        return error
    text = f"no more inotify watches: raise fs.inotify.{setting} by sysctl"
    return OSError(error.errno, text)


def _place(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino
