# SPDX-License-Identifier: Apache-2.0
"""How full maps are: known from a reconciler, or counted; said once when one is nearly full."""

from __future__ import annotations

from collections.abc import Mapping

import anyio
from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs

from bpf.maps.fake import FakeMap
from cilia.datapath.map_pressure import MapPressure
from cilia.loadbalancer.map_options import MapOptions


def filled(name: str, entries: int, room: int = 10) -> FakeMap:
    made = FakeMap(name, 1, 1, room)
    fill(made, entries)
    return made


def fill(target: FakeMap, entries: int) -> None:
    target.clear()
    for number in range(entries):
        target.update(bytes([number]), b"x")


def pressure(registry: CollectorRegistry, name: str) -> float | None:
    return registry.get_sample_value("cilia_bpf_map_pressure", {"map_name": name})


async def test_what_a_reconciler_knows_is_not_counted_and_the_others_are() -> None:
    class Uncountable(FakeMap):
        def items(self) -> object:  # type: ignore[override]
            raise AssertionError("read although its entries are known")

    entries: Mapping[str, int] = {"services": 3}
    maps = [Uncountable("services", 1, 1, 10), filled("connections", 5)]
    watched = MapPressure(maps)
    watched.know(lambda: entries)
    registry = CollectorRegistry()
    registry.register(watched)
    assert pressure(registry, "services") == 0.3
    assert pressure(registry, "connections") is None, "nobody knows yet"
    async with anyio.create_task_group() as group:
        group.start_soon(watched.run)
        while pressure(registry, "connections") is None:
            await anyio.sleep(0.001)
        group.cancel_scope.cancel()
    assert pressure(registry, "connections") == 0.5
    entries = {"services": 10}
    assert pressure(registry, "services") == 1.0


def test_a_map_that_a_feature_names_is_shown_with_what_the_feature_knows() -> None:
    watched = MapPressure([filled("connections", 5)])
    watched.watch(filled("prefixes", 0), lambda: 4)
    assert watched.watched() == [{"name": "prefixes", "entries": 4, "max_entries": 10}]
    assert watched.pressures() == {"prefixes": 0.4}


async def test_a_map_that_is_nearly_full_is_said_once_until_it_has_room_again() -> None:
    full = filled("connections", 8)
    watched = MapPressure([full], interval_s=0.001)

    async def until(used: float, said: int) -> None:
        while watched.pressures().get("connections") != used or len(logs) < said:
            await anyio.sleep(0.001)

    with capture_logs() as logs:
        async with anyio.create_task_group() as group:
            group.start_soon(watched.run)
            await until(0.8, said=1)
            fill(full, 9)
            await until(0.9, said=1)
            fill(full, 1)
            await until(0.1, said=1)
            fill(full, 8)
            await until(0.8, said=2)
            group.cancel_scope.cancel()
    assert [(log["event"], log["map"], log["used"]) for log in logs] == [
        ("map is nearly full", "connections", "80%"),
        ("map is nearly full", "connections", "80%"),
    ]


async def test_status_names_the_option_of_a_map_that_is_nearly_full() -> None:
    full = filled("cilia_snat4", 9)
    told: list[tuple[bool, str]] = []
    watched = MapPressure(
        [full], interval_s=0.001, tell=lambda ok, message: told.append((ok, message))
    )

    async def until(ok: bool) -> None:
        with anyio.fail_after(5):
            while not told or told[-1][0] is not ok:
                await anyio.sleep(0.001)

    async with anyio.create_task_group() as group:
        group.start_soon(watched.run)
        await until(False)
        assert told[-1][1] == "cilia_snat4 is 90% full: --bpf-nat-global-max raises its size"
        fill(full, 1)
        await until(True)
        group.cancel_scope.cancel()


def test_only_maps_with_a_size_of_their_own_are_named() -> None:
    assert MapOptions().own_map_sizes == {}
    options = MapOptions(bpf_lb_service_map_max=1000, bpf_sock_rev_map_max=2000)
    assert options.own_map_sizes == {
        "cilia_lb4_svc": 1000,
        "cilia_lb6_svc": 1000,
        "cilia_lb4_sk": 2000,
        "cilia_lb6_sk": 2000,
    }
