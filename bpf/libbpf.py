# SPDX-License-Identifier: Apache-2.0
"""libbpf through cffi: the only importer of the compiled ``bpf._libbpf``.

Two things happen here and nowhere else: a negative return value becomes an exception of
``bpf.errors`` (``check``), and what libbpf prints is caught, a thread, instead of going to stderr
(``take_log``).
"""

from __future__ import annotations

from typing import Any

from bpf.errors import RequirementMissing, kernel_error

try:
    from bpf._libbpf import ffi, lib
except ImportError as error:
    raise RequirementMissing(
        f"the binding of libbpf does not load ({error}): install libbpf 1.x (Debian: libbpf1), "
        "and build cilia on this machine if it was not"
    ) from error

__all__ = [
    "check",
    "decode",
    "ffi",
    "lib",
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
    """Return the text that libbpf printed in this thread since the last call."""
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
