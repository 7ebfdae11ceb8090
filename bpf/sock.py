# SPDX-License-Identifier: Apache-2.0
"""The socket translation of a node: maps, programs and links of ``sock.bpf.c`` as one thing.

::

    PIN_DIR/maps/cilia_lb4_svc …     the maps, by name; they outlive programs and processes
    PIN_DIR/links/connect4 …         one link a program, attached to the cgroup
    PIN_DIR/programs/from_netdev …   programs of packets, for whoever attaches them to devices

Every step is idempotent and leaves a state that the next start continues from, so a kill between
any two loses nothing: maps are pinned before a program uses them; all programs are loaded
(verified) before the first link is touched; a link is re-pointed in place, or made and then renamed
over its dead predecessor. What is in force stays until its successor is.

A start is ``open_maps`` → fill them → ``load`` → ``attach`` → ``retire``. Unless it is
``migrating``, the order of filling and attaching does not matter; when maps of another layout or
size are being introduced, attach only after the new ones are complete.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final, Literal, NamedTuple

from bpf import features, pins
from bpf.descriptors import open_directory
from bpf.errors import Detached, Invalid, NotFound
from bpf.link import AttachType, Link, LinkType, cgroup_id
from bpf.loader import Loader
from bpf.maps.lb import SERVICE_ENTRIES, SOCKET_ENTRIES, SPECS, Algorithm, LBMaps
from bpf.maps.map import Map
from bpf.maps.redirect_skips import NAMES, SkipMaps
from bpf.maps.switch import NAME as SWITCH
from bpf.maps.switch import Switch
from bpf.packet_programs import FLOW_MAPS, PacketConfig, PacketPrograms
from bpf.program import Program

#: Maps that programs write: the way back, and which backend a client stays with. Sized apart from
#: the others, and moved to a successor.
SOCKET_MAPS = frozenset({"cilia_lb4_sk", "cilia_lb6_sk", "cilia_lb4_aff", "cilia_lb6_aff"})

#: Maps that follow the number of services. All others are of the size that their source names.
SERVICE_MAPS = frozenset(spec.name for spec in SPECS) | set(NAMES)

#: What an option takes out of force. All others stay: a socket that was translated once needs the
#: way back for as long as it lives.
TRANSLATING = frozenset({"connect4", "connect6", "sendmsg4", "sendmsg6"})
PROTECTING = frozenset({"post_bind4", "post_bind6"})

#: What a client gets when nobody serves what it dials. A socket cannot be kept waiting here as a
#: dropped packet would, so the second is an error that says nothing about the port.
NO_BACKEND_ERRORS: Final = {"reject": errno.ECONNREFUSED, "drop": errno.EHOSTUNREACH}


class SockConfig(NamedTuple):
    """Where, how large, and what of it."""

    pin_dir: Path
    cgroup: Path
    service_entries: int = SERVICE_ENTRIES
    socket_entries: int = SOCKET_ENTRIES
    #: By the name of the map, where one differs from these two.
    own_entries: Mapping[str, int] = MappingProxyType({})
    cache_dir: Path | None = None
    #: Sockets are translated; without, packets are.
    translate: bool = True
    #: Only those in the network namespace that the programs are loaded from.
    host_only: bool = False
    #: Listeners cannot have the address of a node port.
    protect_ports: bool = True
    no_backend: Literal["reject", "drop"] = "reject"
    #: Of services that name none; only ``LEAST_CONNECTIONS`` makes a difference here.
    algorithm: Algorithm = Algorithm.RANDOM
    #: A service may name its own.
    algorithm_annotation: bool = False
    #: Ports that a service lacks are answered like a service without backends.
    wildcard_entries: bool = False


class SockDatapath:
    """One node's socket translation. Used from one thread at a time."""

    def __init__(self, config: SockConfig, packets: PacketConfig | None = None) -> None:
        """``packets``: objects of packet programs that share the maps."""
        self.config = config
        self._packet_config = packets or PacketConfig((), {}, {})
        self.packets = PacketPrograms(config.pin_dir)
        self.maps_dir = config.pin_dir / "maps"
        self.links_dir = config.pin_dir / "links"
        self._loader = Loader(
            ["sock", *self._packet_config.objects],
            self.maps_dir,
            entries=self._entries,
            carried=SOCKET_MAPS | FLOW_MAPS,
            cache_dir=config.cache_dir,
        )
        self._programs: list[Program] = []
        self._attached = False
        #: Held besides their pins: a pin that is removed by hand then detaches nothing.
        self._links: dict[str, Link] = {}

    @property
    def timings(self) -> dict[str, float]:
        """Seconds a phase took: compile, maps, load, attach."""
        return self._loader.timings

    @property
    def fresh(self) -> list[str]:
        """Names of maps whose contents are not known to be complete."""
        return self._loader.fresh

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
        return bool(self.fresh) and self.in_force

    @property
    def in_force(self) -> bool:
        """Whether programs are attached, of this start or an earlier one."""
        return any(self.links_dir.iterdir())

    def open_maps(self) -> LBMaps:
        """Adopt the pinned maps that fit this build and its sizes, make and pin the others.

        Raises: RequirementMissing, CompileError, LoadError, NoMemory.
        """
        for directory in (self.maps_dir, self.links_dir):
            directory.mkdir(parents=True, exist_ok=True)
        self._loader.open_maps()
        return LBMaps.over(self._loader.maps)

    def skip_maps(self) -> SkipMaps:
        """Whom local redirections spare; to be called after ``open_maps``."""
        return SkipMaps.over(self._loader.maps)

    def switch(self) -> Switch:
        """Who has new connections; to be called after ``open_maps``."""
        return Switch(self.map(SWITCH))

    def map(self, name: str) -> Map:
        """One of the maps, under a descriptor of the caller's. Raises: KeyError."""
        return self._loader.maps[name].duplicate()

    def load(self) -> None:
        """Load and verify the programs on the maps, attaching nothing. Raises: LoadError."""
        loaded = self._loader.load({**self._constants(), **self._packet_config.constants})
        self.packets.take([program for program in loaded if not _is_of_cgroup(program)])
        unwanted = self._unwanted()
        for program in loaded:
            if program.name in unwanted:
                program.close()
        self._programs = [
            program for program in loaded if _is_of_cgroup(program) and program.name not in unwanted
        ]

    def attach(self) -> None:
        """Put the loaded programs in force, each in one atomic step.

        Raises: FileNotFoundError when the cgroup is gone, NoPrivilege; links that were done stay
        done, and the call can be repeated.
        """
        with self._loader.timed("attach"):
            self._loader.carry()
            for program in self._programs:
                self._attach(program)
            self.packets.attach()
            self._loader.carry()
        self._attached = True

    def drift(self) -> list[str]:
        """Names of programs that are not in force as ``attach`` left them, which nothing announces.

        A pin that was removed, a link that was detached or re-pointed; ``attach`` repairs them.
        """
        sockets = [program.name for program in self._programs if not self._is_in_force(program)]
        return sockets + self.packets.drift()

    def retire(self) -> list[str]:
        """Give successors of maps their names and remove the pins of other builds; returns those.

        To be called when ``attach`` is done: then no program in force uses the predecessors.
        Raises: RuntimeError before that, because it would take away what is in force.
        """
        if not self._attached:
            raise RuntimeError("retire() before attach() was complete")
        if self.drift():
            self.attach()
        self._loader.settle()
        wanted = {
            self.maps_dir: set(self._loader.maps),
            self.links_dir: {program.name for program in self._programs},
        }
        old = [
            path
            for directory, names in wanted.items()
            for path in directory.iterdir()
            if path.name not in names
        ]
        for path in old:
            pins.unpin(path)
        return sorted([*(path.name for path in old), *self.packets.retire()])

    def close(self) -> None:
        """Close all descriptors; what is pinned stays in force."""
        self._loader.close()
        self.packets.close()
        for held in (*self._programs, *self._links.values()):
            held.close()
        self._programs = []
        self._links = {}

    # -- steps --

    def _constants(self) -> dict[str, bytes]:
        """What the programs are told; the network namespace is that of this thread."""
        retval = features.has_helper(features.PROG_CGROUP_SOCK_ADDR, features.HELPER_SET_RETVAL)
        error = -NO_BACKEND_ERRORS[self.config.no_backend]
        return {
            "have_set_retval": bytes([retval]),
            "host_netns_cookie": features.netns_cookie().to_bytes(8, "little"),
            "sock_host_only": bytes([self.config.host_only]),
            "wildcard_entries": bytes([self.config.wildcard_entries]),
            "sock_counts": bytes([self._counts_connections]),
            "sock_algorithm": self.config.algorithm.to_bytes(4, "little"),
            "no_backend_error": error.to_bytes(4, "little", signed=True),
        }

    @property
    def _counts_connections(self) -> bool:
        config = self.config
        return config.algorithm_annotation or config.algorithm is Algorithm.LEAST_CONNECTIONS

    def _unwanted(self) -> frozenset[str]:
        unwanted: frozenset[str] = frozenset()
        if not self.config.translate:
            unwanted |= TRANSLATING
        if not self.config.protect_ports:
            unwanted |= PROTECTING
        return unwanted

    def _entries(self, name: str) -> int | None:
        if name in self.config.own_entries:
            return self.config.own_entries[name]
        if name in self._packet_config.entries:
            return self._packet_config.entries[name]
        if name in SOCKET_MAPS:
            return self.config.socket_entries
        return self.config.service_entries if name in SERVICE_MAPS else None

    def _attach(self, program: Program) -> None:
        """Re-point the link that is there, or make one where there is none that works."""
        name = program.name
        link = self._usable_link(program)
        if link is not None:
            try:
                link.update(program)
            except (Detached, Invalid):  # the cgroup went between the look and the update
                link = None
        if link is None:
            with open_directory(self.config.cgroup) as cgroup:
                link = Link.create(program, cgroup.number, _attach_type(program))
        self._links[name] = link
        if _pinned_id(self.links_dir / name) != link.info().id:
            pins.replace(link.number, self.links_dir / name)

    def _usable_link(self, program: Program) -> Link | None:
        """The link that we hold, or else the pinned one, if it is on our cgroup."""
        link = self._links.pop(program.name, None)
        if link is not None and self._is_on_cgroup(link, program):
            return link
        try:
            pinned = Link.open_pinned(self.links_dir / program.name)
        except NotFound:
            return None
        return pinned if self._is_on_cgroup(pinned, program) else None

    def _is_on_cgroup(self, link: Link, program: Program) -> bool:
        info = link.info()
        return (info.type, info.attach_type, info.target) == (
            LinkType.CGROUP,
            _attach_type(program),
            cgroup_id(self.config.cgroup),
        )

    def _is_in_force(self, program: Program) -> bool:
        link = self._links.get(program.name)
        if link is None or not self._is_on_cgroup(link, program):
            return False
        info = link.info()
        pinned = _pinned_id(self.links_dir / program.name)
        return info.program_id == program.info().id and pinned == info.id


def _is_of_cgroup(program: Program) -> bool:
    return program.section.startswith("cgroup/")


def _attach_type(program: Program) -> AttachType:
    return AttachType(program.expected_attach_type)


def _pinned_id(path: Path) -> int:
    """Id of the link pinned at ``path``, 0 if there is none."""
    try:
        link = Link.open_pinned(path)
    except NotFound:
        return 0
    with link:
        return link.info().id


def cleanup(pin_dir: Path) -> None:
    """Detach every program, remove every map and pin below ``pin_dir``; idempotent."""
    links = pin_dir / "links"
    for path in links.iterdir() if links.is_dir() else ():
        with Link.open_pinned(path) as link:
            _detach(link)
        pins.unpin(path)
    pins.remove_tree(pin_dir)


def _detach(link: Link) -> None:
    """Detach now, even while an agent holds the link; that of a gone cgroup is detached."""
    try:
        link.detach()
    except (Detached, Invalid):
        return
