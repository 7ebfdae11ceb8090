# SPDX-License-Identifier: Apache-2.0
"""How a program gets to a device: as a pinned bpf link, or as a tc filter where there is no TCX.

Each way finds again what is ours without any record: links by their pins in a directory of ours, or
where they are in force though the pins are gone; filters by a handle that begins with our mark, and
by the program that they run: several instances may be on one node. A kill between making a link and
pinning it takes the link along; one between two other steps leaves what the next update or prune
knows how to finish.
"""

from __future__ import annotations

import errno
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Protocol

import msgspec

from bpf import clsact
from bpf.datapath import own_programs
from bpf.descriptors import Fd
from bpf.errors import Detached
from bpf.foreign import ForeignProgram, program_name
from bpf.link import (
    FIRST,
    LAST,
    AttachType,
    Link,
    LinkInfo,
    Place,
    after,
    before,
    read_hook,
)
from bpf.program import Program
from cilia.linux.errors import NetlinkError
from cilia.linux.netlink import Netlink
from cilia.linux.rtnl import FilterMessage
from reconcilers.datapath.link_pins import LinkPins
from reconcilers.datapath.stray_links import stray_link
from tables.datapath.attachments import AttachHook, Attachment, OrderKind

__all__ = [
    "ATTACH_TYPES",
    "Attached",
    "FilterPlaces",
    "LinkPlaces",
    "NotAttached",
    "Places",
    "attached",
    "foreign_filters",
    "has_mark",
    "pin_name",
]

ATTACH_TYPES: Final = {
    AttachHook.INGRESS: AttachType.TCX_INGRESS,
    AttachHook.EGRESS: AttachType.TCX_EGRESS,
    AttachHook.XDP: AttachType.XDP,
    AttachHook.CONNECT4: AttachType.CGROUP_INET4_CONNECT,
    AttachHook.CONNECT6: AttachType.CGROUP_INET6_CONNECT,
    AttachHook.SENDMSG4: AttachType.CGROUP_UDP4_SENDMSG,
    AttachHook.SENDMSG6: AttachType.CGROUP_UDP6_SENDMSG,
    AttachHook.RECVMSG4: AttachType.CGROUP_UDP4_RECVMSG,
    AttachHook.RECVMSG6: AttachType.CGROUP_UDP6_RECVMSG,
    AttachHook.GETPEERNAME4: AttachType.CGROUP_INET4_GETPEERNAME,
    AttachHook.GETPEERNAME6: AttachType.CGROUP_INET6_GETPEERNAME,
    AttachHook.POST_BIND4: AttachType.CGROUP_INET4_POST_BIND,
    AttachHook.POST_BIND6: AttachType.CGROUP_INET6_POST_BIND,
    AttachHook.SOCK_RELEASE: AttachType.CGROUP_INET_SOCK_RELEASE,
}
_LISTS: Final = (AttachHook.INGRESS, AttachHook.EGRESS)


class NotAttached(Exception):
    """What an order is relative to is not at the hook (yet)."""


class Attached(msgspec.Struct, frozen=True):
    """What is at a place: all that is compared when reading back."""

    target_id: int
    program_id: int
    link_id: int = 0


class Places(Protocol):
    """One way of attaching."""

    def name(self, row: Attachment) -> str:
        """What a place is called; it follows from the target's name, the hook and the owner."""
        ...

    def attach(self, row: Attachment, target_id: int, target_fd: int, program: Program) -> Attached:
        """Puts the program at its place, atomically replacing another one of ours there."""
        ...

    def detach(self, name: str) -> None:
        """Takes what is at a place away; absent is success."""
        ...

    def installed(self) -> dict[str, Attached]:
        """Everything of ours that the kernel holds now."""
        ...


def pin_name(row: Attachment) -> str:
    """The name of a link's pin: target, hook and owner."""
    return ":".join(map(_escape, (row.target, row.hook.value, row.owner)))


def _escape(text: str) -> str:
    """A bpffs keeps names with dots for itself: they are written ``=2e``."""
    return "".join(c if c.isalnum() or c in "-_" else f"={ord(c):02x}" for c in text)


class LinkPlaces:
    """TCX and XDP links, each pinned in `directory` under its place's name."""

    def __init__(self, directory: Path) -> None:
        self._pins = LinkPins(directory)

    def name(self, row: Attachment) -> str:
        return pin_name(row)

    def attach(self, row: Attachment, target_id: int, target_fd: int, program: Program) -> Attached:
        name = self.name(row)
        link = self._pins.open(name)
        if link is None:
            link = stray_link(self._pins, program, ATTACH_TYPES[row.hook], target_fd, target_id)
        if link is not None:
            if self._keeps(link, row, target_id) and _swap(link, program):
                return attached(self._pins.put(name, link))
            link.detach_if_attached()  # it is elsewhere, or on the wrong side of its neighbour
        with self._place(row, target_id) as place:
            made = Link.create(
                program, target_fd, ATTACH_TYPES[row.hook], flags=_flags(row), place=place
            )
        return attached(self._pins.put(name, made))

    def detach(self, name: str) -> None:
        link = self._pins.open(name)
        if link is not None:
            link.detach_if_attached()
            self._pins.remove(name)

    def installed(self) -> dict[str, Attached]:
        return {name: attached(info) for name, info in self._pins.read_all().items()}

    def close(self) -> None:
        """Let go of the links; what is pinned stays in force."""
        self._pins.close()

    def _keeps(self, link: Link, row: Attachment, target_id: int) -> bool:
        """Whether a link can stay: at the right target, and on the right side of its neighbour."""
        info = link.info()
        return info.target == target_id and self._is_in_order(info, row, target_id)

    def _is_in_order(self, info: LinkInfo, row: Attachment, target_id: int) -> bool:
        if row.hook not in _LISTS or not row.order.owner:
            return True
        other = self._pins.read(pin_name(_neighbour(row)))
        if other is None:
            return True
        links = read_hook(target_id, ATTACH_TYPES[row.hook]).link_ids
        if other.id not in links or info.id not in links:
            return True
        is_before = links.index(info.id) < links.index(other.id)
        return is_before == (row.order.kind is OrderKind.BEFORE)

    @contextmanager
    def _place(self, row: Attachment, target_id: int) -> Iterator[Place | None]:
        """Valid inside the block, which holds what it is relative to.

        Raises: NotAttached when the neighbour that the order names is not there.
        """
        if row.hook not in _LISTS:
            yield None
        elif row.order.kind is OrderKind.FIRST:
            yield FIRST
        elif row.order.kind is OrderKind.LAST:
            yield LAST
        else:
            relative = before if row.order.kind is OrderKind.BEFORE else after
            with self._open_neighbour(row, target_id) as neighbour:
                yield relative(neighbour)

    def _open_neighbour(self, row: Attachment, target_id: int) -> Fd:
        if row.order.program_id:
            return Program.by_id(row.order.program_id)
        link = self._pins.open(pin_name(_neighbour(row)))
        if link is not None and link.info().target == target_id:
            return Link(os.dup(link.number))
        raise NotAttached(f"{row.order.owner} is not attached to {row.target} {row.hook}")


def _flags(row: Attachment) -> int:
    return row.xdp_mode.flags if row.hook is AttachHook.XDP else 0


def attached(info: LinkInfo) -> Attached:
    """A link as it is compared."""
    return Attached(info.target, info.program_id, info.id)


def _neighbour(row: Attachment) -> Attachment:
    return msgspec.structs.replace(row, owner=row.order.owner)


def _swap(link: Link, program: Program) -> bool:
    """Makes a link run `program`; False if its target went away meanwhile."""
    if link.info().program_id == program.info().id:
        return True
    try:
        link.update(program)
    except Detached:
        return False
    return True


# clsact: the fallback for ingress and egress.

_MARK: Final = 0xC1000000
_MARK_BITS: Final = 0xFF000000
_PARENTS: Final = {
    AttachHook.INGRESS: (clsact.Direction.INGRESS, 0xFFFFFFF2),
    AttachHook.EGRESS: (clsact.Direction.EGRESS, 0xFFFFFFF3),
}
_FIRST_PRIORITY, _LAST_PRIORITY = 100, 50_000


class FilterPlaces:
    """tc filters; the mark and a hash of instance and owner are the handle, the order is the
    priority. `pin_dir` is what an instance has for itself.
    """

    def __init__(self, netlink: Netlink, pin_dir: Path) -> None:
        self._netlink = netlink
        self._pin_dir = pin_dir

    def name(self, row: Attachment) -> str:
        return _filter_name(row.target, row.hook, self._handle(row.owner))

    def attach(self, row: Attachment, target_id: int, target_fd: int, program: Program) -> Attached:
        priority = self._priority(row, target_id)
        direction, _ = _PARENTS[row.hook]
        where = clsact.Filter(target_id, direction, priority, self._handle(row.owner))
        program_id = clsact.attach(program, where)
        for old in self._filters(target_id, row.hook):
            if old.handle == where.handle and old != where:
                clsact.detach(old)
        return Attached(target_id, program_id)

    def detach(self, name: str) -> None:
        for found, where, _ in self._all():
            if found == name:
                clsact.detach(where)

    def installed(self) -> dict[str, Attached]:
        return {
            name: Attached(where.ifindex, program_id) for name, where, program_id in self._all()
        }

    def program_ids(self) -> dict[str, int]:
        """Return the id of the program at each place, by the name of the place."""
        return {name: found.program_id for name, found in self.installed().items()}

    def detach_all(self) -> int:
        """Take away the filters of this instance; returns how many."""
        found = self._all()
        for _, where, _ in found:
            clsact.detach(where)
        return len(found)

    def _all(self) -> list[tuple[str, clsact.Filter, int]]:
        """The filters of this instance: name, place, and the id of the program that they run."""
        marked = [
            (_filter_name(link.name, hook, where.handle), where, program_id)
            for link in self._netlink.links()
            for hook in _PARENTS
            for where in self._filters(link.index, hook)
            if (program_id := clsact.attached(where)) is not None
        ]
        own = own_programs(self._pin_dir, (program_id for _, _, program_id in marked))
        return [found for found in marked if found[2] in own]

    def _filters(self, index: int, hook: AttachHook) -> list[clsact.Filter]:
        """Those of all instances at one hook."""
        direction, parent = _PARENTS[hook]
        return [
            clsact.Filter(index, direction, f.priority, f.handle)
            for f in _filters_below(self._netlink, index, parent)
            if has_mark(f.handle)
        ]

    def _priority(self, row: Attachment, index: int) -> int:
        if row.order.kind is OrderKind.FIRST:
            return _FIRST_PRIORITY
        if row.order.kind is OrderKind.LAST:
            return _LAST_PRIORITY
        handle = self._handle(row.order.owner)
        for other in self._filters(index, row.hook):
            if other.handle == handle:
                step = -1 if row.order.kind is OrderKind.BEFORE else 1
                return other.priority + step
        raise NotAttached(f"{row.order.owner} is not attached to {row.target} {row.hook}")

    def _handle(self, owner: str) -> int:
        """Two instances have each their own at one device."""
        return _MARK | zlib.crc32(f"{self._pin_dir}\0{owner}".encode()) & ~_MARK_BITS


def foreign_filters(netlink: Netlink, index: int, pin_dir: Path) -> Iterator[ForeignProgram]:
    """Programs that others attached to a device's clsact, also other instances than that of
    `pin_dir`. Raises: NetlinkError.
    """
    for direction, parent in _PARENTS.values():
        for found in _filters_below(netlink, index, parent):
            where = clsact.Filter(index, direction, found.priority, found.handle)
            number = clsact.attached(where) if found.kind == "bpf" and found.handle else None
            if number is not None and not own_programs(pin_dir, [number]):
                hook = f"clsact {direction.name.lower()}"
                yield ForeignProgram(index, hook, number, program_name(number))


def _filters_below(netlink: Netlink, index: int, parent: int) -> list[FilterMessage]:
    """None where the device is gone, or has no clsact. Raises: NetlinkError."""
    try:
        return netlink.filters(index, parent)
    except NetlinkError as error:
        if error.errno not in (errno.ENODEV, errno.ENOENT, errno.EINVAL):
            raise
        return []


def _filter_name(device: str, hook: AttachHook, handle: int) -> str:
    return f"{device}:{hook}:{handle:#x}"


def has_mark(handle: int) -> bool:
    """True if a filter's handle bears our mark: an instance made it, this one or another."""
    return handle & _MARK_BITS == _MARK
