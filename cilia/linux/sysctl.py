# SPDX-License-Identifier: Apache-2.0
"""Kernel parameters below /proc/sys.

Names are written as sysctl(8) does: dots between the parts, and a slash for a dot inside one
(`net.ipv4.conf.eth0/100.rp_filter` is device `eth0.100`). `net.*` exists once a network namespace:
the file belongs to the namespace of the thread that opens it.

A container's own /proc/sys is read-only. The node's is mounted elsewhere in it then; the parameters
are the same.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from cilia.linux.errors import KernelError
from cilia.linux.netns import NetNS

__all__ = ["Sysctl", "sysctl_name", "sysctl_path"]

T = TypeVar("T")

PROC = Path("/proc")
_SWAP = str.maketrans("./", "/.")


def sysctl_path(name: str, proc: Path = PROC) -> Path:
    """The file of a parameter.

    Raises:
        ValueError: the name has an empty part, or one that leads out of the tree.
    """
    parts = name.translate(_SWAP).split("/")
    if any(part in ("", ".", "..") for part in parts):
        raise ValueError(f"not the name of a kernel parameter: {name!r}")
    return proc.joinpath("sys", *parts)


def sysctl_name(*parts: str) -> str:
    """The name made of parts that may have dots in them, such as device names.

    >>> sysctl_name("net", "ipv4", "conf", "eth0.100", "rp_filter")
    'net.ipv4.conf.eth0/100.rp_filter'
    """
    return "/".join(parts).translate(_SWAP)


class Sysctl:
    """The parameters as one network namespace sees them; `proc` is where a proc file system is."""

    def __init__(self, netns: NetNS | None = None, proc: Path = PROC) -> None:
        self._netns = netns
        self._proc = proc

    def inside(self, netns: NetNS) -> Sysctl:
        """Return the parameters as another namespace sees them, in the same file system."""
        return Sysctl(netns, self._proc)

    def read(self, name: str) -> str:
        """The value, without its newline; several values keep their tabs.

        Raises:
            FileNotFoundError: this kernel (or namespace) has no such parameter.
        """
        path = sysctl_path(name, self._proc)
        return self._inside(lambda: path.read_text().rstrip("\n"))

    def write(self, name: str, value: str) -> None:
        """Sets the value.

        Raises:
            FileNotFoundError: this kernel (or namespace) has no such parameter.
            KernelError: the file system is read-only.
            OSError: the kernel refused the value (EINVAL) or the writer (EACCES, EPERM).
        """
        path = sysctl_path(name, self._proc)

        def write() -> None:
            # One write(2) without truncation or creation, as the kernel expects.
            with path.open("r+b", buffering=0) as file:
                file.write(value.encode() + b"\n")

        try:
            self._inside(write)
        except OSError as error:
            if error.errno != errno.EROFS:
                raise
            text = f"{path} is read-only: say with --procfs where the node's /proc can be written"
            raise KernelError(errno.EROFS, text) from None

    def _inside(self, work: Callable[[], T]) -> T:
        return work() if self._netns is None else self._netns.run(work)
