# SPDX-License-Identifier: Apache-2.0
"""Errors of the kernel edge.

KernelError(OSError)     what the kernel refused, with its own words where it has any
├── NetlinkError         a netlink request was answered with an error
│   └── SocketsUnlisted  the kernel cannot list the sockets of a protocol
├── NoDevice             what is asked for hangs on a device that is not there
├── NotOurs              the place is taken by something that someone else made
└── MountError           mount(2) failed
Overrun                  the kernel dropped netlink events: all must be read again
"""

from __future__ import annotations

import errno
import os
from traceback import clear_frames

__all__ = [
    "KernelError",
    "MountError",
    "NetlinkError",
    "NoDevice",
    "NotOurs",
    "Overrun",
    "SocketsUnlisted",
    "raise_if",
    "untangle",
]


class KernelError(OSError):
    """The kernel refused; `errno` says why, the text is a sentence without the number."""

    def __str__(self) -> str:
        return str(self.strerror)


class NetlinkError(KernelError):
    """A netlink request failed; the text carries the kernel's extended acknowledgement."""

    def __init__(self, code: int, what: str, detail: str = "") -> None:
        text = f"{what}: {os.strerror(code)}"
        super().__init__(code, f"{text} ({detail})" if detail else text)
        self.detail = detail


class SocketsUnlisted(NetlinkError):
    """The kernel cannot list the sockets of a protocol: a module of it is missing."""

    def __init__(self, protocol: str) -> None:
        super().__init__(errno.ENOENT, f"list {protocol} sockets", f"no module {protocol}_diag")


class NoDevice(KernelError):
    """A device that something hangs on is not there (yet)."""

    def __init__(self, name: str) -> None:
        super().__init__(errno.ENODEV, f"no device {name}")
        self.name = name


class NotOurs(KernelError):
    """What is asked for would replace something that someone else made."""

    def __init__(self, what: str) -> None:
        super().__init__(errno.EEXIST, what)


class MountError(KernelError):
    """mount(2) failed."""


class Overrun(Exception):
    """The receive buffer of a subscription overflowed (ENOBUFS): events were lost."""


# A frame that refers to an exception which came through it is a cycle. It keeps the frames of all
# callers, and with them what these had in hand, until the garbage collector comes by: a snapshot of
# the tables, for example.


def raise_if(failure: KernelError | None) -> None:
    """Raise an error that was made elsewhere; its caller must have no name for it."""
    if failure is not None:
        try:
            raise failure
        finally:
            del failure


def untangle(error: BaseException) -> None:
    """Take an error of a library apart that is caught for good: the frames that it came through and
    what the library made of its message refer to each other.
    """
    clear_frames(error.__traceback__)
    error.__traceback__ = None
