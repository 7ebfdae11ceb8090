# SPDX-License-Identifier: Apache-2.0
"""A file system that is soon full."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cilia.linux.mounts import mount

MS_REMOUNT, MNT_DETACH = 32, 2


@contextmanager
def small_disk(directory: Path) -> Iterator[Callable[[], None]]:
    """Mount a file system of a few pages; yield a function that fills what is left of it."""
    mount("tmpfs", directory)
    libc = ctypes.CDLL(None, use_errno=True)
    path = os.fsencode(directory)
    assert libc.mount(b"none", path, b"tmpfs", MS_REMOUNT, b"size=16k") == 0

    def fill() -> None:
        with (
            pytest.raises(OSError, match="No space"),
            open(directory / "rest", "wb") as rest,
        ):
            rest.write(bytes(1 << 20))

    try:
        yield fill
    finally:
        libc.umount2(path, MNT_DETACH)
