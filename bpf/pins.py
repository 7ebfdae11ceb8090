# SPDX-License-Identifier: Apache-2.0
"""Pins: names of kernel objects in a bpffs, which outlive the process.

bpffs keeps names with a dot for itself and renames atomically over an existing name, so an object
is replaced by pinning it beside its predecessor as ``NAME~new`` and renaming: at no moment is there
no pin. A ``~new`` that a killed process left goes with the next replacement of that name, or when
its directory is cleared of what nobody wants.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from bpf.libbpf import check, lib

#: Suffix of a pin that has not taken its place yet.
NEW = "~new"


def pin(fd: int, path: Path, *, name: Path | None = None) -> None:
    """Pin an object at a free path; `name` is what a message calls it.

    Raises: Exists, NoPrivilege (also for a name with a dot, and where there is no BPF file system).
    """
    check(lib.bpf_obj_pin(fd, os.fsencode(path)), f"pin {name or path}")


def replace(fd: int, path: Path) -> None:
    """Pin an object at ``path`` and atomically take over whatever is there."""
    new = path.with_name(path.name + NEW)
    new.unlink(missing_ok=True)
    pin(fd, new, name=path)
    new.rename(path)


def open_pin(path: Path) -> int:
    """The descriptor of a pinned object, owned by the caller. Raises: NotFound."""
    return check(lib.bpf_obj_get(os.fsencode(path)), f"open pin {path}")


def unpin(path: Path) -> None:
    """Remove a pin if it is there."""
    path.unlink(missing_ok=True)


def remove_tree(directory: Path) -> None:
    """Remove every pin below a directory, and the directory."""
    if directory.is_dir():
        shutil.rmtree(directory)
