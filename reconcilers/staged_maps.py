# SPDX-License-Identifier: Apache-2.0
"""Writes of a whole round to several BPF maps: only differences, in phases, in batches.

    plan (one a table row): phase -> [(map, key), ...]
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
    DETAIL = 1  # reverse translation and what else is found by the id of a frontend
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

    def load(self) -> None:
        """Read the map; writes that were outstanding are forgotten."""
        self.content = dict(self.raw.items())
        self.wanted = {}

    def refresh(self) -> None:
        """Read the map again; what is wanted stays wanted where the map differs."""
        self.content = dict(self.raw.items())
        self.wanted = {k: v for k, v in self.wanted.items() if self.content.get(k) != v}

    def put(self, key: bytes, value: bytes) -> None:
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
        for key, value in changed.items():
            if key not in failed:
                self.content[key] = value
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
        return failed

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


class Plan:
    """The keys that one row touches or relies on, by phase, and the error that stopped it."""

    __slots__ = ("error", "steps")

    def __init__(self) -> None:
        self.steps: tuple[list[Step], ...] = ([], [], [], [], [], [], [], [])
        self.error: Exception | None = None

    def put(self, phase: Phase, target: StagedMap, key: bytes, value: bytes) -> None:
        target.put(key, value)
        self.steps[phase].append((target, key))

    def remove(self, phase: Phase, target: StagedMap, key: bytes) -> None:
        target.remove(key)
        self.steps[phase].append((target, key))

    def outstanding(self) -> list[tuple[Phase, Step]]:
        """The steps that are not done: for the next attempt, if this one failed."""
        return [
            (phase, (target, key))
            for phase in Phase
            for target, key in dict.fromkeys(self.steps[phase])
            if key in target.wanted
        ]

    def resume(self, steps: Iterable[tuple[Phase, Step]]) -> None:
        """Take over what an earlier plan of the row left; what is wanted by now is what counts."""
        for phase, step in steps:
            self.steps[phase].append(step)


def write(plans: Sequence[Plan], phases: Iterable[Phase]) -> None:
    """Carry out all plans, phase by phase; sets the error of those that failed."""
    for phase in phases:
        steps = _by_map(plans, phase)
        failed = {
            target: errors
            for target, keys in steps.items()
            if (errors := target.write(keys) if phase < _FIRST_REMOVAL else target.erase(keys))
        }
        if failed:
            _blame(plans, phase, failed)


def _by_map(plans: Iterable[Plan], phase: Phase) -> dict[StagedMap, list[bytes]]:
    steps: dict[StagedMap, list[bytes]] = {}
    for plan in plans:
        if plan.error is None:
            for target, key in plan.steps[phase]:
                if target in steps:
                    steps[target].append(key)
                else:
                    steps[target] = [key]
    return steps


def _blame(
    plans: Iterable[Plan], phase: Phase, failed: Mapping[StagedMap, Mapping[bytes, KernelError]]
) -> None:
    """Every plan that relies on a key that could not be written fails with it."""
    for plan in plans:
        if plan.error is None:
            for target, key in plan.steps[phase]:
                error = failed.get(target, {}).get(key)
                if error is not None:
                    plan.error = error
                    break
