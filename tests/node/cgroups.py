# SPDX-License-Identifier: Apache-2.0
"""One control group a node, in every hierarchy of the machine: the root of all that is the node's.

kubelet makes those of the pods below it; programs of the node itself are in `system` of the unified
hierarchy, so that the socket programs of the node's agent see both.
"""

from __future__ import annotations

import shutil
import time
from pathlib import Path

from cilia.linux.mounts import mounts

SYSTEM = "system"


def hierarchies() -> list[Path]:
    """Where control groups are mounted: the v1 controllers and the unified hierarchy."""
    found = {entry.path for entry in mounts() if entry.fstype in ("cgroup", "cgroup2")}
    return sorted(path for path in found if path.is_relative_to("/sys/fs/cgroup"))


def make_node_group(name: str) -> None:
    for root in hierarchies():
        made = root / name
        made.mkdir()
        for setting in ("cpuset.cpus", "cpuset.mems"):  # empty in a new v1 group: no task may enter
            if (root / setting).exists() and (made / setting).exists():
                shutil.copyfile(root / setting, made / setting)
        (made / SYSTEM).mkdir()


def remove_node_group(name: str) -> None:
    """Remove the group with all that is below; its processes must have ended."""
    for root in hierarchies():
        top = root / name
        if not top.exists():
            continue
        for group in sorted(top.rglob("*/"), key=lambda path: len(path.parts), reverse=True):
            if group.is_dir():
                group.rmdir()
        top.rmdir()


def remove_when_empty(name: str, timeout_s: float) -> None:
    """The kernel ends a PID namespace's processes one by one after its first.

    Raises: OSError if a process is there still after `timeout_s`.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            remove_node_group(name)
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
        else:
            return
