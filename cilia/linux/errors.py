# SPDX-License-Identifier: Apache-2.0
"""Errors of the kernel edge.

KernelError(OSError)         what the kernel refused, with its own words where it has any
├── NetlinkError             a netlink request was answered with an error
└── MountError               mount(2) failed
Overrun                      the kernel dropped netlink events: what was known must be read again
"""

from __future__ import annotations

import os

__all__ = ["KernelError", "MountError", "NetlinkError", "Overrun"]


class KernelError(OSError):
    """The kernel refused; `errno` says why."""


class NetlinkError(KernelError):
    """A netlink request failed; the text carries the kernel's extended acknowledgement."""

    def __init__(self, errno: int, what: str, detail: str = "") -> None:
        text = f"{what}: {os.strerror(errno)}"
        super().__init__(errno, f"{text} ({detail})" if detail else text)
        self.detail = detail


class MountError(KernelError):
    """mount(2) failed."""


class Overrun(Exception):
    """The receive buffer of a subscription overflowed (ENOBUFS): events were lost."""
