# SPDX-License-Identifier: Apache-2.0
"""Reading a file whose name may lead to anything by now.

A container runtime makes a directory where a file that it is to mount is missing, and a tool that
restores backups keeps pipes: whoever opens one of those to read it waits for ever.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import Final

__all__ = ["MOST_BYTES", "NotRegular", "read_regular"]

#: More than anybody writes who is read like this.
MOST_BYTES: Final = 1 << 26


class NotRegular(OSError):
    """The name leads to no regular file, or to one that is too large."""


def read_regular(path: Path, most_bytes: int = MOST_BYTES, *, follow: bool = True) -> bytes:
    """Return what is in a file, and wait for nobody.

    `follow`: the name may be that of a symbolic link.

    Raises: NotRegular; OSError as the kernel says.
    """
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW)
    try:
        descriptor = os.open(path, flags)
    except OSError as error:
        # A socket, a device that nobody drives, a link that leads to itself or may not be followed.
        if error.errno in (errno.ENXIO, errno.ELOOP):
            raise _refused(path, "is no regular file") from None
        raise
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise _refused(path, "is no regular file")
        with open(descriptor, "rb", closefd=False) as file:
            content = file.read(most_bytes + 1)
    finally:
        os.close(descriptor)
    if len(content) > most_bytes:
        raise _refused(path, f"has more than {most_bytes} bytes")
    return content


def _refused(path: Path, reason: str) -> NotRegular:
    return NotRegular(errno.EINVAL, reason, str(path))
