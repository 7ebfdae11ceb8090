# SPDX-License-Identifier: Apache-2.0
"""The socket translation of a node: maps, programs and links of ``sock.bpf.c`` as one thing.

::

    PIN_DIR/maps/cilia_lb4_svc …     the maps, by name; they outlive programs and processes
    PIN_DIR/links/connect4 …         one link a program, attached to the cgroup

Every step is idempotent and leaves a state that the next start continues from, so a kill between
any two loses nothing: maps are pinned before a program uses them; all programs are loaded
(verified) before the first link is touched; a link is re-pointed in place, or made and then renamed
over its dead predecessor. What is in force stays until its successor is.

A start is ``open_maps`` → fill them → ``load`` → ``attach`` → ``retire``. When maps are not
``fresh``, the order of filling and attaching does not matter; when another layout is being
introduced (``migrating``), attach only after the new maps are complete.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import NamedTuple

from bpf import compile as bpf_compile
from bpf import features, pins
from bpf.errors import Detached, Invalid, LayoutError, NotFound
from bpf.libbpf import open_directory
from bpf.link import AttachType, Link, LinkType, cgroup_id
from bpf.maps.lb import SERVICE_ENTRIES, SOCKET_ENTRIES, LBMaps
from bpf.maps.map import Map
from bpf.object import MapDefinition, Object
from bpf.program import Program

#: Map of the socket way back, sized apart from the others.
SOCKET_MAPS = frozenset({"cilia_lb4_sk", "cilia_lb6_sk"})


class SockConfig(NamedTuple):
    """Where and how large."""

    pin_dir: Path
    cgroup: Path
    service_entries: int = SERVICE_ENTRIES
    socket_entries: int = SOCKET_ENTRIES
    cache_dir: Path | None = None


class SockDatapath:
    """One node's socket translation. Used from one thread at a time."""

    def __init__(self, config: SockConfig) -> None:
        self.config = config
        self.maps_dir = config.pin_dir / "maps"
        self.links_dir = config.pin_dir / "links"
        #: Seconds a phase took: compile, maps, load, attach.
        self.timings: dict[str, float] = {}
        #: Names of maps that this start made; empty ones must be filled before anything relies on
        #: them.
        self.fresh: list[str] = []
        self._elf = b""
        self._maps: dict[str, Map] = {}
        self._programs: list[Program] = []

    @staticmethod
    def check_requirements(config: SockConfig) -> None:
        """Raises: RequirementMissing with one sentence for the first thing that is missing."""
        features.require_privilege()
        features.require_kernel()
        features.require_btf()
        features.require_cgroup2(config.cgroup)
        existing = next(path for path in (config.pin_dir, *config.pin_dir.parents) if path.exists())
        features.require_bpffs(existing)

    @property
    def migrating(self) -> bool:
        """Whether programs in force use other maps than those of this build."""
        return bool(self.fresh) and any(self.links_dir.iterdir())

    def open_maps(self) -> LBMaps:
        """Open the pinned maps, making and pinning those that are missing.

        The size of a pinned map wins over the configured one. Raises: LayoutError when a pinned map
        has other sizes or another type than this build's of the same name; RequirementMissing,
        CompileError, LoadError.
        """
        self._prepare_directories()
        start = time.monotonic()
        self._elf = bpf_compile.load_object("sock", cache_dir=self.config.cache_dir)
        self._time("compile", start)
        start = time.monotonic()
        with Object.open("sock", self._elf) as obj:
            missing = self._adopt_pinned(obj)
            if missing:
                self._make(obj, missing)
        self._time("maps", start)
        return LBMaps.open_pinned(self.maps_dir)

    def load(self) -> None:
        """Load and verify the programs on the maps, attaching nothing. Raises: LoadError."""
        start = time.monotonic()
        with Object.open("sock", self._elf) as obj:
            for name, pinned in self._maps.items():
                obj.set_max_entries(name, pinned.max_entries)
                obj.reuse(name, pinned)
            self._set_constants(obj)
            obj.load()
            self._programs = obj.programs()
        self._time("load", start)

    def attach(self) -> None:
        """Put the loaded programs in force, each in one atomic step.

        Raises: NotFound when the cgroup is gone, NoPrivilege; links that were done stay done, and
        the call can be repeated.
        """
        start = time.monotonic()
        for program in self._programs:
            self._attach(program)
        self._time("attach", start)

    def retire(self) -> list[str]:
        """Remove pins of maps and links that are not this build's; returns their names.

        To be called when ``attach`` is done: then no program in force uses them.
        """
        wanted = {self.maps_dir: set(self._maps), self.links_dir: {p.name for p in self._programs}}
        old = [
            path
            for directory, names in wanted.items()
            for path in directory.iterdir()
            if path.name not in names
        ]
        for path in old:
            pins.unpin(path)
        return sorted(path.name for path in old)

    def close(self) -> None:
        """Close all descriptors; what is pinned stays in force."""
        for held in (*self._maps.values(), *self._programs):
            held.close()
        self._maps = {}
        self._programs = []

    # -- steps --

    def _prepare_directories(self) -> None:
        for directory in (self.maps_dir, self.links_dir):
            directory.mkdir(parents=True, exist_ok=True)

    def _adopt_pinned(self, obj: Object) -> list[MapDefinition]:
        """Open what is pinned; returns the definitions of what is not."""
        missing = []
        for definition in obj.map_definitions():
            try:
                pinned = Map.open_pinned(self.maps_dir / definition.name)
            except NotFound:
                missing.append(definition)
                continue
            self._maps[definition.name] = pinned
            check_layout(definition, pinned)
        return missing

    def _make(self, obj: Object, missing: list[MapDefinition]) -> None:
        """Make and pin the missing maps, through the object so that they carry their types."""
        for name, pinned in self._maps.items():
            obj.set_max_entries(name, pinned.max_entries)
            obj.reuse(name, pinned)
        for definition in missing:
            obj.set_max_entries(definition.name, self._entries(definition.name))
        obj.keep_programs(lambda name: False)
        obj.load()
        for definition in missing:
            made = obj.map(definition.name)
            self._maps[definition.name] = made
            made.pin(self.maps_dir / definition.name)
            self.fresh.append(definition.name)

    def _entries(self, name: str) -> int:
        if name in SOCKET_MAPS:
            return self.config.socket_entries
        return self.config.service_entries

    def _set_constants(self, obj: Object) -> None:
        retval = features.has_helper(features.PROG_CGROUP_SOCK_ADDR, features.HELPER_SET_RETVAL)
        obj.set_constant("have_set_retval", bytes([retval]))
        obj.set_constant("host_netns_cookie", features.netns_cookie().to_bytes(8, "little"))

    def _attach(self, program: Program) -> None:
        """Re-point the pinned link, or make one where there is none that works."""
        pin = self.links_dir / program.name
        attach_type = AttachType(program.expected_attach_type)
        if self._update_pinned(pin, program, attach_type):
            return
        with (
            open_directory(self.config.cgroup) as cgroup,
            Link.create(program, cgroup.number, attach_type) as link,
        ):
            pins.replace(link.number, pin)

    def _update_pinned(self, pin: Path, program: Program, attach_type: AttachType) -> bool:
        """Whether the link pinned at ``pin`` now runs ``program`` on our cgroup."""
        try:
            link = Link.open_pinned(pin)
        except NotFound:
            return False
        with link:
            info = link.info()
            ours = (LinkType.CGROUP, attach_type, cgroup_id(self.config.cgroup))
            if (info.type, info.attach_type, info.target) != ours:
                return False
            try:
                link.update(program)
            except (Detached, Invalid):
                return False
        return True

    def _time(self, phase: str, start: float) -> None:
        self.timings[phase] = time.monotonic() - start


def check_layout(wanted: MapDefinition, pinned: Map) -> None:
    """Raises: LayoutError unless programs written for ``wanted`` can use ``pinned``."""
    ours = (wanted.type, wanted.key_size, wanted.value_size, wanted.flags)
    theirs = (pinned.info.type, pinned.key_size, pinned.value_size, pinned.info.flags)
    if ours != theirs:
        raise LayoutError(
            f"pinned map {wanted.name} has type, key, value and flags {theirs}, "
            f"this build needs {ours}: a changed layout must have a new name"
        )


def cleanup(pin_dir: Path) -> None:
    """Detach every program and remove every map and pin below ``pin_dir``; what is not there is no
    error.
    """
    links = pin_dir / "links"
    for path in links.iterdir() if links.is_dir() else ():
        with Link.open_pinned(path) as link:
            _detach(link)
        pins.unpin(path)
    pins.remove_tree(pin_dir)


def _detach(link: Link) -> None:
    """Detach now, even while a dying agent still holds the link; a link of a gone cgroup is
    detached already.
    """
    try:
        link.detach()
    except (Detached, Invalid):
        return
