# SPDX-License-Identifier: Apache-2.0
"""Services that do not fit into a map, and a larger one that takes its place under traffic."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from bpf.maps.map import Map
from tests.e2e.clients import Clients
from tests.e2e.manifests import served
from tests.e2e.world import POD_V4, POD_V6, World, world

pytestmark = [pytest.mark.root, pytest.mark.timeout(60)]

V4, V6 = "10.203.0.10", "fd00:203::10"
LATE = [f"10.203.1.{number}" for number in range(10)]
SMALL, LARGE = 24, 4000
OPTION = "service-backend-map-max"


@pytest.fixture
def w(tmp_path: Path) -> Iterator[World]:
    with world(tmp_path, "sizes") as made:
        for address in (*POD_V4[:2], *POD_V6[:2]):
            made.inside.serve(address, address, 8080)
        made.write("echo.yaml", served("echo", V4, POD_V4[:2]))
        made.write("echo6.yaml", served("echo6", V6, POD_V6[:2]))
        yield made


def start(w: World, size: int, option: str = "service-map-max") -> None:
    """In the place of the agent that runs, if there is one."""
    if w.agents:
        w.kill_agent()
    w.start_agent(f"--bpf-lb-{option}={size}")
    w.eventually(w.ready, 30)


def errors(w: World) -> list[str]:
    found = (row["Status"] for row in w.get("/statedb/dump/frontends")["tables"]["frontends"])
    return [status["error"] for status in found if status["kind"] == "error"]


def has_size(w: World, size: int, name: str = "cilia_lb4_svc") -> bool:
    """The map has its name when no program uses its predecessor any more."""
    with Map.open_pinned(w.bpf_root / w.namespace / "maps" / name) as opened:
        return opened.max_entries == size


def test_a_larger_map_takes_the_place_of_a_full_one_and_nobody_notices(w: World) -> None:
    start(w, SMALL)
    clients = Clients(w, (V4, V6))
    clients.heard()
    for number, address in enumerate(LATE):
        w.write(f"late-{number}.yaml", served(f"late-{number}", address, POD_V4[:2]))
    w.eventually(lambda: bool(errors(w)))
    w.eventually(w.ready)
    assert all("cilia_lb4_svc" in error and str(SMALL) in error for error in errors(w))
    assert 0 < len(errors(w)) < 2 * len(LATE), "those that fit are served"
    clients.heard()

    for size in (LARGE, 2 * LARGE):
        start(w, size)
        w.eventually(lambda: not errors(w))
        w.eventually(partial(has_size, w, size))
        assert {w.inside.tcp(address, 80)["answer"] for address in LATE} <= set(POD_V4[:2])
        clients.heard()
    clients.noticed_nothing()


def numbers(w: World) -> set[str]:
    """Which number each backend has."""
    return {line for line in w.cilia("bpf", "lb", "list").stdout.splitlines() if "BE: " in line}


def test_maps_that_name_each_other_change_together_and_keep_their_numbers(w: World) -> None:
    """Slots name backends by numbers that are not those of a new map: the first ones are free."""
    w.write("a.yaml", served("first", "10.203.0.5", ["10.204.9.1", "10.204.9.2", "10.204.9.3"]))
    start(w, SMALL, OPTION)
    (w.manifests / "a.yaml").unlink()
    w.eventually(lambda: "10.204.9.1" not in w.cilia("bpf", "lb", "list").stdout)
    before = numbers(w)
    assert not any("ID=1 " in line for line in before)
    clients = Clients(w, (V4, V6))
    clients.heard()
    for size in (LARGE, 2 * LARGE, SMALL):
        start(w, size, OPTION)
        w.eventually(partial(has_size, w, size, "cilia_lb4_be"))
        assert numbers(w) == before
        clients.heard()
    clients.noticed_nothing()
