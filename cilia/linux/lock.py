# SPDX-License-Identifier: Apache-2.0
"""One agent per state directory, pin directory and cgroup: locks that die with their holder.

flock(2) on the directories themselves, so that two agents with different state directories but one
cgroup still meet. The kernel drops a lock when its holder dies, however it dies; who holds one is
read from /proc/locks, never from a file that may be stale.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path


class AlreadyRunning(Exception):
    """Another process holds the lock; names its pid and the directory."""

    def __init__(self, path: Path, pid: int | None) -> None:
        self.path, self.pid = path, pid
        who = f"pid {pid}" if pid else "a process outside this pid namespace"
        super().__init__(
            f"{path} is in use by another agent ({who}): stop that one, or give this one"
            " its own --instance and --cgroup-root"
        )


def holder_of(path: Path) -> int | None:
    """Pid of the holder of the lock on path; None without one, or in another pid namespace."""
    stat = os.stat(path)
    wanted = f"{os.major(stat.st_dev):02x}:{os.minor(stat.st_dev):02x}:{stat.st_ino}"
    for line in Path("/proc/locks").read_text().splitlines():
        fields = line.split()
        if "FLOCK" in fields and fields[5] == wanted and "->" not in fields:
            return int(fields[4]) or None
    return None


class InstanceLock:
    """Exclusive locks on directories, held until `release` or the end of the process."""

    def __init__(self) -> None:
        self._fds: dict[Path, int] = {}

    def acquire(self, *paths: Path) -> None:
        """Lock all of these directories too, or none. One that is locked already is left alone,
        unless its name leads to another directory by now: then that is locked instead.

        Raises:
            AlreadyRunning: another process holds one; names its pid and the directory.
            FileNotFoundError: there is no such directory (any more).
        """
        locked: dict[Path, int] = {}
        try:
            for path in dict.fromkeys(paths):
                if not self.holds(path):
                    locked[path] = _lock(path)
        except BaseException:
            for fd in locked.values():
                os.close(fd)
            raise
        former = [self._fds[path] for path in locked if path in self._fds]
        self._fds |= locked
        for fd in former:
            os.close(fd)

    def holds(self, path: Path) -> bool:
        """True if what the name leads to now is locked here."""
        fd = self._fds.get(path)
        return fd is not None and _is_at(fd, path)

    def release(self) -> None:
        for fd in self._fds.values():
            os.close(fd)
        self._fds.clear()


def _lock(path: Path) -> int:
    while True:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            raise AlreadyRunning(path, holder_of(path)) from None
        if _is_at(fd, path):
            return fd
        os.close(fd)  # somebody removed or replaced it meanwhile


def _is_at(fd: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), os.stat(path))
    except FileNotFoundError:
        return False
