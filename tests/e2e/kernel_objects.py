# SPDX-License-Identifier: Apache-2.0
"""What one agent keeps in the kernel, pinned or not, found among all that others have.

An agent under test has a map size that no other has; its maps are those of this size, its programs
those that use one of them, its links those on its cgroup.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import NamedTuple, TypeVar

from bpf.descriptors import Fd
from bpf.errors import NotFound
from bpf.libbpf import check, ffi, lib
from bpf.link import LinkType, all_links, cgroup_id
from bpf.maps.map import Map
from bpf.program import Program

F = TypeVar("F", bound=Fd)

_libbpf = ctypes.CDLL("libbpf.so.1")

#: struct bpf_prog_info of <linux/bpf.h>: the number of maps, and a pointer to room for their ids.
_INFO_BYTES, _NR_MAP_IDS, _MAP_IDS = 256, 52, 56
_MAPS_AT_MOST = 64


class Kept(NamedTuple):
    """How many kernel objects of an agent there are."""

    maps: int
    programs: int
    links: int


def kept(sizes: Collection[int], pinned: Path, cgroup: Path) -> Kept:
    """Count what belongs to the agent with maps of these sizes, pins and cgroup.

    Maps whose size is not the agent's choice are known by their pins; they count with the programs.
    """
    maps = {
        opened.info.id for opened in _all(Map.by_id, lib.bpf_map_get_next_id) if _of(opened, sizes)
    }
    used = maps | {_pinned_id(path) for path in pinned.iterdir()}
    programs = sum(
        1 for program in _all(Program.by_id, lib.bpf_prog_get_next_id) if used & maps_of(program)
    )
    here = (LinkType.CGROUP, cgroup_id(cgroup))
    links = sum(1 for info in all_links() if (info.type, info.target) == here)
    return Kept(len(maps), programs, links)


def maps_of(program: Program) -> set[int]:
    """Ids of the maps that a program uses."""
    ids = (ctypes.c_uint32 * _MAPS_AT_MOST)()
    info = ctypes.create_string_buffer(_INFO_BYTES)
    struct.pack_into("=IQ", info, _NR_MAP_IDS, _MAPS_AT_MOST, ctypes.addressof(ids))
    size = ctypes.c_uint32(_INFO_BYTES)
    rc = _libbpf.bpf_obj_get_info_by_fd(program.number, info, ctypes.byref(size))
    check(rc, f"maps of program {program.name}")
    (count,) = struct.unpack_from("=I", info, _NR_MAP_IDS)
    return set(ids[:count])


def _of(opened: Map, sizes: Collection[int]) -> bool:
    return opened.name.startswith("cilia_lb") and opened.max_entries in sizes


def _pinned_id(path: Path) -> int:
    with Map.open_pinned(path) as opened:
        return opened.info.id


def _all(by_id: Callable[[int], F], next_id: Callable[[int, object], int]) -> Iterator[F]:
    """Every object of a kind, open while it is looked at; what goes meanwhile is passed over."""
    number = ffi.new("uint32_t *")
    while True:
        try:
            check(next_id(number[0], number), "list objects")
        except NotFound:
            return
        try:
            opened = by_id(number[0])
        except NotFound:
            continue
        with opened:
            yield opened
