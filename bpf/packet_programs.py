# SPDX-License-Identifier: Apache-2.0
"""Programs at devices: pinned by name, so that whoever attaches them needs no object file.

::

    PIN_DIR/programs/from_netdev …     the programs of this build, by name

Which device gets which program is rows of a table and the work of its reconciler; here is what
belongs to a start: a pin and every link that holds its predecessor get the new program in one step
each, so that no packet sees a device without one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from bpf import pins
from bpf.errors import Detached, Invalid, NotFound
from bpf.link import Link
from bpf.program import Program


class PacketConfig(NamedTuple):
    """Which objects, what they are told, and how large their maps are."""

    objects: Sequence[str]
    #: ``const volatile`` variables by name; each is given to every object that has it.
    constants: Mapping[str, bytes]
    #: Entries by map, where they differ from the source.
    entries: Mapping[str, int]


#: Maps that programs write and that a successor takes over.
FLOW_MAPS = frozenset(
    {
        "cilia_ct4_tcp",
        "cilia_ct4_any",
        "cilia_ct6_tcp",
        "cilia_ct6_any",
        "cilia_snat4",
        "cilia_snat6",
        "cilia_frag4",
        "cilia_frag6",
    }
)


class PacketPrograms:
    """The pinned programs of a node. Used from one thread at a time."""

    def __init__(self, pin_dir: Path) -> None:
        self.directory = pin_dir / "programs"
        self.links_dir = pin_dir / "attachments"
        self._programs: dict[str, Program] = {}

    def take(self, programs: Sequence[Program]) -> None:
        """Programs that were loaded; they are this object's from now on."""
        self.close()
        self._programs = {program.name: program for program in programs}

    def attach(self) -> None:
        """Pin each program, and put it where a link holds one of its name."""
        if self._programs:
            self.directory.mkdir(exist_ok=True)
        for name, program in self._programs.items():
            if self._pinned_id(name) != program.info().id:
                pins.replace(program.number, self.directory / name)
        self._repoint()

    def _repoint(self) -> None:
        for path in self.links_dir.iterdir() if self.links_dir.is_dir() else ():
            try:
                with Link.open_pinned(path) as link, Program.by_id(link.info().program_id) as old:
                    successor = self._programs.get(old.name)
                    if successor is not None and old.info().id != successor.info().id:
                        link.update(successor)
            except (NotFound, Detached, Invalid):
                continue  # its device is gone; the reconciler knows what is wanted instead

    def drift(self) -> list[str]:
        """Names of programs whose pin is not the one that ``attach`` made."""
        return [
            name
            for name, program in self._programs.items()
            if self._pinned_id(name) != program.info().id
        ]

    def retire(self) -> list[str]:
        """Remove the pins of other builds' programs; returns their names."""
        if not self.directory.is_dir():
            return []
        old = [path for path in self.directory.iterdir() if path.name not in self._programs]
        for path in old:
            pins.unpin(path)
        return sorted(path.name for path in old)

    def close(self) -> None:
        """Close all descriptors; what is pinned or attached stays."""
        for program in self._programs.values():
            program.close()
        self._programs = {}

    def _pinned_id(self, name: str) -> int:
        try:
            with Program.open_pinned(self.directory / name) as program:
                return program.info().id
        except NotFound:
            return 0
