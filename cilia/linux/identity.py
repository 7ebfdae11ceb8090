# SPDX-License-Identifier: Apache-2.0
"""Which directory a path leads to: as long as it lives, and not another one of the same numbers.

Numbers of devices and inodes come back: a directory that is removed and made anew often has the
inode of the old one, each mount of tmpfs the same inode, and a device number that was given back.
The time of its birth tells them apart, where the file system keeps that (ext4, xfs, btrfs, tmpfs
since Linux 5.18).
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from struct import unpack_from
from typing import Final, NamedTuple

__all__ = ["Place", "place_of"]

_libc = ctypes.CDLL(None, use_errno=True)

AT_FDCWD: Final = -100
STATX_BTIME: Final = 0x800
# struct statx of <linux/stat.h>: the mask of what is there, and the time of birth.
_BYTES: Final = 256
_MASK: Final = (0, "=I")
_BIRTH: Final = (80, "=qI")


class Place(NamedTuple):
    """What a directory is known by."""

    device: int
    inode: int
    #: In ns; 0 where it is not kept.
    born: int


def place_of(directory: Path) -> Place:
    """Raises: OSError."""
    found = directory.stat()
    return Place(found.st_dev, found.st_ino, _born(directory))


def _born(path: Path) -> int:
    answer = ctypes.create_string_buffer(_BYTES)
    if _libc.statx(AT_FDCWD, os.fsencode(path), 0, STATX_BTIME, answer):
        errno = ctypes.get_errno()
        raise OSError(errno, os.strerror(errno), str(path))
    (mask,) = unpack_from(_MASK[1], answer, _MASK[0])
    if not mask & STATX_BTIME:
        return 0
    seconds, ns = unpack_from(_BIRTH[1], answer, _BIRTH[0])
    return int(seconds * 1_000_000_000 + ns)
