# SPDX-License-Identifier: Apache-2.0
"""Features of this kernel and machine, found by trying, never by version.

The ``require_…`` functions turn what is missing into one sentence that says what to do; the others
let a program choose between two ways of doing a thing.
"""

from __future__ import annotations

import os
import platform
import socket
from functools import cache
from pathlib import Path

from bpf.errors import Invalid, KernelError, NoPrivilege, RequirementMissing, Unsupported
from bpf.libbpf import check, ffi, lib
from bpf.link import AttachType, read_hook
from bpf.maps.map import Map
from bpf.maps.types import MapType

#: ``enum bpf_prog_type`` and helper numbers used in probes.
PROG_SCHED_CLS = 3
PROG_XDP = 6
PROG_CGROUP_SOCK_ADDR = 18
HELPER_GET_NETNS_COOKIE = 122
HELPER_SET_RETVAL = 187

KERNEL_BTF = Path("/sys/kernel/btf/vmlinux")
#: Where netfilter's connections are a module.
CONNTRACK_BTF = Path("/sys/kernel/btf/nf_conntrack")
#: Functions for programs, all of which have to be there (Linux 5.19).
CONNTRACK_FUNCTIONS = (b"bpf_skb_ct_lookup", b"bpf_xdp_ct_lookup", b"bpf_ct_release")
BPFFS_MAGIC = 0xCAFE4A11
CGROUP2_MAGIC = 0x63677270

#: The same in every network namespace.
LOOPBACK_IFINDEX = 1

#: Linux 5.14; not in Python's socket module.
SO_NETNS_COOKIE = 71


@cache
def has_program_type(program_type: int) -> bool:
    """Return True if programs of a type can be loaded."""
    return bool(lib.libbpf_probe_bpf_prog_type(program_type, ffi.NULL) == 1)


@cache
def has_helper(program_type: int, helper: int) -> bool:
    """Return True if programs of a type may call a helper."""
    return bool(lib.libbpf_probe_bpf_helper(program_type, helper, ffi.NULL) == 1)


@cache
def has_tcx() -> bool:
    """Return True if devices have TCX hooks (Linux 6.6); without them clsact is the way."""
    try:
        read_hook(LOOPBACK_IFINDEX, AttachType.TCX_INGRESS)
    except (Invalid, Unsupported):
        return False
    return True


def has_conntrack_lookup() -> bool:
    """Return True if programs may look up netfilter's connections. Asked anew each time: the module
    may come later.
    """
    return any(
        path.exists() and _types_name(path.read_bytes(), CONNTRACK_FUNCTIONS)
        for path in (KERNEL_BTF, CONNTRACK_BTF)
    )


def _types_name(btf: bytes, names: tuple[bytes, ...]) -> bool:
    return all(b"\0" + name + b"\0" in btf for name in names)


def netns_cookie() -> int:
    """The kernel's number of this thread's network namespace, 0 before Linux 5.14."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            raw = probe.getsockopt(socket.SOL_SOCKET, SO_NETNS_COOKIE, 8)
        except OSError:
            return 0
    return int.from_bytes(raw, "little")


def is_bpffs(path: Path) -> bool:
    """Return True if a directory lies on a bpffs."""
    return bool(lib.cilia_fs_type(os.fsencode(path)) == BPFFS_MAGIC)


def is_cgroup2(path: Path) -> bool:
    """Return True if a directory is a cgroup of the unified hierarchy."""
    return bool(lib.cilia_fs_type(os.fsencode(path)) == CGROUP2_MAGIC)


def mount_bpffs(path: Path) -> None:
    """Mount a bpffs on a directory, which is made if need be. Raises: NoPrivilege, NotFound."""
    path.mkdir(parents=True, exist_ok=True)
    check(lib.cilia_mount_bpffs(os.fsencode(path)), f"mount bpffs on {path}")


def require_privilege() -> None:
    """Raises: RequirementMissing unless this process may make BPF maps."""
    try:
        Map.create(MapType.ARRAY, "cilia_probe", 4, 4, 1).close()
    except NoPrivilege as error:
        raise RequirementMissing(
            "no privilege to use BPF: run as root, or with CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON"
        ) from error
    except KernelError as error:
        raise RequirementMissing(
            f"the kernel refuses BPF maps ({error}): it needs CONFIG_BPF_SYSCALL"
        ) from error


def require_kernel() -> None:
    """Raises: RequirementMissing when the kernel lacks what every program here uses."""
    if not has_program_type(PROG_CGROUP_SOCK_ADDR):
        raise RequirementMissing(
            f"kernel {platform.release()} has no socket-address programs: "
            "it needs CONFIG_CGROUP_BPF and CONFIG_BPF_SYSCALL"
        )
    if not has_helper(PROG_CGROUP_SOCK_ADDR, HELPER_GET_NETNS_COOKIE):
        raise RequirementMissing(
            f"kernel {platform.release()} is too old: it has no bpf links for cgroups (Linux 5.7); "
            "use Linux 6.1 or newer"
        )


def require_btf() -> None:
    """Raises: RequirementMissing when the kernel does not describe its types."""
    if not KERNEL_BTF.exists():
        raise RequirementMissing(
            f"no {KERNEL_BTF}: use a kernel built with CONFIG_DEBUG_INFO_BTF, as distributions' are"
        )


def require_bpffs(path: Path) -> None:
    """Raises: RequirementMissing unless ``path`` lies on a bpffs."""
    if not is_bpffs(path):
        raise RequirementMissing(
            f"{path} is not on a bpffs: mount one with `mount -t bpf bpf /sys/fs/bpf`"
        )


def require_cgroup2(path: Path) -> None:
    """Raises: RequirementMissing unless ``path`` is a cgroup2 directory."""
    if not is_cgroup2(path):
        raise RequirementMissing(
            f"{path} is not a cgroup2 directory: mount one with `mount -t cgroup2 none DIRECTORY`"
        )
