# SPDX-License-Identifier: Apache-2.0
"""Descriptors that are owned: closed by ``close()``, by ``with``, or with their last reference."""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType
from typing import Self


def open_directory(path: Path) -> Fd:
    """A descriptor of a directory, as attach targets are named. Raises: FileNotFoundError."""
    return Fd(os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))


class Owned:
    """Something that is closed: by `close`, by `with`, or with its last reference.

    `close` may be called on a half-made object and more than once.
    """

    __slots__ = ()

    def close(self) -> None:
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()


class Fd(Owned):
    """An owned descriptor of a map, program, link or directory."""

    __slots__ = ("_fd",)

    def __init__(self, fd: int) -> None:
        self._fd = fd

    @property
    def number(self) -> int:
        """The descriptor. Raises: ValueError when closed."""
        if self._fd < 0:
            raise ValueError("descriptor is closed")
        return self._fd

    @property
    def closed(self) -> bool:
        return self._fd < 0

    def detach_fd(self) -> int:
        """Hand the descriptor over to the caller; this object is closed then."""
        fd, self._fd = self.number, -1
        return fd

    def close(self) -> None:
        """Close; a second call does nothing."""
        fd, self._fd = getattr(self, "_fd", -1), -1
        if fd >= 0:
            os.close(fd)
