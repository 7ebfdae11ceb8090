# SPDX-License-Identifier: Apache-2.0
"""Links of this instance that are in force without a pin where theirs should be.

Somebody renamed or removed the directory of the pins, and another directory or process holds the
links still. A second link beside such a one would run the program twice for each packet.
"""

from __future__ import annotations

from collections.abc import Iterator

from bpf.datapath import own_programs
from bpf.errors import NotFound
from bpf.foreign import program_name
from bpf.link import AttachType, Link, LinkInfo, LinkType, all_links, read_hook
from bpf.program import Program
from reconcilers.datapath.link_pins import LinkPins

__all__ = ["stray_link"]

_LISTS = (AttachType.TCX_INGRESS, AttachType.TCX_EGRESS)


def stray_link(
    pins: LinkPins, program: Program, attach_type: AttachType, target_id: int
) -> Link | None:
    """Return the link by which the instance of `pins` runs a program of this name at a hook.

    `target_id`: index of a device in the network namespace of the calling thread, or id of a
    cgroup. A link that goes away meanwhile is none.
    """
    found = {info.program_id: info for info in _links(attach_type, target_id)}
    name = program.info().name if found else ""
    for number in own_programs(pins.pin_dir, found) if found else ():
        if program_name(number) == name and not pins.have(found[number].id):
            try:
                return Link.by_id(found[number].id)
            except NotFound:
                continue
    return None


def _links(attach_type: AttachType, target_id: int) -> Iterator[LinkInfo]:
    if attach_type in _LISTS:
        # Indexes of devices repeat in other namespaces; and most hooks are empty.
        here = read_hook(target_id, attach_type).link_ids
        return (info for info in all_links() if info.id in here) if here else iter(())
    return (i for i in all_links() if i.target == target_id and _is_at(i, attach_type))


def _is_at(info: LinkInfo, attach_type: AttachType) -> bool:
    if attach_type is AttachType.XDP:
        return info.type == LinkType.XDP
    return info.attach_type == attach_type
