# SPDX-License-Identifier: Apache-2.0
"""The datapath of a node as one thing: maps and programs, opened, verified and pinned.

::

    PIN_DIR/maps/cilia_lb4_svc …     the maps, by name; they outlive programs and processes
    PIN_DIR/programs/connect4 …      the programs of this build, of sockets and of packets, by name
    PIN_DIR/links/connect4 …         links on the cgroup, by hook
    PIN_DIR/attachments/…            links on devices

Nothing is attached here: a row of the table ``attachments`` names the pin of a program, and its
reconciler makes and updates the link.

Every step is idempotent and leaves a state that the next start continues from, so a kill between
any two loses nothing: maps are pinned before a program uses them; all programs are loaded
(verified) before the first one is pinned; a pin is made and then renamed over its predecessor.

A start is ``open_maps`` → fill them → ``load`` → ``carry`` → ``publish`` → links are updated →
``carry`` → ``retire``. Unless it is ``migrating``, the order of filling and publishing does not
matter; when maps of another layout or size are being introduced, publish only after the new ones
are complete.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType

from bpf import features, pins
from bpf.errors import NotFound, RequirementMissing
from bpf.link import Link, LinkInfo
from bpf.loader import Loader, pinned_map_ids
from bpf.maps.cluster_nodes import ClusterNodeMaps
from bpf.maps.lb import LBMaps
from bpf.maps.map import Map
from bpf.maps.redirect_skips import SkipMaps
from bpf.maps.switch import NAME as SWITCH
from bpf.maps.switch import Switch
from bpf.packet_programs import FLOW_MAPS, PacketConfig
from bpf.program import Program
from bpf.sock import (
    COPIED_MAPS,
    NUMBERED_MAPS,
    SERVICE_MAPS,
    SOCKET_MAPS,
    SockConfig,
    constants,
    map_entries,
    unwanted_programs,
)

#: Below the pin directory of an instance: maps, programs, links of cgroups, links of devices.
DIRECTORIES = ("maps", "programs", "links", "attachments")


class NodeDatapath:
    """Maps and programs of one node. Used from one thread at a time."""

    def __init__(self, config: SockConfig, packets: PacketConfig | None = None) -> None:
        """``packets``: objects of packet programs that share the maps."""
        self.config = config
        self._packets = packets or PacketConfig((), {}, {})
        self.maps_dir, self.programs_dir, self.links_dir, self.device_links_dir = (
            config.pin_dir / name for name in DIRECTORIES
        )
        self._loader = Loader(
            ["sock", *self._packets.objects],
            self.maps_dir,
            entries=self._entries,
            carried=SOCKET_MAPS | FLOW_MAPS,
            together=NUMBERED_MAPS,
            copied=COPIED_MAPS,
            cache_dir=config.cache_dir,
            in_use=self._maps_in_use,
            unwanted=self._packets.unwanted,
        )
        self._programs: dict[str, Program] = {}
        #: Ids of these programs, by name.
        self._ids: dict[str, int] = {}
        self._published = False
        #: Programs in force without a pinned link: place -> id of the program.
        self._unlinked: Callable[[], Mapping[str, int]] = dict

    @property
    def timings(self) -> dict[str, float]:
        """Seconds a phase took: compile, maps, load, attach."""
        return self._loader.timings

    @property
    def fresh(self) -> list[str]:
        """Names of maps whose contents are not known to be complete."""
        return self._loader.fresh

    @property
    def put_back(self) -> list[str]:
        """Names of maps in use whose pins somebody had removed or replaced."""
        return self._loader.put_back

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
        """True if programs in force use other maps than those of this build."""
        return bool(self.fresh) and self.in_force

    @property
    def in_force(self) -> bool:
        """True if programs are attached, of this start or an earlier one."""
        return any(True for _ in self._links())

    @property
    def socket_programs(self) -> list[str]:
        """Names of the loaded programs that belong on the cgroup; each is the name of its hook."""
        return [name for name, program in self._programs.items() if _is_of_cgroup(program)]

    def open_maps(self) -> LBMaps:
        """Adopt the pinned maps that fit this build and its sizes, make and pin the others.

        Raises: RequirementMissing, CompileError, LoadError, NoMemory.
        """
        for directory in (self.maps_dir, self.links_dir):
            directory.mkdir(parents=True, exist_ok=True)
        for name in sorted(SERVICE_MAPS):
            self._refuse_too_small(name)
        self._loader.open_maps()
        return LBMaps.over(self._loader.maps)

    def skip_maps(self) -> SkipMaps:
        """Sockets and addresses that redirections spare; to be called after ``open_maps``."""
        return SkipMaps.over(self._loader.maps)

    def cluster_node_maps(self) -> ClusterNodeMaps:
        """Nodes by their addresses; to be called after ``open_maps``."""
        return ClusterNodeMaps.over(self._loader.maps)

    def switch(self) -> Switch:
        """Who has new connections; to be called after ``open_maps``."""
        return Switch(self.map(SWITCH))

    def map(self, name: str) -> Map:
        """One of the maps, under a descriptor of the caller's. Raises: KeyError."""
        return self._loader.maps[name].duplicate()

    @property
    def constants(self) -> Mapping[str, bytes]:
        """Return the constants that the loaded programs of packets were given."""
        return self._packets.constants

    def load(self, changed: Mapping[str, bytes] = MappingProxyType({})) -> None:
        """Load and verify the programs on the maps, publishing nothing.

        ``changed``: constants of programs of packets that have other values from now on.
        Raises: LoadError; the programs before stay.
        """
        packets = self._packets._replace(constants={**self._packets.constants, **changed})
        loaded = self._loader.load({**constants(self.config), **packets.constants})
        self._packets = packets
        unwanted = unwanted_programs(self.config)
        for program in loaded:
            if program.name in unwanted:
                program.close()
        self._close_programs()
        self._programs = {
            program.name: program for program in loaded if program.name not in unwanted
        }
        self._ids = {name: program.info().id for name, program in self._programs.items()}

    def publish(self) -> None:
        """Pin each program under its name, in one atomic step each; also puts back lost pins.

        Raises: NoPrivilege; pins that were made stay, and the call can be repeated.
        """
        self.programs_dir.mkdir(parents=True, exist_ok=True)
        for name in self.drift():
            pins.replace(self._programs[name].number, self.programs_dir / name)
        self._published = True

    def restore(self) -> list[str]:
        """Put back pins of maps and programs that somebody removed; return their names.

        Without them the next start would find nothing in force, and begin with empty maps.
        """
        lost = [*self._loader.restore_pins(), *self.drift()]
        self.publish()
        return lost

    def drift(self) -> list[str]:
        """Names of programs whose pin is not the one that ``publish`` makes."""
        return [
            name
            for name, number in self._ids.items()
            if _pinned_program(self.programs_dir / name) != number
        ]

    def carry(self) -> None:
        """Copy what programs wrote into predecessors of maps; call before and after the switch."""
        self._loader.carry()

    def count_unlinked(self, attached: Callable[[], Mapping[str, int]]) -> None:
        """Name who knows programs in force without a pinned link: place -> id of the program."""
        self._unlinked = attached

    def unlinked(self) -> Mapping[str, int]:
        """Programs in force without a pinned link: place -> id of the program."""
        return self._unlinked()

    def predecessors(self) -> list[str]:
        """Places that still run the predecessor of a published program: pins of links, and what
        ``count_unlinked`` was told.
        """
        current = set(self._ids.values())
        running = {path.name: info.program_id for path, info in self._links() if info.target}
        return [
            place
            for place, number in (running | dict(self.unlinked())).items()
            if number not in current and _name(number) in self._ids
        ]

    def retire(self) -> list[str]:
        """Give successors of maps their names and remove the pins of other builds; returns those.

        To be called when all places run published programs: then none uses the predecessors.
        Raises: RuntimeError before that, because it would take away what is in force.
        """
        if not self._published:
            raise RuntimeError("retire() before publish()")
        if running := self.predecessors():
            raise RuntimeError(f"retire() before the links were updated: {', '.join(running)}")
        self._loader.settle()
        old = [
            path
            for directory, names in (
                (self.maps_dir, self._loader.maps.keys()),
                (self.programs_dir, self._programs.keys()),
            )
            for path in directory.iterdir()
            if path.name not in names
        ]
        for path in old:
            pins.unpin(path)
        return sorted(path.name for path in old)

    def close(self) -> None:
        """Close all descriptors; what is pinned stays in force."""
        self._loader.close()
        self._close_programs()

    # -- steps --

    def _close_programs(self) -> None:
        for program in self._programs.values():
            program.close()
        self._programs, self._ids = {}, {}

    def _refuse_too_small(self, name: str) -> None:
        """A successor that cannot hold what is in force would take Services away."""
        wanted = self._entries(name)
        try:
            opened = Map.open_pinned(self.maps_dir / name)
        except NotFound:
            return
        with opened:
            if wanted is None or wanted >= opened.max_entries:
                return
            held = opened.count()
            if held > wanted:
                raise RequirementMissing(
                    f"map {name} holds {held} entries that are in force, and is to have room for"
                    f" {wanted}: ask for {held} or more (--bpf-lb-map-max and the options of"
                    " single maps), or start with the size in force until they are fewer"
                )

    def _entries(self, name: str) -> int | None:
        sizes = {**self._packets.entries, **self.config.own_entries}
        return sizes[name] if name in sizes else map_entries(self.config, name)

    def _maps_in_use(self) -> set[int]:
        """Ids of the maps of programs that are attached or were published."""
        programs = {info.program_id for _, info in self._links()}
        programs |= _published_ids(self.config.pin_dir)
        return {number for program in programs for number in _map_ids(program)}

    def _links(self) -> Iterator[tuple[Path, LinkInfo]]:
        for directory in (self.links_dir, self.device_links_dir):
            for path in sorted(directory.iterdir()) if directory.is_dir() else ():
                try:
                    with Link.open_pinned(path) as link:
                        info = link.info()
                except NotFound:
                    continue  # detached and unpinned meanwhile
                yield path, info


def _is_of_cgroup(program: Program) -> bool:
    return program.section.startswith("cgroup/")


def _name(number: int) -> str:
    """The name of a program by its id; empty if it is gone by now."""
    try:
        with Program.by_id(number) as program:
            return program.name
    except NotFound:
        return ""


def _pinned_program(path: Path) -> int:
    """Id of the program pinned at ``path``, 0 if there is none."""
    try:
        with Program.open_pinned(path) as program:
            return program.info().id
    except NotFound:
        return 0


def _published_ids(pin_dir: Path) -> set[int]:
    """Return the ids of the programs that are pinned below ``pin_dir``."""
    directory = pin_dir / "programs"
    paths = directory.iterdir() if directory.is_dir() else ()
    return {number for path in paths if (number := _pinned_program(path))}


def own_programs(pin_dir: Path, program_ids: Iterable[int]) -> set[int]:
    """Return those of the programs that belong to the instance of ``pin_dir``: their pin is there,
    or that of a map that they use. A predecessor has no pin any more; its maps have.
    """
    wanted = set(program_ids)
    own = wanted & _published_ids(pin_dir)
    maps = pinned_map_ids(pin_dir / "maps") if wanted - own else set()
    return own | {number for number in wanted - own if _map_ids(number) & maps}


def _map_ids(program_id: int) -> set[int]:
    try:
        with Program.by_id(program_id) as program:
            return program.map_ids()
    except NotFound:
        return set()


def cleanup(pin_dir: Path) -> list[Path]:
    """Detach every program, remove every map and pin of an instance below `pin_dir`; idempotent.

    Return what is left: what somebody else put there.
    """
    links = pin_dir / "links"
    for path in links.iterdir() if links.is_dir() else ():
        with Link.open_pinned(path) as link:
            link.detach_if_attached()
        pins.unpin(path)
    for name in DIRECTORIES:
        pins.remove_tree(pin_dir / name)
    left = sorted(pin_dir.iterdir()) if pin_dir.is_dir() else []
    if not left:
        pins.remove_tree(pin_dir)
    return left
