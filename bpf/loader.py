# SPDX-License-Identifier: Apache-2.0
"""Objects on pinned maps: adopt what fits, make what does not, swap without a gap.

::

    DIR/NAME          the map in force
    DIR/NAME~next     its successor, when this build wants another layout or size

Steps, each idempotent: ``open_maps`` adopts a pinned map that has this build's layout and size, or
makes one (as ``~next`` unless nothing was pinned before at all). Maps that name each other's
entries are adopted all or none, and a successor begins with what a predecessor of its layout has.
The caller fills what is ``fresh``. ``load`` verifies the programs on these maps; nothing is
attached yet. The caller switches its hooks, calling ``carry`` directly before and after. ``settle``
renames each successor over its predecessor.

A kill between any two steps leaves programs and maps in force that belong together; the next start,
of this build or the one before, finds the maps that fit it under one of the two names. While there
is a ``~next``, nobody knows which maps were kept up to date: all count as fresh, but for those that
programs write.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

from bpf import compile as bpf_compile
from bpf.errors import Exists, Invalid, NotFound
from bpf.maps.map import Map
from bpf.maps.raw import NOEXIST
from bpf.object import MapDefinition, Object
from bpf.program import Program

#: Of a map's name, the kernel keeps so much.
NAME_BYTES = 15

#: Suffix of a map that is to take the place of one with another layout or size.
NEXT = "~next"


class Loader:
    """Object files that share maps by name, and the directory of these maps.

    Used from one thread at a time.
    """

    def __init__(
        self,
        names: Sequence[str],
        maps_dir: Path,
        *,
        entries: Callable[[str], int | None] = lambda name: None,
        carried: frozenset[str] = frozenset(),
        together: frozenset[str] = frozenset(),
        copied: frozenset[str] = frozenset(),
        cache_dir: Path | None = None,
        in_use: Callable[[], Iterable[int]] = tuple,
        unwanted: frozenset[str] = frozenset(),
    ) -> None:
        """Nothing is opened yet.

        ``in_use``: ids of the maps of programs in force; one that lost its pin gets it back.
        ``entries``: size of a map by name, None for that of the source. ``carried``: maps that
        programs write, whose entries move to a successor of the same layout; all others are filled
        by the caller. ``together``: maps that all get a successor where one of them needs one.
        ``copied``: those that begin with what a predecessor of the same layout has. ``unwanted``:
        names of programs that are left out.
        """
        self.names = names
        self.maps_dir = maps_dir
        self._entries = entries
        self._carried = carried
        self._together = together
        self._copied = copied
        self._succeed = False
        self._cache_dir = cache_dir
        self._in_use = in_use
        self._unwanted = unwanted
        self._elves: dict[str, bytes] = {}
        #: The maps of this build, by name.
        self.maps: dict[str, Map] = {}
        #: Maps whose contents are not known to be complete.
        self.fresh: list[str] = []
        #: Maps in use that had no pin, or another map under their name.
        self.put_back: list[str] = []
        #: Seconds a phase took.
        self.timings: dict[str, float] = {}

    def open_maps(self) -> None:
        """Adopt or make all maps.

        Raises: RequirementMissing, CompileError, LoadError, NoMemory; Invalid when two objects want
        one map differently.
        """
        with self.timed("compile"):
            for name in self.names:
                self._elves[name] = bpf_compile.load_object(name, cache_dir=self._cache_dir)
        self._put_pins_back()
        pinned = [path.name for path in self.maps_dir.iterdir()]
        settled = not any(name.endswith(NEXT) for name in pinned)
        with self.timed("maps"):
            self._succeed = bool(pinned) and not self._fit_together()
            for name in self.names:
                with Object.open(name, self._elves[name]) as obj:
                    self._open_maps_of(obj, settled, first=not pinned)
            for name in self._copied & set(self.fresh):
                self._copy_from_predecessor(name)

    def _open_maps_of(self, obj: Object, settled: bool, *, first: bool) -> None:
        missing = []
        for wanted in map(self._sized, obj.map_definitions()):
            known = self.maps.get(wanted.name)
            if known is not None:
                _check_same(obj.name, known, wanted)
            elif not self._adopt(wanted, settled):
                missing.append(wanted)
        if missing:
            self._make(obj, missing, first=first)

    def load(self, constants: Mapping[str, bytes]) -> list[Program]:
        """Verify the programs on the maps; they are the caller's.

        A constant is given to every object that has it. Raises: LoadError; NotFound for a constant
        that no object has.
        """
        used: set[str] = set()
        with self.timed("load"), ExitStack() as stack:
            objects = []
            for name in self.names:
                obj = stack.enter_context(Object.open(name, self._elves[name]))
                self._reuse(obj)
                used |= _set_constants(obj, constants)
                obj.keep_programs(lambda program: program not in self._unwanted)
                objects.append(obj)
            _load_all(objects)
            programs = [program for obj in objects for program in obj.programs()]
        for constant in constants.keys() - used:
            raise NotFound(f"constant {constant} of {', '.join(self.names)}", errno.ENOENT)
        return programs

    def carry(self) -> None:
        """Copy entries that programs wrote into predecessors, without touching newer ones."""
        for name in self._carried & set(self.fresh):
            with self._predecessor(name) as old:
                if old is not None:
                    _copy(old, self.maps[name])

    def settle(self) -> None:
        """Give each successor its name; to be called when all hooks are switched."""
        for name in self.maps:
            successor = self.maps_dir / (name + NEXT)
            if self._is_ours(successor, name):
                successor.rename(self.maps_dir / name)
        self.fresh = []

    def restore_pins(self) -> list[str]:
        """Pin the maps anew whose pins somebody removed or replaced; return their names.

        Nothing is done before `settle`: until then a name may be that of a predecessor.
        """
        if self.fresh:
            return []
        lost = [name for name in self.maps if not self._is_ours(self.maps_dir / name, name)]
        if lost:
            self.maps_dir.mkdir(parents=True, exist_ok=True)
        for name in lost:
            self.maps[name].replace_pin(self.maps_dir / name)
        return lost

    def close(self) -> None:
        """Close the maps; what is pinned stays."""
        for opened in self.maps.values():
            opened.close()
        self.maps = {}

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Record how long a block took, also when it fails."""
        start = time.monotonic()
        try:
            yield
        finally:
            self.timings[phase] = time.monotonic() - start

    # -- steps --

    def _put_pins_back(self) -> None:
        """Without them what is in force would pass for gone, and a map that somebody put in the
        place of another for filled.
        """
        lost = maps_without_pin(self.maps_dir, self._in_use())
        if not lost:
            return
        for name, elf in self._elves.items():
            with Object.open(name, elf) as obj:
                names = [definition.name for definition in obj.map_definitions()]
            for known in names:
                number = lost.pop(known[:NAME_BYTES], 0)
                if number:
                    with Map.by_id(number) as found:
                        found.replace_pin(self.maps_dir / known)
                    self.put_back.append(known)

    @contextmanager
    def _predecessor(self, name: str) -> Iterator[Map | None]:
        """The map of the same layout that a successor is to take the place of, if there is one."""
        try:
            old = Map.open_pinned(self.maps_dir / name)
        except NotFound:
            yield None
            return
        with old:
            new = self.maps[name]
            yield old if old.info.id != new.info.id and same_layout(old, new) else None

    def _copy_from_predecessor(self, name: str) -> None:
        """Have its entries, also where the successor is left of a start that was killed."""
        with self._predecessor(name) as old:
            if old is not None:
                entries = dict(old.items())
                self.maps[name].update_batch(list(entries), list(entries.values()))

    def _fit_together(self) -> bool:
        """Return True if all maps that name each other's entries can be used as they are.

        One that lacks is another build's, or nobody uses it and its pin was lost with others.
        """
        for elf_name, elf in self._elves.items():
            with Object.open(elf_name, elf) as obj:
                for wanted in map(self._sized, obj.map_definitions()):
                    if wanted.name not in self._together:
                        continue
                    path = self.maps_dir / wanted.name
                    found = _open_fitting(path, wanted)
                    if found is not None:
                        found.close()
                    elif path.exists() or not self.put_back:
                        return False
        return True

    def _sized(self, definition: MapDefinition) -> MapDefinition:
        wanted = self._entries(definition.name)
        return definition if wanted is None else definition._replace(max_entries=wanted)

    def _adopt(self, wanted: MapDefinition, settled: bool) -> bool:
        """Open a pinned map and return True if it fits. ``settled``: there are no successors."""
        successor = self.maps_dir / (wanted.name + NEXT)
        is_member = wanted.name in self._together
        found = None
        if not is_member or self._succeed:
            found = _open_fitting(successor, wanted)
        perhaps_old = found is not None or successor.exists()
        perhaps_old |= not settled and wanted.name not in self._carried
        if found is None and not (is_member and self._succeed):
            found = _open_fitting(self.maps_dir / wanted.name, wanted)
        if found is None:
            return False
        self.maps[wanted.name] = found
        if perhaps_old:
            self.fresh.append(wanted.name)
        return True

    def _make(self, obj: Object, missing: list[MapDefinition], *, first: bool) -> None:
        """Make and pin the missing maps, through the object so that they carry their types.

        A map that is missing beside others is a successor even if its name is free: under its name
        it would pass for filled when this start is killed.
        """
        self._reuse(obj)
        for definition in missing:
            obj.set_max_entries(definition.name, definition.max_entries)
        obj.keep_programs(lambda name: False)
        obj.load()
        for definition in missing:
            made = obj.map(definition.name)
            self.maps[definition.name] = made
            if first:
                made.pin(self.maps_dir / definition.name)
            else:
                made.replace_pin(self.maps_dir / (definition.name + NEXT))
            self.fresh.append(definition.name)

    def _reuse(self, obj: Object) -> None:
        for name in [definition.name for definition in obj.map_definitions()]:
            opened = self.maps.get(name)
            if opened is not None:
                obj.set_max_entries(name, opened.max_entries)
                obj.reuse(name, opened)

    def _is_ours(self, path: Path, name: str) -> bool:
        try:
            pinned = Map.open_pinned(path)
        except (NotFound, Invalid):
            return False
        with pinned:
            return pinned.info.id == self.maps[name].info.id


def _set_constants(obj: Object, constants: Mapping[str, bytes]) -> set[str]:
    """The names of those that the object has."""
    found = set()
    for name, value in constants.items():
        try:
            obj.set_constant(name, value)
        except NotFound:
            continue
        found.add(name)
    return found


def _load_all(objects: Sequence[Object]) -> None:
    """Verify the objects beside each other: it takes most of a start, and a CPU each. Raises: the
    error of the first one that fails, when all are done.
    """
    with ThreadPoolExecutor(len(objects)) as pool:
        for loading in [pool.submit(obj.load) for obj in objects]:
            loading.result()


def _check_same(object_name: str, known: Map, wanted: MapDefinition) -> None:
    if not _fits(known, wanted):
        raise Invalid(f"{object_name} wants another layout of {wanted.name}", errno.EINVAL)


def _open_fitting(path: Path, wanted: MapDefinition) -> Map | None:
    """The map pinned at ``path`` if programs written for ``wanted`` can use it as it is."""
    try:
        pinned = Map.open_pinned(path)
    except NotFound:
        return None
    if _fits(pinned, wanted):
        return pinned
    pinned.close()
    return None


def _fits(pinned: Map, wanted: MapDefinition) -> bool:
    """An object that asks for 0 entries leaves the size to the kernel."""
    info = pinned.info
    size = wanted.max_entries or info.max_entries
    return (info.type, info.key_size, info.value_size, info.max_entries, info.flags) == (
        wanted.type,
        wanted.key_size,
        wanted.value_size,
        size,
        wanted.flags,
    )


def pinned_map_ids(directory: Path) -> set[int]:
    """Return the ids of the maps that are pinned in a directory, which may lack."""
    found = set()
    for path in directory.iterdir() if directory.is_dir() else ():
        try:
            with Map.open_pinned(path) as opened:
                found.add(opened.info.id)
        except (NotFound, Invalid):
            continue  # unpinned meanwhile, or no map
    return found


def maps_without_pin(maps_dir: Path, in_use: Iterable[int]) -> dict[str, int]:
    """Return the maps in use that are pinned nowhere in the directory, by the kernel's names.

    Two of one name, of which nobody knows which is which, are left out.
    """
    names: dict[str, list[int]] = {}
    for number in set(in_use) - pinned_map_ids(maps_dir):
        try:
            with Map.by_id(number) as opened:
                names.setdefault(opened.info.name, []).append(number)
        except NotFound:
            continue
    return {name: numbers[0] for name, numbers in names.items() if len(numbers) == 1}


def same_layout(one: Map, other: Map) -> bool:
    """Return True if entries of one mean the same in the other."""
    return (one.info.type, one.key_size, one.value_size) == (
        other.info.type,
        other.key_size,
        other.value_size,
    )


def _copy(source: Map, target: Map) -> None:
    for key, value in source.items():
        try:
            target.update(key, value, NOEXIST)
        except Exists:
            continue
