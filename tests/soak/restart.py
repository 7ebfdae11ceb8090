# SPDX-License-Identifier: Apache-2.0
"""`make soak-restart`: kill the agent at random moments, very often, while many talk.

`KILLS=` says how often in all (1000). A run that was ended goes on where it was.
"""

from __future__ import annotations

import os
import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from tests.benchmarks.report import machine
from tests.e2e.restarting import ECHO, ECHO6, Restarting, restarting
from tests.soak.journal import journal

STREAMS = 100
#: How long an agent lives at most: about twice a start, so that half of the kills are during one.
LIFE_S = 0.7
#: Kills between two looks at what is left; the numbers so far are written down then too.
ROUND = 10


class Told(msgspec.Struct):
    """Sums over all rounds."""

    kills: int = 0
    kills_during_a_start: int = 0
    answers_on_streams: int = 0
    connections: int = 0
    datagrams: int = 0
    lost: int = 0
    failures: list[str] = []
    #: Differences from a clean start that a round left.
    left: list[str] = []

    def harmless(self) -> bool:
        return not (self.lost or self.failures or self.left)


class Clients:
    """Open streams, new connections and numbered datagrams."""

    def __init__(self, r: Restarting) -> None:
        self._inside = r.world.inside
        self._streams = self._inside.streams_open(ECHO, 80, STREAMS)
        self._loops = [self._inside.loop_start(address, 80, 50.0) for address in (ECHO, ECHO6)]
        self._numbered = [
            self._inside.datagrams_start(address, 80, 500.0) for address in (ECHO, ECHO6)
        ]

    def stop(self, told: Told) -> None:
        """End them, and add what they noticed."""
        streams = self._inside.streams_stop(self._streams)
        told.answers_on_streams += streams["answered"]
        told.failures += streams["failures"]
        for found in map(self._inside.loop_stop, self._loops):
            told.connections += sum(found["answers"].values())
            told.failures += found["failures"]
        for found in map(self._inside.datagrams_stop, self._numbered):
            told.datagrams += found["sent"]
            told.lost += len(found["lost"])
            told.failures += found["failures"]


def soak(
    r: Restarting, kills: int, told: Told, rng: random.Random, keep: Callable[[Told], None]
) -> None:
    """Kill until `told` has so many; `keep` is called with it after each round."""
    while told.kills < kills:
        clients = Clients(r)
        try:
            after = _round(r, min(ROUND, kills - told.kills), told, rng)
        finally:
            clients.stop(told)
        r.world.eventually(lambda after=after: r.is_in_force(after=after))  # type: ignore[misc]
        told.left += [f"after {told.kills} kills: {what}" for what in r.left()]
        keep(told)


def _round(r: Restarting, kills: int, told: Told, rng: random.Random) -> bool:
    """Some kills, with changes for the agents to find, and a start that lives; the last state."""
    after = False
    for _ in range(kills):
        time.sleep(rng.uniform(0, LIFE_S))  # the moment is what is random here
        told.kills_during_a_start += not r.is_synchronised()
        r.kill()
        told.kills += 1
        after = rng.random() < 0.5
        r.write(after=after)
        r.launch()
    r.kill()
    r.start()
    return after


def main() -> int:
    kills = int(os.environ.get("KILLS", "1000"))
    with journal("soak-restart", {"kills": kills}) as kept:
        told = msgspec.convert(kept.pieces[-1], Told) if kept.pieces else Told()

        def keep(told: Told) -> None:
            kept.add(msgspec.to_builtins(told), f"{told.kills} of {kills} kills")

        with tempfile.TemporaryDirectory() as directory, restarting(Path(directory), "soak") as r:
            soak(r, kills, told, random.Random(), keep)
        kept.finish("harmless" if told.harmless() else "did harm")
    print(machine())
    for name, value in msgspec.to_builtins(told).items():
        print(f"{name.replace('_', ' '):<22} {len(value) if isinstance(value, list) else value}")
    for line in (*told.failures[:20], *told.left[:20]):
        print(line)
    return 0 if told.harmless() else 1


if __name__ == "__main__":
    sys.exit(main())
