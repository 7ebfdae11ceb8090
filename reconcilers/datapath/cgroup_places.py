# SPDX-License-Identifier: Apache-2.0
"""How a program gets to a hook of a cgroup: as a link, pinned under the hook's name, and held.

An instance has one cgroup and one program at each of its hooks.
"""

from __future__ import annotations

from pathlib import Path

import structlog

from bpf.errors import Detached, Invalid
from bpf.link import Link, LinkType
from bpf.program import Program
from reconcilers.datapath.attachment_places import ATTACH_TYPES, Attached, attached
from reconcilers.datapath.link_pins import LinkPins
from reconcilers.datapath.stray_links import stray_link
from tables.datapath.attachments import Attachment

__all__ = ["CgroupPlaces"]

log = structlog.get_logger("attachments")


class CgroupPlaces:
    """Links on a cgroup, those of an earlier run too. Used from one thread at a time."""

    def __init__(self, directory: Path) -> None:
        self._pins = LinkPins(directory)

    def name(self, row: Attachment) -> str:
        return row.hook.value

    def attach(self, row: Attachment, target_id: int, target_fd: int, program: Program) -> Attached:
        """Update the link on this cgroup; make one before letting go of a link on another."""
        name = self.name(row)
        if self._pins.was_touched(name):
            log.warning("program was not in force, attaching it again", hook=name)
        link = self._pins.open(name)
        if link is None:
            link = stray_link(self._pins, program, ATTACH_TYPES[row.hook], target_fd, target_id)
        if link is None or not _serves(link, row, target_id, program):
            link = Link.create(program, target_fd, ATTACH_TYPES[row.hook])
        return attached(self._pins.put(name, link))

    def detach(self, name: str) -> None:
        link = self._pins.open(name)
        if link is not None:
            link.detach_if_attached()
            self._pins.remove(name)

    def installed(self) -> dict[str, Attached]:
        return {name: attached(info) for name, info in self._pins.read_all().items()}

    def close(self) -> None:
        """Close the links; what is pinned stays in force."""
        self._pins.close()


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
