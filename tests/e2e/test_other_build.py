# SPDX-License-Identifier: Apache-2.0
"""A build with other programs and another map layout takes over under traffic, and back."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from bpf.maps.map import Map
from tests.e2e import other_build
from tests.e2e.kernel_objects import Kept, kept
from tests.e2e.killed_agent import Nursery
from tests.e2e.manifests import served
from tests.e2e.world import POD_V4, POD_V6, World, world

pytestmark = [pytest.mark.root, pytest.mark.timeout(60)]

V4, V6 = "10.203.0.10", "fd00:203::10"
SIZE = 80_000 + os.getpid() % 30_000
STREAMS = 5


class Builds:
    """Two builds that take turns in one world; at most one of them runs."""

    def __init__(self, w: World, nurseries: dict[str, Nursery]) -> None:
        self.world, self._nurseries = w, nurseries
        self._pid, self._running = 0, ""

    def start(self, build: str) -> None:
        """Kill the one that runs, start this one, wait until it has taken over."""
        if self._running:
            self._nurseries[self._running].kill(self._pid)
        w = self.world
        log = w.directory / f"{build}.log"
        self._running = build
        self._pid = self._nurseries[build].start(
            [*w.command()[3:], f"--bpf-lb-map-max={SIZE}"], log=log, points=w.directory / "points"
        )
        w.eventually(lambda: '"synchronised"' in log.read_text(), 20)

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

    def close(self) -> None:
        if self._running:
            self._nurseries[self._running].kill(self._pid)


@pytest.fixture
def builds(tmp_path: Path) -> Iterator[Builds]:
    other = tmp_path / "other"
    other_build.make(other)
    with ExitStack() as stack:
        w = stack.enter_context(world(tmp_path, "builds"))
        for address in (*POD_V4[:2], *POD_V6[:2]):
            w.inside.serve(address, address, 8080)
        w.write("echo.yaml", served("echo", V4, POD_V4[:2]))
        w.write("echo6.yaml", served("echo6", V6, POD_V6[:2]))
        nurseries = {"this": Nursery(), "other": Nursery(other)}
        for nursery in nurseries.values():
            stack.callback(nursery.close)
        made = Builds(w, nurseries)
        stack.callback(made.close)
        yield made


def test_clients_do_not_notice_another_build_and_the_way_back(builds: Builds) -> None:
    w, inside = builds.world, builds.world.inside
    builds.start("this")
    mine, links, kept_first = builds.pins("maps"), builds.pins("links"), builds.kept()
    assert kept_first.programs == kept_first.links == len(links)
    streams = inside.streams_open(V4, 80, STREAMS)
    loops = [inside.loop_start(address, 80, 50.0) for address in (V4, V6)]
    datagrams = [inside.datagrams_start(address, 80, 100.0) for address in (V4, V6)]
    for build, back, size in (("other", "back", 20), ("this", "rev", 16)) * 2:
        builds.start(build)
        assert builds.pins("maps") == {name.replace("rev", back) for name in mine}
        assert builds.pins("links") == links
        assert builds.backend_value_size() == size
        w.eventually(lambda: builds.kept() == kept_first)
        wanted = [inside.loop_count(loop) + 10 for loop in loops]
        w.eventually(
            lambda wanted=wanted: all(  # type: ignore[misc]
                inside.loop_count(loop) >= count for loop, count in zip(loops, wanted, strict=True)
            )
        )
    told = inside.streams_stop(streams)
    assert told["answered"] > STREAMS and told["failures"] == []
    for found in map(inside.loop_stop, loops):
        assert found["failures"] == []
    for found in map(inside.datagrams_stop, datagrams):
        assert (found["lost"], found["failures"]) == ([], [])
        assert found["sent"] > 100
