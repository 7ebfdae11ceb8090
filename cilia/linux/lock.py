# SPDX-License-Identifier: Apache-2.0
"""One agent per state directory, pin directory and cgroup: locks that die with their holder.

flock(2) on the directories themselves, so that two agents with different state directories but one
cgroup still meet. The kernel drops a lock when its holder dies, however it dies; who holds one is
read from /proc/locks, never from a file that may be stale.
"""

from __future__ import annotations

import errno
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
        self._fds: list[int] = []

    def acquire(self, *paths: Path) -> None:
        """Lock these directories too, or release everything.

        Raises:
            AlreadyRunning: another process holds one; names its pid and the directory.
        """
        for path in dict.fromkeys(paths):
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            self._fds.append(fd)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                self.release()
                if error.errno != errno.EWOULDBLOCK:
                    raise
                raise AlreadyRunning(path, holder_of(path)) from None

    def release(self) -> None:
        for fd in self._fds:
            os.close(fd)
        self._fds.clear()
