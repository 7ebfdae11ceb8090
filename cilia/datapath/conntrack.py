# SPDX-License-Identifier: Apache-2.0
"""Garbage collection of connection tracking and source translation.

Programs make entries and refresh their time; nothing in the kernel removes them before a map is
full. `ConntrackGC` sweeps in batches. The wait between sweeps follows the share that was deleted,
as cilium's does: many expired entries mean that the next sweep comes sooner. It comes before the
entries that are made meanwhile fill a map, where they would evict those of silent connections while
closed ones are there. Programs that find no room end the wait.
"""

from __future__ import annotations

import math
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Final

import anyio
import anyio.to_thread
import msgspec

from bpf.maps import ct, nat
from bpf.maps.raw import RawMap, SharedMap

__all__ = ["ConntrackGC", "ConntrackMaps", "SweepResult", "next_interval"]

#: Bounds of the wait between two sweeps, those of cilium for LRU maps.
FIRST_INTERVAL_S: Final = 300.0
MIN_INTERVAL_S: Final = 10.0
MAX_INTERVAL_S: Final = 43_200.0

#: The part of a map's room that may be filled between two sweeps, at the rate of the last ones.
FILLED_SHARE: Final = 0.5

#: While programs find no room: the shortest wait, also as a multiple of the last sweep's duration.
PRESSED_INTERVAL_S: Final = 1.0
PRESSED_SHARE: Final = 10

#: A program that has read an older time has ended after this one.
PROGRAM_S: Final = 0.01

_U32: Final = 4


class ConntrackMaps(msgspec.Struct, frozen=True):
    """The maps that are swept, by name."""

    connections: Mapping[str, SharedMap]
    translations: Mapping[str, SharedMap]
    #: Tells programs what the next sweep deletes; None: nobody takes entries over.
    swept: RawMap | None = None

    @classmethod
    def of(cls, maps: Mapping[str, SharedMap]) -> ConntrackMaps:
        """Those among all maps of the datapath; a datapath without them has nothing to sweep."""
        return cls(
            {name: maps[name] for name in ct.CT_MAPS if name in maps},
            {name: maps[name] for name in nat.NAT_MAPS if name in maps},
            maps.get(nat.SWEPT),
        )


class SweepResult(msgspec.Struct, frozen=True):
    """What one sweep found: entries left and deleted by map, and how long it took."""

    alive: dict[str, int]
    deleted: dict[str, int]
    duration_s: float

    @property
    def deleted_share(self) -> float:
        """Of all entries, in the map that lost most."""
        shares = [gone / (gone + self.alive[name]) for name, gone in self.deleted.items() if gone]
        return max(shares, default=0.0)


class ConntrackGC:
    """One task calls `run`."""

    def __init__(
        self,
        maps: ConntrackMaps,
        *,
        interval_s: float = 0.0,
        max_interval_s: float = MAX_INTERVAL_S,
        done: Callable[[SweepResult], None] = lambda result: None,
        pressed: Callable[[], Awaitable[None]] = anyio.sleep_forever,
    ) -> None:
        """`interval_s`: 0 adapts the wait to what is found. `pressed`: returns when a program found
        no room."""
        self._maps = maps
        self._interval_s = interval_s
        self._max_interval_s = max_interval_s
        self._done = done
        self._pressed = pressed

    async def run(self) -> None:
        """Sweep for ever."""
        wait_s = self._interval_s or FIRST_INTERVAL_S
        before: SweepResult | None = None
        swept_at = 0.0
        while True:
            result = await anyio.to_thread.run_sync(self.sweep)
            elapsed_s, swept_at = time.monotonic() - swept_at, time.monotonic()
            self._done(result)
            limit_s = wait_s
            if not self._interval_s:
                wait_s = next_interval(wait_s, result.deleted_share, self._max_interval_s)
                limit_s = wait_s if before is None else self._filling_s(before, result, elapsed_s)
            before = result
            await self._wait(min(wait_s, limit_s), result)

    def _filling_s(self, before: SweepResult, result: SweepResult, elapsed_s: float) -> float:
        maps = {**self._maps.connections, **self._maps.translations}
        waits = (
            filling_interval(
                result.alive[name] + result.deleted[name] - before.alive[name],
                elapsed_s,
                raw.max_entries - result.alive[name],
            )
            for name, raw in maps.items()
        )
        return min(waits, default=math.inf)

    async def _wait(self, wait_s: float, result: SweepResult) -> None:
        """Time is what makes entries expire; under pressure a sweep follows soon."""
        least_s = max(PRESSED_INTERVAL_S, PRESSED_SHARE * result.duration_s)
        with anyio.move_on_after(wait_s):
            await anyio.sleep(least_s)
            await self._pressed()

    def sweep(self, now_s: int | None = None) -> SweepResult:
        """Delete what expired. Blocking: milliseconds for each ten thousand entries."""
        start = time.monotonic()
        now = int(start) if now_s is None else now_s
        self._announce(now)
        alive, deleted = {}, {}
        for name, raw, expires in self._layouts():
            alive[name], deleted[name] = _sweep(raw, expires, now)
        return SweepResult(alive, deleted, time.monotonic() - start)

    def _announce(self, now_s: int) -> None:
        """Claim what has expired by now: programs take entries over that expire later, and those
        only. An entry that is taken over between the look and the deletion would be lost.
        """
        if self._maps.swept is None:
            return
        self._maps.swept.update(bytes(_U32), now_s.to_bytes(_U32, "little"))
        time.sleep(PROGRAM_S)

    def _layouts(self) -> Iterator[tuple[str, SharedMap, slice]]:
        for name, raw in self._maps.connections.items():
            yield name, raw, ct.EXPIRES
        for name, raw in self._maps.translations.items():
            yield name, raw, nat.EXPIRES[nat.VALUE_SIZE[name]]


def _sweep(raw: SharedMap, expires: slice, now_s: int) -> tuple[int, int]:
    """(entries left, entries deleted). An entry that got another time since the look stays: it is
    that of a new connection on the same ports, or of one that was silent and goes on. Its backend
    would be chosen anew.
    """
    alive, expired = 0, []
    for key, value in raw.items():
        if int.from_bytes(value[expires], "little") < now_s:
            expired.append((key, value))
        else:
            alive += 1
    deleted = len(raw.delete_unchanged(expired, expires))
    return alive + len(expired) - deleted, deleted


def filling_interval(made: int, elapsed_s: float, room: int) -> float:
    """The longest wait, if as many entries are made a second as before, and `room` is left.

    >>> filling_interval(1000, 10, 100_000), filling_interval(1000, 10, 0)
    (500.0, 10.0)
    """
    if made <= 0:
        return math.inf
    return max(FILLED_SHARE * room * elapsed_s / made, MIN_INTERVAL_S)


def next_interval(wait_s: float, deleted_share: float, max_s: float = MAX_INTERVAL_S) -> float:
    """The wait after a sweep that deleted this share.

    >>> next_interval(100, 0.5), next_interval(100, 0.1), next_interval(100, 0.01)
    (50.0, 100, 150.0)
    """
    if deleted_share > 0.25:
        return max(wait_s * (1.0 - deleted_share), MIN_INTERVAL_S)
    if deleted_share < 0.05:
        return min(wait_s * 1.5, max_s)
    return wait_s
