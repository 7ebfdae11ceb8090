# SPDX-License-Identifier: Apache-2.0
"""How a program gets to a hook of a cgroup: as a link, pinned under the hook's name, and held.

An instance has one cgroup and one program at each of its hooks. The links are held besides their
pins: a pin that is removed by hand then detaches nothing, and is made again.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import structlog

from bpf.errors import Detached, Invalid
from bpf.link import Link, LinkInfo, LinkType
from bpf.program import Program
from reconcilers.datapath.attachment_places import ATTACH_TYPES, Attached, attached
from reconcilers.datapath.link_pins import LinkPins
from tables.datapath.attachments import Attachment

__all__ = ["CgroupPlaces"]

log = structlog.get_logger("attachments")


class _Held(NamedTuple):
    link: Link
    #: As it was when it was attached.
    info: LinkInfo


class CgroupPlaces:
    """Links on a cgroup, those of an earlier run too. Used from one thread at a time."""

    def __init__(self, directory: Path) -> None:
        self._pins = LinkPins(directory)
        self._held: dict[str, _Held] = {}

    def name(self, row: Attachment) -> str:
        return row.hook.value

    def attach(self, row: Attachment, target_id: int, target_fd: int, program: Program) -> Attached:
        """Update the link on this cgroup; make one before letting go of a link on another."""
        name = self.name(row)
        self._warn(name)
        former = self._hold(name)
        link = former
        if link is None or not _serves(link, row, target_id, program):
            link = Link.create(program, target_fd, ATTACH_TYPES[row.hook])
        info = link.info()
        pinned = self._pins.read(name)
        if pinned is None or pinned.id != info.id:
            self._pins.put(name, link)
        self._held[name] = _Held(link, info)
        if former is not None and former is not link:
            former.close()
        return attached(info)

    def detach(self, name: str) -> None:
        link = self._hold(name)
        if link is not None:
            link.detach_if_attached()
            self._pins.remove(name)
            self._held.pop(name).link.close()

    def installed(self) -> dict[str, Attached]:
        return {name: attached(info) for name, info in self._pins.read_all().items()}

    def close(self) -> None:
        """Close the links; what is pinned stays in force."""
        for held in self._held.values():
            held.link.close()
        self._held = {}

    def _hold(self, name: str) -> Link | None:
        """The link that was attached, or else the one that an earlier run pinned."""
        if name not in self._held:
            pinned = self._pins.open(name)
            if pinned is None:
                return None
            self._held[name] = _Held(pinned, pinned.info())
        return self._held[name].link

    def _warn(self, name: str) -> None:
        """Log that somebody took away what was attached here."""
        held = self._held.get(name)
        if held is not None and self._pins.read(name) != held.info:
            log.warning("program was not in force, attaching it again", hook=name)


def _serves(link: Link, row: Attachment, target_id: int, program: Program) -> bool:
    """Make a link run `program`; False if it is elsewhere, or its cgroup went meanwhile."""
    info = link.info()
    wanted = (LinkType.CGROUP, ATTACH_TYPES[row.hook], target_id)
    if (info.type, info.attach_type, info.target) != wanted:
        return False
    try:
        link.update(program)
    except (Detached, Invalid):
        return False
    return True
