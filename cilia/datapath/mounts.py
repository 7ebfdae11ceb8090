# SPDX-License-Identifier: Apache-2.0
"""The two file systems that the datapath lives in: found, or mounted and remembered.

What the agent is about to mount is written to the state directory before it is mounted, so that
`cilia cleanup` can undo exactly that, also after a kill in between.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterable
from pathlib import Path

import structlog

from bpf import features
from cilia.datapath.options import DatapathOptions
from cilia.linux.cgroup import find_cgroup2
from cilia.linux.errors import MountError
from cilia.linux.lock import AlreadyRunning, InstanceLock
from cilia.linux.mounts import mount, outlives_process
from cilia.linux.records import read_record, write_record
from cilia.program.directories import own_directory
from cilia.program.errors import ProgramError
from cilia.program.pins import PINS

log = structlog.get_logger("agent")

RECORD = "mounts.json"
MNT_DETACH = 2

_libc = ctypes.CDLL(None, use_errno=True)


def prepare_bpf_root(config: DatapathOptions) -> Path:
    """The BPF file system, mounted if it is not.

    Raises:
        ProgramError: it is not there and cannot be mounted.
    """
    _ensure_mounted(config, "bpf", config.bpf_root, "--bpf-root")
    if not outlives_process(config.bpf_root):
        log.warning(
            "the BPF file system is mounted in a mount namespace of this process:"
            " programs and maps end with it, and traffic with them;"
            " mount it on the host, and share it or name it with --bpf-root",
            path=str(config.bpf_root),
        )
    return config.bpf_root


def prepare_cgroup_root(config: DatapathOptions) -> Path:
    """The cgroup2 directory to attach to: as asked for, or the root of the hierarchy.

    Raises:
        ProgramError: what was asked for is no cgroup2 directory, or none is there and it cannot be
            mounted.
    """
    if config.cgroup_root is not None:
        if not (config.cgroup_root / "cgroup.procs").exists():
            raise ProgramError(
                f"--cgroup-root={config.cgroup_root} is no cgroup v2 directory:"
                " `grep cgroup2 /proc/mounts` shows where the hierarchy is"
            )
        return config.cgroup_root
    found = find_cgroup2()
    if found is None:
        found = config.run_dir / "cgroupv2"
        _ensure_mounted(config, "cgroup2", found, "--cgroup-root")
    return found


# The file system itself is asked: a list of mounts also has those that a later one hides.
_IS = {"bpf": features.is_bpffs, "cgroup2": features.is_cgroup2}


def _ensure_mounted(config: DatapathOptions, fstype: str, path: Path, option: str) -> None:
    if _IS[fstype](path):
        return
    remember_mounts(config.run_dir, [*mounts_of(config.run_dir), (fstype, str(path))])
    try:
        mount(fstype, path)
    except (MountError, OSError) as error:
        raise ProgramError(
            f"no {fstype} file system at {path} and it cannot be mounted ({error.strerror}):"
            f" run as root with CAP_SYS_ADMIN, or mount one and name it with {option}"
        ) from None


def prepare_pin_dir(config: DatapathOptions) -> None:
    """Make the directory of pins, or take one that is ours.

    Raises:
        ProgramError: it is somebody else's, or hidden by a mount.
    """
    own_directory(config.pin_dir)
    for path in (config.pin_dir, *config.pin_dir.iterdir()):
        if not features.is_bpffs(path):
            raise ProgramError(
                f"{path} is in no BPF file system, though it is below one: something is mounted"
                f" over it and hides what is pinned there: `umount {path}`"
            )


def keep_pin_dir(config: DatapathOptions, lock: InstanceLock) -> None:
    """Make sure that the directory of pins is there and ours, whatever somebody did to it.

    Raises:
        ProgramError: it cannot be, and what to do.
    """
    _ensure_mounted(config, "bpf", config.bpf_root, "--bpf-root")
    prepare_pin_dir(config)
    if lock.holds(config.pin_dir):
        return
    try:
        lock.acquire(config.pin_dir)
    except AlreadyRunning as error:
        raise ProgramError(str(error)) from None
    log.warning("the directory of pins was gone and is made anew", path=str(config.pin_dir))


def mounts_of(run_dir: Path) -> list[tuple[str, str]]:
    """Return type and place of the file systems that an instance mounted, as it noted them."""
    return read_record(run_dir / RECORD, list[tuple[str, str]]) or []


def remember_mounts(run_dir: Path, mounted: Iterable[tuple[str, str]]) -> None:
    """Note what an instance mounted; nothing is written if that is known."""
    wanted = list(dict.fromkeys(mounted))
    if wanted != mounts_of(run_dir):
        write_record(run_dir / RECORD, wanted)


def remember_pins(run_dir: Path, pin_dir: Path) -> None:
    """Note where an instance pins, so that its cleanup finds it without being told."""
    known = pin_dirs(run_dir)
    if pin_dir not in known:
        write_record(run_dir / PINS, [str(path) for path in (*known, pin_dir)])


def pin_dirs(run_dir: Path) -> list[Path]:
    """Return the directories that an instance has pinned in, as its agents noted them."""
    return [Path(name) for name in read_record(run_dir / PINS, list[str]) or []]


def unmount_ours(run_dir: Path) -> list[str]:
    """Unmount what the agent mounted, unless someone else keeps things there by now."""
    removed = []
    for fstype, name in mounts_of(run_dir):
        path = Path(name)
        if path.is_mount() and _IS[fstype](path) and not (fstype == "bpf" and _has_pins(path)):
            _unmount(path)
            removed.append(f"mount of {fstype} at {path}")
    return removed


def _has_pins(path: Path) -> bool:
    """Whether anything is there but the kernel's own maps.debug and progs.debug."""
    return any(entry.suffix != ".debug" for entry in path.iterdir())


def _unmount(path: Path) -> None:
    """Gone from view at once; the kernel drops it when the lock on the pin directory is closed."""
    if _libc.umount2(os.fsencode(path), MNT_DETACH) != 0:
        code = ctypes.get_errno()
        raise MountError(code, f"unmount {path}: {os.strerror(code)}", str(path))
