# SPDX-License-Identifier: Apache-2.0
"""Directories that nobody but this program's user may write to."""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from pathlib import Path

from cilia.program.errors import ProgramError

__all__ = ["own_directory"]


def own_directory(path: Path) -> None:
    """Make a directory of mode 0700, or take one that is ours already; its parent is there.

    Raises:
        ProgramError: it is somebody else's, who could rename what is put there, or no directory.
    """
    with suppress(FileExistsError):  # whatever it is
        path.mkdir(mode=0o700)
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode):
        raise ProgramError(f"{path} is no directory: remove it, or name another place")
    if found.st_uid != os.geteuid():
        raise ProgramError(
            f"{path} belongs to user {found.st_uid}, who may change what is in it:"
            " look at it, remove it, and start again"
        )
    if stat.S_IMODE(found.st_mode) & 0o022:
        path.chmod(0o700)
