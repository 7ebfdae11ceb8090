# SPDX-License-Identifier: Apache-2.0
"""The network namespaces of this machine, each once, without anyone who would announce them.

The kernel lists them nowhere. They are found by the names that container runtimes and iproute2 keep
(mounts in a directory) and by the processes that are in them. One that only a descriptor of some
process keeps alive is not found. Source: namespaces(7).
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from cilia.linux.netns import CLONE_NEWNET, RUN_DIR, NetNS

__all__ = ["DIRECTORIES", "MAX_NAMESPACES", "network_namespaces"]

DIRECTORIES: Final = (RUN_DIR,)
PROC: Final = Path("/proc")
NS_GET_NSTYPE: Final = 0xB703  # linux/nsfs.h
# Far more than pods of a node; a bound for what someone else may fill.
MAX_NAMESPACES: Final = 4096


def network_namespaces(
    directories: Iterable[Path] = DIRECTORIES,
    *,
    limit: int = MAX_NAMESPACES,
    left_out: list[Path] | None = None,
) -> Iterator[NetNS]:
    """The caller's namespace, then the others; each is open until the next one is asked for.

    One that goes while it is being opened was never there, and one that this process may not look
    at (proc(5): PTRACE_MODE_READ) is not found. `left_out` gets the path of the first one beyond
    `limit`.
    """
    missed = [] if left_out is None else left_out
    own = os.stat("/proc/thread-self/ns/net")
    seen: set[int] = set()
    for path in _paths(directories):
        try:
            found = os.stat(path)
            if found.st_dev != own.st_dev or found.st_ino in seen:
                continue  # a name without its mount, or one that was there already
            if len(seen) >= limit:
                missed.append(path)
                return
            seen.add(found.st_ino)
            opened = NetNS.open(path)
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
        with opened:
            if fcntl.ioctl(opened.fd, NS_GET_NSTYPE) == CLONE_NEWNET:
                yield opened


def _paths(directories: Iterable[Path]) -> Iterator[Path]:
    yield Path("/proc/thread-self/ns/net")
    for directory in directories:
        if directory.is_dir():
            yield from sorted(directory.iterdir())
    for name in os.listdir(PROC):
        if name.isdigit():
            yield PROC / name / "ns/net"
