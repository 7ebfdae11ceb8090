# SPDX-License-Identifier: Apache-2.0
"""bpf links: an attachment as a kernel object that can be pinned, inspected and re-pointed.

A link keeps its program attached for as long as someone holds it; pinned, it needs no process.
``update`` puts another program in the same place in one step: no packet and no system call sees the
hook empty.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from enum import IntEnum
from pathlib import Path
from typing import NamedTuple

from bpf.descriptors import Fd
from bpf.errors import Busy, Detached, Invalid, NotFound
from bpf.libbpf import check, ffi, lib, options
from bpf.pins import open_pin


class AttachType(IntEnum):
    """``enum bpf_attach_type``: the hooks that are used here."""

    CGROUP_INET4_CONNECT = 10
    CGROUP_INET6_CONNECT = 11
    CGROUP_INET4_POST_BIND = 12
    CGROUP_INET6_POST_BIND = 13
    CGROUP_UDP4_SENDMSG = 14
    CGROUP_UDP6_SENDMSG = 15
    CGROUP_UDP4_RECVMSG = 19
    CGROUP_UDP6_RECVMSG = 20
    CGROUP_INET4_GETPEERNAME = 29
    CGROUP_INET6_GETPEERNAME = 30
    CGROUP_INET_SOCK_RELEASE = 34
    SK_LOOKUP = 36
    XDP = 37
    TCX_INGRESS = 46
    TCX_EGRESS = 47


class LinkType(IntEnum):
    """``enum bpf_link_type``: the kinds that are used here."""

    UNKNOWN = 0
    CGROUP = 3
    NETNS = 5
    XDP = 6
    TCX = 11


class LinkInfo(NamedTuple):
    """The kernel's description of a link."""

    type: int
    id: int
    program_id: int
    #: ``AttachType``; 0 for links whose type says it all (XDP).
    attach_type: int
    #: cgroup id, inode of the network namespace or interface index; 0 once the target is gone.
    target: int


class Place(NamedTuple):
    """A place in a hook's list of programs: see ``FIRST``, ``LAST``, ``before`` and ``after``."""

    flags: int = 0
    relative_fd: int = 0


_BEFORE, _AFTER, _RELATIVE_IS_LINK = 1 << 3, 1 << 4, 1 << 13

FIRST = Place(_BEFORE)
LAST = Place(_AFTER)


def before(other: Fd) -> Place:
    """Directly before a program or link."""
    return Place(_BEFORE | _kind_of(other), other.number)


def after(other: Fd) -> Place:
    """Directly after a program or link."""
    return Place(_AFTER | _kind_of(other), other.number)


def _kind_of(other: Fd) -> int:
    return _RELATIVE_IS_LINK if isinstance(other, Link) else 0


class Hook(NamedTuple):
    """The programs of a hook, in order."""

    revision: int
    program_ids: tuple[int, ...]
    #: 0 where a program was attached without a link.
    link_ids: tuple[int, ...]


class Link(Fd):
    """A held attachment. Closing it detaches the program unless the link is pinned."""

    __slots__ = ()

    @classmethod
    def create(
        cls,
        program: Fd,
        target: int,
        attach_type: AttachType,
        *,
        flags: int = 0,
        place: Place | None = None,
        expected_revision: int = 0,
    ) -> Link:
        """Attach ``program``.

        ``target``: descriptor of the cgroup or network namespace, or an interface index. ``place``
        and ``expected_revision`` are for hooks with a list of programs (TCX): where in the list,
        and the ``Hook.revision`` that the choice was made on.

        Raises: NoPrivilege, Invalid (a kernel without such links), Exists (the program is on this
        hook already), Busy (XDP: another program holds the device), DeviceGone, StaleRevision.
        """
        place = place or Place()
        fd = lib.cilia_link_create(
            program.number,
            target,
            attach_type,
            flags | place.flags,
            place.relative_fd,
            expected_revision,
        )
        return cls(check(fd, f"attach to {attach_type.name.lower()}"))

    @classmethod
    def open_pinned(cls, path: Path) -> Link:
        """The link pinned at ``path``. Raises: NotFound."""
        return cls(open_pin(path))

    @classmethod
    def by_id(cls, link_id: int) -> Link:
        """A link by the kernel's number. Raises: NotFound when it is gone."""
        return cls(check(lib.bpf_link_get_fd_by_id(link_id), f"link {link_id}"))

    def info(self) -> LinkInfo:
        """Ask the kernel what the link holds, and where."""
        out = ffi.new("struct cilia_link_info *")
        check(lib.cilia_link_info(self.number, out), "info of link")
        return LinkInfo(out.type, out.id, out.prog_id, out.attach_type, out.target)

    def update(self, program: Fd) -> None:
        """Atomically put ``program`` in the place of the present one.

        Raises: Detached when the target is gone; Invalid when the program is of another type.
        """
        opts = options("bpf_link_update_opts")
        check(lib.bpf_link_update(self.number, program.number, opts), "update link")

    def detach(self) -> None:
        """Detach now, whoever else holds or pins the link."""
        check(lib.bpf_link_detach(self.number), "detach link")

    def detach_if_attached(self) -> None:
        """The same; a link whose target is gone is detached already."""
        try:
            self.detach()
        except (Detached, Invalid):
            return


def cgroup_id(path: Path) -> int:
    """The kernel's id of a cgroup: its inode number on a 64-bit machine."""
    return os.stat(path).st_ino


def read_hook(target: int, attach_type: AttachType) -> Hook:
    """The programs of a TCX hook. Raises: DeviceGone, Invalid on a kernel without TCX."""
    out = ffi.new("struct cilia_hook *")
    check(lib.cilia_hook_query(target, attach_type, out), f"read {attach_type.name.lower()}")
    count = out.count
    return Hook(out.revision, tuple(out.prog_ids[0:count]), tuple(out.link_ids[0:count]))


def all_links() -> Iterator[LinkInfo]:
    """Every link in the kernel; one that is just being made or going away is passed over."""
    number = ffi.new("uint32_t *")
    while True:
        try:
            check(lib.bpf_link_get_next_id(number[0], number), "list links")
        except NotFound:
            return
        try:
            with Link.by_id(number[0]) as link:
                yield link.info()
        except (NotFound, Busy):
            continue
