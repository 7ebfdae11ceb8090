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


def stray_link(
    pins: LinkPins, program: Program, attach_type: AttachType, target: int, target_id: int
) -> Link | None:
    """Return the link by which the instance of `pins` runs a program of this name at a hook.

    `target`: index of a device in the network namespace of the calling thread, or descriptor of a
    cgroup; `target_id`: the index or the cgroup's id. A link that goes away meanwhile is none.
    """
    found = {info.program_id: info for info in _links(attach_type, target, target_id)}
    name = program.info().name if found else ""
    for number in own_programs(pins.pin_dir, found) if found else ():
        if program_name(number) == name and not pins.have(found[number].id):
            try:
                return Link.by_id(found[number].id)
            except NotFound:
                continue
    return None


def _links(attach_type: AttachType, target: int, target_id: int) -> Iterator[LinkInfo]:
    if attach_type is AttachType.XDP:
        kind = LinkType.XDP
        return (i for i in all_links() if i.type == kind and i.target == target_id)
    # Most hooks are empty; and indexes of devices repeat in other namespaces.
    programs = read_hook(target, attach_type).program_ids
    if not programs:
        return iter(())
    return (
        info
        for info in all_links()
        if info.program_id in programs
        and (info.attach_type, info.target) == (attach_type, target_id)
    )
