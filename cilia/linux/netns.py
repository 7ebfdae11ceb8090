# SPDX-License-Identifier: Apache-2.0
"""Network namespaces: open things inside one without moving the process into it.

setns(2) moves one thread. Work in another namespace therefore runs in a thread made for it, which
ends afterwards and cannot leave a pooled thread in the wrong place; what it opened (a socket, a
file under /proc/sys/net) stays bound to that namespace for good.
"""

from __future__ import annotations

import ctypes
import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import TypeVar

__all__ = ["NetNS"]

T = TypeVar("T")

CLONE_NEWNET = 0x40000000
MS_BIND = 4096
MNT_DETACH = 2
RUN_DIR = Path("/run/netns")

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result != 0:
        errno = ctypes.get_errno()
        raise OSError(errno, f"{what}: {os.strerror(errno)}")


def _setns(fd: int) -> None:
    _check(_libc.setns(fd, CLONE_NEWNET), "setns")


def _run_in_thread(work: Callable[[], T]) -> T:
    result: list[T] = []
    failure: list[BaseException] = []

    def body() -> None:
        try:
            result.append(work())
        except BaseException as error:  # noqa: BLE001 - handed to the caller, below
            failure.append(error)

    thread = threading.Thread(target=body, name="netns")
    thread.start()
    thread.join()
    if failure:
        raise failure[0]
    return result[0]


class NetNS:
    """An open network namespace: a descriptor of nsfs, closed by `close` or the `with` block."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    @classmethod
    def open(cls, path: str | Path) -> NetNS:
        """The namespace behind a path such as /run/netns/NAME or /proc/PID/ns/net.

        Raises:
            OSError: the path does not exist or may not be read.
        """
        return cls(os.open(path, os.O_RDONLY | os.O_CLOEXEC))

    @classmethod
    def current(cls) -> NetNS:
        """The namespace of the calling thread."""
        return cls.open("/proc/thread-self/ns/net")

    @classmethod
    def new(cls) -> NetNS:
        """A fresh namespace without a name: it lives as long as someone holds it open.

        Raises:
            OSError: EPERM without CAP_SYS_ADMIN.
        """

        def unshare() -> NetNS:
            _check(_libc.unshare(CLONE_NEWNET), "unshare")
            return cls.current()

        return _run_in_thread(unshare)

    @classmethod
    def create(cls, name: str) -> NetNS:
        """A fresh namespace under a name, at /run/netns/NAME as iproute2 keeps them.

        Raises:
            FileExistsError: the name is taken.
            OSError: EPERM without CAP_SYS_ADMIN.
        """
        RUN_DIR.mkdir(mode=0o755, exist_ok=True)
        path = RUN_DIR / name
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDONLY, 0))
        made = cls.new()
        try:
            _check(_libc.mount(made.path.encode(), os.fsencode(path), None, MS_BIND, None), "mount")
        except OSError:
            path.unlink()
            made.close()
            raise
        return made

    @staticmethod
    def remove(name: str) -> None:
        """Takes the name away; the namespace goes when nobody is in it. A free name is no error.

        Raises:
            OSError: EPERM without CAP_SYS_ADMIN.
        """
        path = RUN_DIR / name
        if path.exists():
            _libc.umount2(os.fsencode(path), MNT_DETACH)  # EINVAL: the name was never mounted
            path.unlink()

    @staticmethod
    def names() -> list[str]:
        """The names that are in use."""
        return sorted(path.name for path in RUN_DIR.iterdir()) if RUN_DIR.is_dir() else []

    @classmethod
    def named(cls, name: str) -> NetNS:
        """The namespace with this name. Raises: OSError if there is none."""
        return cls.open(RUN_DIR / name)

    def enter(self) -> None:
        """Moves the calling thread, for programs that live inside: before they start others.

        Raises:
            OSError: EPERM without CAP_SYS_ADMIN.
        """
        _setns(self._fd)

    @property
    def fd(self) -> int:
        """The descriptor, as IFLA_NET_NS_FD and setns(2) want it."""
        return self._fd

    @property
    def path(self) -> str:
        """A path that leads here for other processes, while this object is open."""
        return f"/proc/{os.getpid()}/fd/{self._fd}"

    @property
    def inode(self) -> int:
        """The number that identifies the namespace on this machine."""
        return os.fstat(self._fd).st_ino

    def run(self, work: Callable[[], T]) -> T:
        """Calls `work` inside the namespace, in a thread of its own; raises what it raises."""

        def body() -> T:
            _setns(self._fd)
            return work()

        return _run_in_thread(body)

    def socket(self, family: int, kind: int, protocol: int = 0) -> socket.socket:
        """A socket that belongs to this namespace, whichever thread uses it later."""
        return self.run(lambda: socket.socket(family, kind, protocol))

    def close(self) -> None:
        """Gives the descriptor back; idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> NetNS:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
