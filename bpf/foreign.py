# SPDX-License-Identifier: Apache-2.0
"""Programs of others on the hooks where ours are.

Only hooks with a list of programs can have some: a cgroup's, and those of TCX. A device runs one
XDP program, so that another one there shows as ours being refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from bpf.descriptors import open_directory
from bpf.errors import DeviceGone, NotFound
from bpf.link import AttachType, Link, LinkInfo, LinkType, cgroup_id, read_hook
from bpf.program import Program


class ForeignProgram(NamedTuple):
    """A program that somebody else attached."""

    #: Index of the device; 0 for the cgroup.
    ifindex: int
    #: As in ``AttachType``, in words.
    hook: str
    program_id: int
    name: str


def foreign_programs(pin_directories: Iterable[Path], cgroup: Path) -> list[ForeignProgram]:
    """Who shares a hook with the links that are pinned there, in order of device and hook.

    A hook that goes away while it is read has nobody.
    """
    ours = [info for directory in pin_directories for info in _pinned(directory)]
    programs = {info.program_id for info in ours}
    hooks = {(info.type, info.target, info.attach_type) for info in ours}
    found: list[ForeignProgram] = []
    for kind, target, attach_type in sorted(hooks):
        others = [n for n in _programs(kind, target, attach_type, cgroup) if n not in programs]
        hook = AttachType(attach_type).name.lower().replace("_", " ") if others else ""
        ifindex = target if kind == LinkType.TCX else 0
        found += [ForeignProgram(ifindex, hook, number, program_name(number)) for number in others]
    return found


def _pinned(directory: Path) -> Iterator[LinkInfo]:
    for path in directory.iterdir() if directory.is_dir() else ():
        try:
            with Link.open_pinned(path) as link:
                yield link.info()
        except NotFound:
            continue  # detached and unpinned meanwhile


def _programs(kind: int, target: int, attach_type: int, cgroup: Path) -> tuple[int, ...]:
    if kind not in (LinkType.TCX, LinkType.CGROUP) or not target:
        return ()
    try:
        if kind == LinkType.TCX:
            return read_hook(target, AttachType(attach_type)).program_ids
        if target != cgroup_id(cgroup):
            return ()
        with open_directory(cgroup) as descriptor:
            return read_hook(descriptor.number, AttachType(attach_type)).program_ids
    except (DeviceGone, NotFound, FileNotFoundError):
        return ()


def program_name(program_id: int) -> str:
    """The name of a loaded program; empty if it is gone by now."""
    try:
        with Program.by_id(program_id) as program:
            return program.info().name
    except NotFound:
        return ""
