# SPDX-License-Identifier: Apache-2.0
"""Kill an agent at a point of its start, start it again, and look at what that did to traffic.

Three starts are killed: the first one on an empty machine; a restart over what an agent left, with
a Service changed and another removed meanwhile, so that programs are replaced and entries pruned;
and a start with maps of another size, which takes over by a migration. After each kill the next
start must end in what a clean start makes, with nothing left over, and whoever talks through a
Service must not notice.
"""

from __future__ import annotations

import re
import time
from enum import Enum
from typing import NamedTuple

from tests.e2e.restarting import CHANGED, ECHO, ECHO6, Restarting
from tests.e2e.world import POD_V4

#: Answers awaited after each step, so that it is seen under traffic.
ANSWERS = 5


class Start(Enum):
    """Which start is killed."""

    FIRST = "first start"
    RESTART = "restart"
    OTHER_SIZE = "maps of another size"


#: What a step does, by how its point is called; the first that fits.
KINDS = (
    (r"(pin|unlink|rename|replace) .*/maps/", "pin or rename a map"),
    (r"(pin|unlink|rename|replace) .*/links/", "pin or rename a link"),
    (r"(pin|unlink|rename|replace) .*/programs/", "pin or rename a program"),
    (r"(mkdir|mount|unlink|rename|replace|create map cilia_probe)", "directories, mount, socket"),
    (r"update link", "replace a program in its link"),
    (r"attach to", "attach a program"),
    (r"(open pin .*/maps/|info of map|(size|reuse|descriptor of) map|select)", "open maps"),
    (r"(count possible CPUs|open ring buffer)", "open maps"),
    (r"(set constant|descriptor of program)", "load programs"),
    (
        r"(open pin .*/(links|programs)/|info of (link|program)|list links|(link|program|map) \d"
        r"|maps of program|read (tcx|cgroup))",
        "look at links",
    ),
    (r"(read|look up in) ", "read maps"),
    (r"update ", "write entries"),
    (r"delete from cilia_(ct|snat)", "delete flows that are over"),
    (r"delete ", "delete entries (prune)"),
)

#: Steps that change something outside the process: a kill directly after one leaves it half done.
CHANGING = frozenset(
    {
        "pin or rename a map",
        "pin or rename a link",
        "pin or rename a program",
        "replace a program in its link",
        "attach a program",
        "write entries",
        "delete flows that are over",
        "delete entries (prune)",
    }
)


def kind(step: str) -> str:
    """Raises: AssertionError for a step that no row of the table would show."""
    for pattern, name in KINDS:
        if re.match(pattern, step):
            return name
    raise AssertionError(f"what is «{step}»?")


class Told(NamedTuple):
    """What clients noticed."""

    connections: int = 0
    datagrams: int = 0
    failed: tuple[str, ...] = ()
    lost: int = 0


class Outcome(NamedTuple):
    """One kill and the start after it."""

    step: str
    told: Told
    #: Pins and kernel objects that differ from those of a clean start.
    left: list[str]

    def harmless(self) -> bool:
        return not (self.told.failed or self.told.lost or self.left)


class Clients:
    """New connections and numbered datagrams through Services that never stop serving."""

    def __init__(self, r: Restarting) -> None:
        self._world, self._inside = r.world, r.world.inside
        self._loops = [self._inside.loop_start(address, 80, 50.0) for address in (ECHO, CHANGED)]
        self._numbered = [
            self._inside.datagrams_start(address, 80, 100.0) for address in (ECHO, ECHO6)
        ]

    def heard(self) -> None:
        """Wait for some more answers in each loop."""
        wanted = {loop: self._inside.loop_count(loop) + ANSWERS for loop in self._loops}
        self._world.eventually(
            lambda: all(self._inside.loop_count(loop) >= count for loop, count in wanted.items())
        )

    def stop(self) -> Told:
        connected = [self._inside.loop_stop(loop) for loop in self._loops]
        datagrams = [self._inside.datagrams_stop(number) for number in self._numbered]
        failures = [failure for found in (*connected, *datagrams) for failure in found["failures"]]
        return Told(
            sum(sum(found["answers"].values()) for found in connected),
            sum(found["sent"] for found in datagrams),
            tuple(failures),
            sum(len(found["lost"]) for found in datagrams),
        )


class Killing:
    """Kills agents in a world that `restarting()` made."""

    def __init__(self, r: Restarting) -> None:
        self._r = r
        self._stream = r.world.inside.stream_open(ECHO, 80)

    def steps(self, start: Start) -> list[str]:
        """The points of a start of this kind that nobody kills, by what was done there."""
        self._prepare(start)
        self._r.start(self._wanted_size(start))
        return self._r.reached()

    def kill(self, start: Start, point: int) -> Outcome | None:
        """Kill a start at a point; None if it never came there."""
        self._prepare(start)
        told = Told()
        if start is Start.FIRST:  # nothing is there yet that clients could talk through
            step = self._killed_and_started(start, point, None)
            assert "answer" in self._r.world.inside.tcp(ECHO, 80)
        else:
            clients = Clients(self._r)
            try:
                step = self._killed_and_started(start, point, clients)
            finally:
                told = clients.stop()
        return Outcome(step, told, self._r.left()) if step else None

    # -- steps --

    def _prepare(self, start: Start) -> None:
        """What is there when the agent that will be killed starts."""
        r = self._r
        if not r.pid:  # what failed last left none
            r.start()
        if start is Start.FIRST:
            r.kill()
            r.cleanup()
            return
        r.write(after=False)
        r.world.eventually(lambda: r.is_in_force(after=False))
        r.kill()
        r.write(after=True)

    def _wanted_size(self, start: Start) -> int:
        r = self._r
        return r.sizes[1 - r.sizes.index(r.size)] if start is Start.OTHER_SIZE else r.size

    def _killed_and_started(self, start: Start, point: int, clients: Clients | None) -> str | None:
        """The step after which the agent died; None if it did not, and is left running."""
        r, size = self._r, self._wanted_size(start)
        if not self._dies(size, point):
            r.size = size
            return None
        step = r.reached()[-1]
        self._heard(clients)
        # After a killed migration every other start is of the build before.
        r.start(size if point % 2 else r.size)
        assert r.is_in_force(after=True), r.view()
        self._heard(clients)
        return step

    def _dies(self, size: int, point: int) -> bool:
        """Whether a start comes to its point; looks at the links go on after it."""
        r = self._r
        r.launch(size, kill_at=point)
        r.world.eventually(lambda: r.is_dead() or r.is_synchronised())
        deadline = time.monotonic() + 3
        while not r.is_dead():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.01)
        r.kill()
        return True

    def _heard(self, clients: Clients | None) -> None:
        if clients is not None:
            clients.heard()
            assert self._r.world.inside.stream_ask(self._stream) in POD_V4
