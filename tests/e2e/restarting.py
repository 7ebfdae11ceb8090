# SPDX-License-Identifier: Apache-2.0
"""A world in which one agent after the other is started and killed, and how it must look then.

The Services of the world are in one of two states, before and after a change that an agent may
sleep through: one Service is changed, one removed, two are as they were. What the kernel must hold
in either state is what a start on an empty machine puts there.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bpf.errors import BPFError
from bpf.maps.lb import LBMaps
from tests.e2e.kernel_objects import Kept, kept
from tests.e2e.killed_agent import Nursery
from tests.e2e.manifests import served
from tests.e2e.world import POD_V4, POD_V6, World, world
from tests.reconcilers.loadbalancer.lb_view import Seen, seen

ECHO, ECHO6, CHANGED, GONE = "10.203.0.10", "fd00:203::10", "10.203.0.11", "10.203.0.12"
View = tuple[dict[str, Seen], dict[str, int]]


class Restarting:
    """The world, and the agent that runs in it, if one does."""

    def __init__(self, w: World, nursery: Nursery) -> None:
        """Learns both states; an agent runs afterwards, and `after` is in force."""
        self.world, self._nursery = w, nursery
        #: Sizes that no other agent on the machine has, so that the maps of this one are found.
        self.sizes = (1_000 + os.getpid() % 30_000, 40_000 + os.getpid() % 30_000)
        self.size = self.sizes[0]
        #: Of the agent; 0 if none runs.
        self.pid = 0
        self._log, self._points = w.directory / "start.log", w.directory / "points"
        self._views: dict[bool, View] = {}
        self._clean_pins: set[str] = set()
        self._clean_kept = Kept(0, 0, 0)
        for after in (False, True):
            self.write(after=after)
            self.start()
            self._views[after] = self.view()
            self._clean_pins, self._clean_kept = self._pins(), self._count()
            self.kill()
            self.cleanup()
        assert self._views[False] != self._views[True]
        # All programs are pinned. Those of sockets have a link each: connect, sendmsg, recvmsg and
        # getpeername of both families, and more. There is no device for those of packets.
        programs = {pin for pin in self._clean_pins if pin.startswith("programs/")}
        sockets = {pin for pin in self._clean_pins if pin.startswith("links/")}
        assert self._clean_kept.programs == len(programs)
        assert self._clean_kept.links == len(sockets) >= 8
        assert {pin.replace("links/", "programs/") for pin in sockets} < programs
        assert len(self._clean_pins) >= self._clean_kept.maps + self._clean_kept.links > 8
        self.start()

    # -- the agent --

    def launch(self, size: int = 0, *, kill_at: int = 0) -> None:
        """Start an agent and wait for nothing."""
        w = self.world
        self.pid = self._nursery.start(
            [*w.command()[3:], f"--bpf-lb-map-max={size or self.size}"],
            log=self._log,
            points=self._points,
            kill_at=kill_at,
            below=[w.bpf_root, w.state_dir],
        )

    def start(self, size: int = 0) -> None:
        """Start an agent and wait until it is synchronised."""
        self.launch(size)
        self.world.eventually(lambda: self.is_synchronised() or self.is_dead())
        assert self.is_synchronised(), self._log.read_text()
        self.size = size or self.size

    def is_synchronised(self) -> bool:
        return '"synchronised"' in self._log.read_text()

    def is_dead(self) -> bool:
        """A zombie, until `kill` waits for it."""
        return Path(f"/proc/{self.pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"

    def kill(self) -> None:
        """kill -9, if it still lives."""
        if self.pid:
            self._nursery.kill(self.pid)
        self.pid = 0

    def cleanup(self) -> None:
        """What `cilia cleanup` does, with no agent running."""
        w = self.world
        places = (f"--state-dir={w.state_dir}", f"--bpf-root={w.bpf_root}")
        arguments = [f"--instance={w.namespace}", "cleanup", *places]
        pid = self._nursery.start(arguments, log=self._log, points=self._points)
        assert self._nursery.wait(pid) == 0, self._log.read_text()

    def reached(self) -> list[str]:
        """The points that the agent that was started last has come to."""
        return self._points.read_text().splitlines()

    # -- what is to be served --

    def write(self, *, after: bool) -> None:
        """Put the Services into the state before or after the change."""
        w = self.world
        w.write("echo.yaml", served("echo", ECHO, POD_V4[:2]))
        w.write("echo6.yaml", served("echo6", ECHO6, POD_V6[:2]))
        w.write("changed.yaml", served("changed", CHANGED, POD_V4[1 if after else 0 : 2]))
        if after:
            (w.manifests / "gone.yaml").unlink(missing_ok=True)
        else:
            w.write("gone.yaml", served("gone", GONE, POD_V4[:3]))

    # -- what is in the kernel --

    def is_in_force(self, *, after: bool) -> bool:
        return self.view() == self._views[after]

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

    def left(self) -> list[str]:
        """How pins and kernel objects differ from those of a clean start, once the kernel has
        freed what it frees later.
        """
        pins = [f"pin {name}" for name in sorted(self._pins() ^ self._clean_pins)]
        deadline = time.monotonic() + 5
        while (count := self._count()) != self._clean_kept and time.monotonic() < deadline:
            time.sleep(0.02)
        return pins if count == self._clean_kept else [*pins, f"{count}, not {self._clean_kept}"]

    def _pins(self) -> set[str]:
        return {
            str(path.relative_to(self._pin_dir))
            for path in self._pin_dir.rglob("*")
            if not path.is_dir()
        }

    def _count(self) -> Kept:
        return kept(self.sizes, self._pin_dir / "maps", self.world.cgroup)

    @property
    def _pin_dir(self) -> Path:
        return self.world.bpf_root / self.world.namespace


@contextmanager
def restarting(directory: Path, name: str) -> Iterator[Restarting]:
    """A world with servers, and an agent that runs in it."""
    with world(directory, name) as w:
        for address in (*POD_V4[:3], *POD_V6[:2]):
            w.inside.serve(address, address, 8080)
        nursery = Nursery(entering=w.entering())
        try:
            yield Restarting(w, nursery)
        finally:
            nursery.close()
