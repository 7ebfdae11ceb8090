# SPDX-License-Identifier: Apache-2.0
"""What is mounted where, and mounting the two file systems that the datapath lives in.

Read from /proc/self/mountinfo (proc(5)): a path that was mounted over shows its last entry.
"""

from __future__ import annotations

import ctypes
import os
import re
import select
import threading
from collections.abc import Callable
from pathlib import Path

import msgspec

from cilia.linux.errors import MountError

__all__ = [
    "Mount",
    "MountWatch",
    "find_bpffs",
    "is_mounted",
    "mount",
    "mount_bpffs",
    "mounts",
    "outlives_process",
]

BPFFS_DEFAULT = Path("/sys/fs/bpf")

_libc = ctypes.CDLL(None, use_errno=True)
#: Numbers of the first namespaces (include/uapi/linux/nsfs.h, include/linux/proc_ns.h); mount
#: namespaces have a fixed one since Linux 6.17, before it was the first of those that were given.
_FIRST_PID_NAMESPACE = 0xEFFFFFFC
_FIRST_MOUNT_NAMESPACES = {0xEFFFFFF8, 0xF0000000, 0xF0000001}
_OCTAL = re.compile(r"\\([0-7]{3})")


class Mount(msgspec.Struct, frozen=True):
    """One line of mountinfo."""

    path: Path
    root: str  # what of the file system is shown: "/" unless it is a bind mount of a part
    fstype: str
    options: frozenset[str]  # of the mount and of the file system, e.g. "rw", "freezer"
    shared: bool = False  # with other mount namespaces, which keep it


def mounts(text: str | None = None) -> list[Mount]:
    """All mounts of this process, in the order in which they were made.

    `text` is the content of a mountinfo file; without it, this process's own.
    """
    lines = (Path("/proc/self/mountinfo").read_text() if text is None else text).splitlines()
    return [_parse(line) for line in lines]


def _parse(line: str) -> Mount:
    """Fields: id parent device root path options [optional ...] - type source options."""
    before, _, after = line.partition(" - ")
    fields, rest = before.split(" "), after.split(" ")
    options = {*fields[5].split(","), *rest[2].split(",")}
    shared = any(field.startswith("shared:") for field in fields[6:])
    path, root = Path(_unescape(fields[4])), _unescape(fields[3])
    return Mount(path, root, rest[0], frozenset(options), shared)


def _unescape(text: str) -> str:
    """Blanks and backslashes in a path stand as three octal digits."""
    return _OCTAL.sub(lambda match: chr(int(match[1], 8)), text)


def is_mounted(path: Path, fstype: str) -> bool:
    """Whether the last mount at `path` has this type."""
    found = [entry.fstype for entry in mounts() if entry.path == path]
    return bool(found) and found[-1] == fstype


def outlives_process(path: Path) -> bool:
    """True if the mount that `path` is on is still there when this process and its children end.

    It is in the machine's own mount namespace, or it is shared with another one.
    """
    own = os.stat("/proc/self/ns/mnt").st_ino
    try:
        machine = {os.stat("/proc/1/ns/mnt").st_ino} if _is_first_pid_namespace() else set()
    except PermissionError:  # without CAP_SYS_PTRACE
        machine = set()
    if own in machine | _FIRST_MOUNT_NAMESPACES:
        return True
    found = [entry for entry in mounts() if path.is_relative_to(entry.path)]
    return max(found, key=lambda entry: len(entry.path.parts)).shared if found else False


def _is_first_pid_namespace() -> bool:
    return os.stat("/proc/self/ns/pid").st_ino == _FIRST_PID_NAMESPACE


def mount(fstype: str, path: Path) -> None:
    """Mount a fresh instance of a file system that needs no device at `path`, which is made.

    A BPF file system is root's alone: by default everybody may make directories in it, and later
    rename what is pinned there.

    Raises:
        MountError: the kernel refused.
    """
    path.mkdir(parents=True, exist_ok=True)
    source, options = fstype.encode(), b"mode=0700" if fstype == "bpf" else None
    if _libc.mount(source, os.fsencode(path), source, 0, options) != 0:
        code = ctypes.get_errno()
        raise MountError(code, f"mount {fstype} at {path}: {os.strerror(code)}", str(path))


def find_bpffs() -> Path | None:
    """The BPF file system in use: the customary place first, else any whole one."""
    found = [entry.path for entry in mounts() if entry.fstype == "bpf" and entry.root == "/"]
    usable = [path for path in found if is_mounted(path, "bpf")]
    if BPFFS_DEFAULT in usable:
        return BPFFS_DEFAULT
    return usable[0] if usable else None


def mount_bpffs(path: Path = BPFFS_DEFAULT) -> bool:
    """Makes sure that a BPF file system is at `path`; True if it was mounted just now.

    Raises:
        MountError: the kernel refused.
    """
    if is_mounted(path, "bpf"):
        return False
    mount("bpf", path)
    return True


class MountWatch:
    """Calls `tell`, in a thread of its own, whenever something is mounted or unmounted here.

    poll(2) on mountinfo reports each change once, as POLLPRI (proc(5)).
    """

    def __init__(self, tell: Callable[[], None]) -> None:
        self._tell = tell
        self._mountinfo = os.open("/proc/self/mountinfo", os.O_RDONLY | os.O_CLOEXEC)
        self._end = os.eventfd(0, os.EFD_CLOEXEC)
        self._thread = threading.Thread(target=self._run, name="mounts", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        poll = select.poll()
        poll.register(self._mountinfo, select.POLLPRI)
        poll.register(self._end, select.POLLIN)
        while True:
            ready = {descriptor for descriptor, _ in poll.poll()}
            if self._end in ready:
                return
            self._tell()

    def close(self) -> None:
        os.eventfd_write(self._end, 1)
        self._thread.join()
        os.close(self._mountinfo)
        os.close(self._end)
