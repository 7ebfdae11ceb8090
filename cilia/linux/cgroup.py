# SPDX-License-Identifier: Apache-2.0
"""Where the unified control group hierarchy (cgroup v2) is, in pure and in hybrid layouts.

Socket programs attach to a cgroup2 directory. A pure machine has it at /sys/fs/cgroup, a hybrid one
beside the v1 controllers (systemd: /sys/fs/cgroup/unified); in a container it may not be visible at
all and is then mounted at a place of our own. Source: cgroups(7), systemd's CGROUP_DELEGATION.
"""

from __future__ import annotations

from pathlib import Path

from cilia.linux.mounts import Mount, is_mounted, mount, mounts

__all__ = ["cgroup2_of", "find_cgroup2", "mount_cgroup2"]

CGROUP2_OWN_MOUNT = Path("/run/cilia/cgroupv2")
_PREFERRED = (Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/unified"))


def find_cgroup2(found: list[Mount] | None = None) -> Path | None:
    """The root of the unified hierarchy; None if it is mounted nowhere.

    The usual places win over others, and whole mounts over those that show a part of the tree.
    """
    listed = mounts() if found is None else found
    last = {entry.path: entry for entry in listed}  # a later mount hides an earlier one
    candidates = [entry for entry in last.values() if entry.fstype == "cgroup2"]
    if not candidates:
        return None

    def rank(entry: Mount) -> tuple[bool, int, str]:
        place = _PREFERRED.index(entry.path) if entry.path in _PREFERRED else len(_PREFERRED)
        return entry.root != "/", place, str(entry.path)

    return min(candidates, key=rank).path


def mount_cgroup2(path: Path = CGROUP2_OWN_MOUNT) -> bool:
    """Makes sure that cgroup2 is at `path`; True if it was mounted just now.

    Raises:
        MountError: the kernel refused.
    """
    if is_mounted(path, "cgroup2"):
        return False
    mount("cgroup2", path)
    return True


def cgroup2_of(pid: int | str, root: Path) -> Path:
    """The cgroup2 directory of a process, below `root`.

    Raises:
        OSError: the process is gone.
        LookupError: it is in no unified hierarchy.
    """
    for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        hierarchy, _, path = line.split(":", 2)
        if hierarchy == "0":
            return root / path.lstrip("/")
    raise LookupError(f"process {pid} is in no cgroup2 hierarchy")
