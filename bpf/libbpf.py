# SPDX-License-Identifier: Apache-2.0
"""libbpf through cffi: the only importer of the compiled ``bpf._libbpf``.

Two things happen here and nowhere else: a negative return value becomes an exception of
``bpf.errors`` (``check``), and what libbpf prints is caught, a thread, instead of going to stderr
(``take_log``). A kernel object that is held open is an ``Fd``: closed by ``close()``, by ``with``,
or with its last reference.
"""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from bpf._libbpf import ffi, lib
from bpf.errors import kernel_error

__all__ = [
    "Fd",
    "check",
    "decode",
    "ffi",
    "lib",
    "open_directory",
    "options",
    "possible_cpus",
    "take_log",
]

lib.cilia_log_capture()


def check(rc: int, what: str) -> int:
    """Return ``rc`` if it is no error.

    Raises: the exception of ``bpf.errors`` for ``-rc``, saying ``what`` failed. What libbpf printed
    about it is dropped, or it would pile up; a caller who wants it takes it first.
    """
    if rc < 0:
        lib.cilia_log_clear()
        raise kernel_error(what, -rc)
    return rc


def take_log() -> str:
    """What libbpf printed in this thread since the last call."""
    text = decode(lib.cilia_log_text())
    lib.cilia_log_clear()
    return text


def decode(pointer: Any) -> str:
    """A C string as text; a kernel name is ASCII, a log may quote anything."""
    return str(ffi.string(pointer).decode(errors="replace")) if pointer != ffi.NULL else ""


def options(kind: str, **fields: Any) -> Any:
    """An options struct of libbpf with its size field set."""
    opts = ffi.new(f"struct {kind} *")
    opts.sz = ffi.sizeof(f"struct {kind}")
    for name, value in fields.items():
        setattr(opts, name, value)
    return opts


def possible_cpus() -> int:
    """How many values one entry of a per-CPU map has."""
    return check(lib.libbpf_num_possible_cpus(), "count possible CPUs")


def open_directory(path: Path) -> Fd:
    """A descriptor of a directory, as attach targets are named. Raises: FileNotFoundError."""
    return Fd(os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))


class Fd:
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
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

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
        # A half-made object has no descriptor yet.
        if getattr(self, "_fd", -1) >= 0:
            self.close()
