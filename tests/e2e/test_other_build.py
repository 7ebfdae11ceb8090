# SPDX-License-Identifier: Apache-2.0
"""A build with other programs and another map layout takes over under traffic, and back."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from bpf.maps.map import Map
from tests.e2e import other_build
from tests.e2e.clients import Clients
from tests.e2e.kernel_objects import Kept, kept
from tests.e2e.killed_agent import Nursery
from tests.e2e.manifests import served
from tests.e2e.world import POD_V4, POD_V6, World, world

pytestmark = [pytest.mark.root, pytest.mark.timeout(60)]

V4, V6 = "10.203.0.10", "fd00:203::10"
SIZE = 80_000 + os.getpid() % 30_000
NEW_MAP = re.compile(r"(pin|rename) .*/maps/cilia_lb4_to")


class Builds:
    """Two builds that take turns in one world; at most one of them runs."""

    def __init__(self, w: World, nurseries: dict[str, Nursery]) -> None:
        self.world, self._nurseries = w, nurseries
        self._pid, self._running = 0, ""
        self._points = w.directory / "points"

    def start(self, build: str) -> None:
        """Kill the one that runs, start this one, wait until it has taken over."""
        self.kill()
        log = self._launch(build)
        self.world.eventually(lambda: '"synchronised"' in log.read_text(), 20)

    def dies(self, build: str, point: int) -> str:
        """Kill the one that runs, start this one, which is killed at a point; what it did there."""
        self.kill()
        self._launch(build, kill_at=point)
        self._nurseries[build].wait(self._pid)
        self._running = ""
        return self.points()[-1]

    def points(self) -> list[str]:
        """What the build that was started last came to."""
        return self._points.read_text().splitlines()

    def kill(self) -> None:
        if self._running:
            self._nurseries[self._running].kill(self._pid)
        self._running = ""

    def _launch(self, build: str, kill_at: int = 0) -> Path:
        w = self.world
        log = w.directory / f"{build}.log"
        self._running = build
        self._pid = self._nurseries[build].start(
            [*w.command()[3:], f"--bpf-lb-map-max={SIZE}"],
            log=log,
            points=self._points,
            kill_at=kill_at,
            below=[w.bpf_root, w.state_dir],
        )
        return log

    def pins(self, what: str) -> set[str]:
        return {path.name for path in (self._pin_dir / what).iterdir()}

    def backend_value_size(self) -> int:
        with Map.open_pinned(self._pin_dir / "maps" / "cilia_lb4_be") as opened:
            return opened.value_size

    def kept(self) -> Kept:
        return kept([SIZE], self._pin_dir / "maps", self.world.cgroup)

    @property
    def _pin_dir(self) -> Path:
        return self.world.bpf_root / self.world.namespace


@contextmanager
def two_builds(directory: Path, changes: Sequence[other_build.Change]) -> Iterator[Builds]:
    other_build.make(directory / "other", changes)
    with ExitStack() as stack:
        w = stack.enter_context(world(directory, "builds"))
        for address in (*POD_V4[:2], *POD_V6[:2]):
            w.inside.serve(address, address, 8080)
        w.write("echo.yaml", served("echo", V4, POD_V4[:2]))
        w.write("echo6.yaml", served("echo6", V6, POD_V6[:2]))
        nurseries = {
            "this": Nursery(entering=w.entering()),
            "other": Nursery(directory / "other", entering=w.entering()),
        }
        for nursery in nurseries.values():
            stack.callback(nursery.close)
        yield Builds(w, nurseries)


def test_clients_do_not_notice_another_build_and_the_way_back(tmp_path: Path) -> None:
    with two_builds(tmp_path, other_build.OTHER_LAYOUT) as builds:
        builds.start("this")
        mine, links, kept_first = builds.pins("maps"), builds.pins("links"), builds.kept()
        # All programs are pinned; there is no device that those of packets could be attached to.
        assert kept_first.programs == len(builds.pins("programs"))
        assert kept_first.links == len(links)
        assert links < builds.pins("programs")
        clients = Clients(builds.world, (V4, V6))
        for build, back, size in (("other", "back", 20), ("this", "rev", 16)) * 2:
            builds.start(build)
            assert builds.pins("maps") == {name.replace("rev", back) for name in mine}
            assert builds.pins("links") == links
            assert builds.backend_value_size() == size
            builds.world.eventually(lambda: builds.kept() == kept_first)
            clients.heard()
        clients.noticed_nothing()


def test_maps_that_a_killed_upgrade_made_are_filled_before_they_are_used(tmp_path: Path) -> None:
    """Under another name nothing is in the way of their pins: they must not pass for filled."""
    with two_builds(tmp_path, other_build.OTHER_NAMES) as builds:
        builds.start("other")
        mine = builds.pins("maps")
        builds.start("this")
        builds.start("other")
        points = builds.points()
        (made,) = [n for n, step in enumerate(points, 1) if NEW_MAP.match(step)][:1]
        read = next(n for n, step in enumerate(points, 1) if step.startswith("read "))
        for point in (made, (made + read) // 2, read):
            builds.start("this")
            clients = Clients(builds.world, (V4, V6))
            builds.dies("other", point)
            clients.heard()
            builds.start("other")
            clients.heard()
            clients.noticed_nothing()
            assert builds.pins("maps") == mine
