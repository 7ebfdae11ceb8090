# SPDX-License-Identifier: Apache-2.0
"""Kill an agent at a point of its start, start it again, and look at what that did to traffic.

Three starts are killed: the first one on an empty machine; a restart over what an agent left, with
a Service changed and another removed meanwhile, so that programs are replaced and entries pruned;
and a start with maps of another size, which takes over by a migration. After each kill the next
start must end in what a clean start makes, with nothing left over, and whoever talks through a
Service must not notice.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from enum import Enum
from pathlib import Path
from typing import Any, NamedTuple

from bpf.errors import BPFError
from bpf.maps.lb import LBMaps
from tests.e2e.kernel_objects import Kept, kept
from tests.e2e.killed_agent import Nursery
from tests.e2e.manifests import served
from tests.e2e.world import POD_V4, POD_V6, World, world
from tests.reconcilers.lb_view import Seen, seen

ECHO, ECHO6, CHANGED, GONE = "10.203.0.10", "fd00:203::10", "10.203.0.11", "10.203.0.12"
PROGRAMS = [f"{hook}{v}" for hook in ("connect", "getpeername", "recvmsg", "sendmsg") for v in "46"]
MAPS = [f"cilia_lb{v}_{what}" for v in "46" for what in ("be", "rev", "sk", "svc")]
#: Of the maps, those for connections of sockets have a size of their own.
NOTHING_LEFT = Kept(maps=6, programs=len(PROGRAMS), links=len(PROGRAMS))
#: Answers awaited after each step, so that it is seen under traffic.
ANSWERS = 5

View = tuple[dict[str, Seen], dict[str, int]]


class Start(Enum):
    """Which start is killed."""

    FIRST = "first start"
    RESTART = "restart"
    OTHER_SIZE = "maps of another size"


#: What a step does, by how its point is called; the first that fits.
KINDS = (
    (r"(pin|unlink|rename|replace) .*/maps/", "pin or rename a map"),
    (r"(pin|unlink|rename|replace) .*/links/", "pin or rename a link"),
    (r"(mkdir|mount|unlink|rename|replace|create map cilia_probe)", "directories, mount, socket"),
    (r"update link", "replace a program in its link"),
    (r"attach to", "attach a program"),
    (r"(open pin .*/maps/|info of map|(size|reuse|descriptor of) map|select)", "open maps"),
    (r"(set constant|descriptor of program)", "load programs"),
    (r"(open pin .*/links/|info of (link|program))", "look at links"),
    (r"read ", "read maps"),
    (r"update ", "write entries"),
    (r"delete ", "delete entries (prune)"),
)

#: Steps that change something outside the process: a kill directly after one leaves it half done.
CHANGING = frozenset(
    {
        "pin or rename a map",
        "pin or rename a link",
        "replace a program in its link",
        "attach a program",
        "write entries",
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

    connections: int
    datagrams: int
    answers_on_streams: int
    failed: list[str]
    lost: int


class Outcome(NamedTuple):
    """One kill and the start after it."""

    step: str
    told: Told
    #: Pins that are not those of a clean start.
    pins: list[str]
    kept: Kept

    def harmless(self) -> bool:
        told = self.told
        return not (told.failed or told.lost or self.pins) and self.kept == NOTHING_LEFT


class Killing:
    """A world in which agents are killed; made by `killing()`."""

    def __init__(self, w: World, nursery: Nursery) -> None:
        self.world, self._nursery = w, nursery
        self._sizes = (1_000 + os.getpid() % 30_000, 40_000 + os.getpid() % 30_000)
        self._size = self._sizes[0]
        self._pid = 0
        self._log, self._points = w.directory / "start.log", w.directory / "points"
        self._write_before()
        self._start()
        self._before = self.view()
        self._write_after()
        self._clean_start()
        self._after = self.view()
        assert self._before != self._after
        self._stream = w.inside.stream_open(ECHO, 80)

    # -- what is measured --

    def steps(self, start: Start) -> list[str]:
        """The points of a start of this kind that nobody kills, by what was done there."""
        self._prepare(start)
        self._start(self._next_size(start))
        return self._reached()

    def kill(self, start: Start, point: int) -> Outcome | None:
        """Kill a start at a point; None if it never came there."""
        self._prepare(start)
        wanted = self._next_size(start)
        with self._traffic(start) as told:
            self._start(wanted, kill_at=point)
            if self._pid:
                self._kill()
                return None
            if start is not Start.FIRST:
                self._heard(told)
            step = self._reached()[-1]
            # After a killed migration every other start is of the build before.
            self._start(wanted if point % 2 else self._size)
            assert self._is_after(), self.view()
            self._heard(told)
        return Outcome(step, told[-1], self._foreign_pins(), self._kept())

    # -- steps --

    def _prepare(self, start: Start) -> None:
        """What is there when the agent that will be killed starts."""
        if self._pid == 0:  # the last one did not reach its point
            self._start()
        if start is Start.FIRST:
            self._kill()
            self._cleanup()
            return
        self._write_before()
        self.world.eventually(lambda: self.view() == self._before)
        self._kill()
        self._write_after()

    def _next_size(self, start: Start) -> int:
        if start is not Start.OTHER_SIZE:
            return self._size
        return self._sizes[1 - self._sizes.index(self._size)]

    def _start(self, size: int = 0, *, kill_at: int = 0) -> None:
        """Start and wait until it is synchronised or dead; `_pid` is 0 then."""
        size = size or self._size
        w = self.world
        self._pid = self._nursery.start(
            [*w.command()[3:], f"--bpf-lb-map-max={size}"],
            log=self._log,
            points=self._points,
            kill_at=kill_at,
            below=[w.bpf_root, w.state_dir],
        )
        if kill_at:
            w.eventually(lambda: self._is_dead() or self._is_synchronised())
            deadline = time.monotonic() + 3  # what goes on afterwards: looks at the links
            while not self._is_dead() and time.monotonic() < deadline:
                time.sleep(0.01)
            if self._is_dead():
                self._nursery.wait(self._pid)
                self._pid = 0
            return
        w.eventually(lambda: self._is_synchronised() or self._is_dead())
        assert self._is_synchronised(), self._log.read_text()
        self._size = size

    def _is_synchronised(self) -> bool:
        return '"synchronised"' in self._log.read_text()

    def _is_dead(self) -> bool:
        """A zombie, until the nursery waits for it."""
        return Path(f"/proc/{self._pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"

    def _kill(self) -> None:
        self._nursery.kill(self._pid)
        self._pid = 0

    def _clean_start(self) -> None:
        self._kill()
        self._cleanup()
        self._start()

    def _cleanup(self) -> None:
        w = self.world
        places = (f"--state-dir={w.state_dir}", f"--bpf-root={w.bpf_root}")
        arguments = [f"--instance={w.namespace}", "cleanup", *places]
        pid = self._nursery.start(arguments, log=self._log, points=self._points)
        assert self._nursery.wait(pid) == 0, self._log.read_text()

    def _write_before(self) -> None:
        w = self.world
        w.write("echo.yaml", served("echo", ECHO, POD_V4[:2]))
        w.write("echo6.yaml", served("echo6", ECHO6, POD_V6[:2]))
        w.write("changed.yaml", served("changed", CHANGED, POD_V4[:2]))
        w.write("gone.yaml", served("gone", GONE, POD_V4[:3]))

    def _write_after(self) -> None:
        self.world.write("changed.yaml", served("changed", CHANGED, POD_V4[1:2]))
        (self.world.manifests / "gone.yaml").unlink()

    # -- what clients notice --

    @contextmanager
    def _traffic(self, start: Start) -> Iterator[list[Any]]:
        """Clients inside the block; the last of the list is what they noticed.

        Before a first start there is nothing that they could talk through: it has none.
        """
        inside = self.world.inside
        if start is Start.FIRST:
            told: list[Any] = []
            yield told
            told.append(Told(0, 0, 0, [], 0))
            return
        loops = [inside.loop_start(address, 80, 50.0) for address in (ECHO, CHANGED)]
        numbered = [inside.datagrams_start(address, 80, 100.0) for address in (ECHO, ECHO6)]
        told = [loops]
        try:
            yield told
        finally:
            connected = [inside.loop_stop(loop) for loop in loops]
            datagrams = [inside.datagrams_stop(number) for number in numbered]
        told.append(
            Told(
                sum(sum(found["answers"].values()) for found in connected),
                sum(found["sent"] for found in datagrams),
                len(told) - 1,
                [failure for found in (*connected, *datagrams) for failure in found["failures"]],
                sum(len(found["lost"]) for found in datagrams),
            )
        )

    def _heard(self, told: list[Any]) -> None:
        """Wait for some more answers of each loop, and for one on the open stream."""
        inside = self.world.inside
        if not told:
            assert "answer" in inside.tcp(ECHO, 80)
            return
        wanted = {loop: inside.loop_count(loop) + ANSWERS for loop in told[0]}
        self.world.eventually(
            lambda: all(inside.loop_count(loop) >= count for loop, count in wanted.items())
        )
        told.append(inside.stream_ask(self._stream))
        assert told[-1] in POD_V4

    # -- what is in the kernel --

    def view(self) -> View:
        """The maps without ids: frontends with their backends, and the backends."""
        try:
            maps = LBMaps.open_pinned(self._pin_dir / "maps")
        except BPFError:
            return {}, {}
        try:
            return seen(maps)
        except (AssertionError, KeyError):  # read in the middle of a change
            return {}, {}
        finally:
            maps.close()

    @property
    def _pin_dir(self) -> Path:
        return self.world.bpf_root / self.world.namespace

    def _is_after(self) -> bool:
        return self.view() == self._after

    def _foreign_pins(self) -> list[str]:
        clean = {*(f"maps/{name}" for name in MAPS), *(f"links/{name}" for name in PROGRAMS)}
        found = {
            str(path.relative_to(self._pin_dir))
            for path in self._pin_dir.rglob("*")
            if not path.is_dir()
        }
        return sorted(found ^ clean)

    def _kept(self) -> Kept:
        """What is in the kernel of either size, once it has freed what it frees later."""
        deadline = time.monotonic() + 5
        while True:
            found = kept(self._sizes, self._pin_dir / "maps", self.world.cgroup)
            if found == NOTHING_LEFT or time.monotonic() > deadline:
                return found
            time.sleep(0.02)

    def _reached(self) -> list[str]:
        return self._points.read_text().splitlines()

    def close(self) -> None:
        if self._pid:
            self._kill()


@contextmanager
def killing(directory: Path, name: str) -> Iterator[Killing]:
    """A world with traffic, and an agent that runs in it."""
    with ExitStack() as stack:
        w = stack.enter_context(world(directory, name))
        for address in (*POD_V4[:3], *POD_V6[:2]):
            w.inside.serve(address, address, 8080)
        nursery = Nursery()
        stack.callback(nursery.close)
        made = Killing(w, nursery)
        stack.callback(made.close)
        yield made
