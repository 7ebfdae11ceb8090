# SPDX-License-Identifier: Apache-2.0
"""The last readable state of each manifest file, kept for the time after a restart.

While an agent runs, what was in force from a file that is broken now stays in force. An agent that
starts anew does not know what that was, and would remove it from the kernel: so the bytes of each
file that was read without a problem are kept, under a digest of its name, until the file goes.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

import structlog

from cilia.linux.records import replace_file

__all__ = ["LastReadable"]

log = structlog.get_logger("manifests")


class LastReadable:
    """Copies of files in a directory of our own. That one cannot be kept is told in the log: the
    file itself is in force."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def keep(self, name: str, data: bytes) -> None:
        """Replace the copy of a file as a whole."""
        path = self._path(name)
        try:
            if self._read(path) == data:
                return
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            # Not durable: after a power cut the kernel has nothing that a copy could keep in force.
            replace_file(path, data)
        except OSError as error:
            log.warning("no copy of a manifest is kept", file=name, error=str(error))

    def last(self, name: str) -> bytes | None:
        """Return the copy, or None where there is none that can be read."""
        try:
            return self._read(self._path(name))
        except OSError as error:
            log.warning("the copy of a manifest cannot be read", file=name, error=str(error))
            return None

    def retain(self, names: Iterable[str]) -> None:
        """Remove the copies of all other files."""
        wanted = {self._path(name).name for name in names}
        try:
            found = os.listdir(self._directory)
        except OSError:
            return  # nothing was kept
        for copy in found:
            if copy not in wanted:
                (self._directory / copy).unlink(missing_ok=True)

    @staticmethod
    def _read(path: Path) -> bytes | None:
        try:
            return path.read_bytes()
        except FileNotFoundError:
            return None

    def _path(self, name: str) -> Path:
        return self._directory / hashlib.sha256(os.fsencode(name)).hexdigest()
