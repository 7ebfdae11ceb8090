# SPDX-License-Identifier: Apache-2.0
"""Writes of a whole round to several BPF maps: only differences, in phases, in batches.

    plan (one a table row): [(phase, map, key), ...]
    StagedMap: content = what the map holds, wanted = what it shall hold where that differs

`write` goes through the phases in order and through all plans in each, so a round of a thousand
rows costs a few system calls. A plan that fails in one phase does nothing in the later ones: what
replaces an entry is there before the entry goes. `content` is a cache of the map, filled by
`load`; it makes a restart write nothing where the map is right.
"""

from collections.abc import Iterable, Mapping, Sequence
from enum import IntEnum

from bpf.errors import BatchError, KernelError
from bpf.maps import RawMap


class Phase(IntEnum):
    """Order of writing: an entry is complete before the one that leads to it is written."""

    BACKEND = 0
    DETAIL = 1  # reverse translation, and the entries of frontend_details
    SLOT = 2
    MASTER = 3
    MASTER_GONE = 4
    SLOT_GONE = 5
    DETAIL_GONE = 6
    BACKEND_GONE = 7


# Backends go when all else is done, and after a look at who still uses them.
BEFORE_BACKENDS_GO = tuple(phase for phase in Phase if phase is not Phase.BACKEND_GONE)

_FIRST_REMOVAL = Phase.MASTER_GONE


class StagedMap:
    """One raw map with the writes that are still to be done."""

    def __init__(self, raw: RawMap) -> None:
        self.raw = raw
        self.content: dict[bytes, bytes] = {}
        self.wanted: dict[bytes, bytes | None] = {}
        # Keys that the map had when it was read, and that nobody has asked for since.
        self.unclaimed: set[bytes] = set()

    def load(self) -> None:
        """Read the map; writes that were outstanding are forgotten."""
        self.content = self._read()
        self.unclaimed = set(self.content)
        self.wanted = {}

    def refresh(self) -> None:
        """Read the map again; what is wanted stays wanted where the map differs."""
        claimed = self.content.keys() - self.unclaimed
        self.content = self._read()
        self.unclaimed = self.content.keys() - claimed
        self.wanted = {k: v for k, v in self.wanted.items() if self.content.get(k) != v}

    def put(self, key: bytes, value: bytes) -> None:
        if self.unclaimed:
            self.unclaimed.discard(key)
        if self.content.get(key) != value:
            self.wanted[key] = value
        elif self.wanted:
            self.wanted.pop(key, None)

    def remove(self, key: bytes) -> None:
        if key in self.content:
            self.wanted[key] = None
        elif self.wanted:
            self.wanted.pop(key, None)

    def write(self, keys: Iterable[bytes]) -> dict[bytes, KernelError]:
        """Create or replace those of `keys` that are wanted; the errors of those that failed."""
        wanted = self.wanted
        changed = {key: value for key in keys if (value := wanted.get(key)) is not None}
        failed: dict[bytes, KernelError] = {}
        self._write(list(changed), list(changed.values()), failed)
        for key in failed:
            del changed[key]
        self.content.update(changed)
        if len(changed) == len(wanted):
            wanted.clear()
        else:
            for key in changed:
                del wanted[key]
        return failed

    def erase(self, keys: Iterable[bytes]) -> dict[bytes, KernelError]:
        """Delete those of `keys` that shall go; the errors of those that failed."""
        wanted = self.wanted
        gone = list(dict.fromkeys(key for key in keys if wanted.get(key, b"") is None))
        failed: dict[bytes, KernelError] = {}
        self._erase(gone, failed)
        for key in gone:
            if key not in failed:
                del self.content[key]
                del wanted[key]
        if self.unclaimed:
            self.unclaimed.difference_update(key for key in gone if key not in failed)
        return failed

    def _read(self) -> dict[bytes, bytes]:
        return dict(self.raw.items())

    def _write(
        self, keys: list[bytes], values: list[bytes], failed: dict[bytes, KernelError]
    ) -> None:
        start = 0
        while start < len(keys):
            try:
                self.raw.update_batch(keys[start:], values[start:])
                return
            except BatchError as error:
                start += error.done
                failed[keys[start]] = error.cause
                start += 1

    def _erase(self, keys: list[bytes], failed: dict[bytes, KernelError]) -> None:
        start = 0
        while start < len(keys):
            try:
                self.raw.delete_batch(keys[start:])
                return
            except BatchError as error:
                start += error.done
                failed[keys[start]] = error.cause
                start += 1


Step = tuple[StagedMap, bytes]
Touch = tuple[Phase, StagedMap, bytes, bytes | None]


class NoRoomError(Exception):
    """A row needs more entries than a map has left; nothing of it was written."""

    def __init__(self, raw: RawMap) -> None:
        super().__init__(f"map {raw.name} is full: it has room for {raw.max_entries} entries")


class Plan:
    """What one row touches or relies on, and the error that stopped it.

    What is wanted of a key in the end stands in its map: another row may want something else.
    """

    __slots__ = ("error", "touched")

    def __init__(self) -> None:
        self.touched: list[Touch] = []
        self.error: Exception | None = None

    def put(self, phase: Phase, target: StagedMap, key: bytes, value: bytes) -> None:
        target.put(key, value)
        self.touched.append((phase, target, key, value))

    def put_all(self, steps: Sequence[tuple[Phase, StagedMap, bytes, bytes]]) -> None:
        for _, target, key, value in steps:
            target.put(key, value)
        self.touched += steps

    def remove(self, phase: Phase, target: StagedMap, key: bytes) -> None:
        target.remove(key)
        self.touched.append((phase, target, key, None))

    def steps(self, phase: Phase) -> list[Step]:
        return [(target, key) for when, target, key, _ in self.touched if when is phase]

    def outstanding(self) -> list[tuple[Phase, Step]]:
        """The steps that are not done: for the next attempt, if this one failed."""
        steps = dict.fromkeys([(phase, (target, key)) for phase, target, key, _ in self.touched])
        return [(phase, step) for phase, step in steps if step[1] in step[0].wanted]

    def resume(self, steps: Iterable[tuple[Phase, Step]]) -> None:
        """Take over what an earlier plan of the row left; what is wanted by now is what counts."""
        for phase, (target, key) in steps:
            self.touched.append((phase, target, key, None))


def admit(plans: Iterable[Plan], targets: Iterable[StagedMap]) -> None:
    """Refuse the plans whose new entries do not fit, before anything of them is written.

    First come, first served: a row that does not fit keeps what it has in force and leaves the room
    to those that do. Room that the same round will free does not count yet. `targets`: all maps
    that the plans may touch.
    """
    if all(len(m.content) + len(m.wanted) <= m.raw.max_entries for m in targets):
        return
    reserved: dict[StagedMap, set[bytes]] = {}
    for plan in plans:
        if plan.error is not None:
            continue
        new = _new_entries(plan)
        full = [
            target
            for target, keys in new.items()
            if len(target.content) + len(keys | reserved.get(target, set()))
            > target.raw.max_entries
        ]
        if full:
            plan.error = NoRoomError(full[0].raw)
            continue
        for target, keys in new.items():
            reserved.setdefault(target, set()).update(keys)


def _new_entries(plan: Plan) -> dict[StagedMap, set[bytes]]:
    new: dict[StagedMap, set[bytes]] = {}
    for phase, target, key, _ in plan.touched:
        if (
            phase < _FIRST_REMOVAL
            and key not in target.content
            and target.wanted.get(key) is not None
        ):
            new.setdefault(target, set()).add(key)
    return new


def write(plans: Sequence[Plan], phases: Iterable[Phase]) -> None:
    """Carry out all plans, phase by phase; sets the error of those that failed."""
    phases = tuple(phases)
    steps = _by_phase(plans, phases)
    for phase in phases:
        failed = {
            target: errors
            for target, keys in steps[phase].items()
            if (errors := target.write(keys) if phase < _FIRST_REMOVAL else target.erase(keys))
        }
        if failed:
            _blame(plans, phase, failed)
            steps = _by_phase(plans, phases)


def _by_phase(plans: Iterable[Plan], phases: Sequence[Phase]) -> list[dict[StagedMap, list[bytes]]]:
    """The keys of each map in each of these phases, of the plans that have not failed."""
    first, last = phases[0], phases[-1]
    steps: list[dict[StagedMap, list[bytes]]] = [{} for _ in range(last + 1)]
    for plan in plans:
        if plan.error is None:
            for phase, target, key, _ in plan.touched:
                if first <= phase <= last:
                    keys = steps[phase].get(target)
                    if keys is None:
                        steps[phase][target] = [key]
                    else:
                        keys.append(key)
    return steps


def _blame(
    plans: Iterable[Plan], phase: Phase, failed: Mapping[StagedMap, Mapping[bytes, KernelError]]
) -> None:
    """Every plan that relies on a key that could not be written fails with it."""
    for plan in plans:
        if plan.error is None:
            for target, key in plan.steps(phase):
                error = failed.get(target, {}).get(key)
                if error is not None:
                    plan.error = error
                    break
