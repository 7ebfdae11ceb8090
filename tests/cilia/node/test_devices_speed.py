# SPDX-License-Identifier: Apache-2.0
"""How soon a change is in the tables, also while someone else adds thousands of routes."""

from __future__ import annotations

import statistics
import threading
import time

import anyio
import anyio.to_thread
import pytest

from cilia.linux.netlink import Netlink
from cilia.linux.requests import add_address, delete_address, set_link
from cilia.linux.rtnl import AddressMessage
from tables.addressing import IP
from tests.kernel import Kernel
from tests.kernel_world import World, reflecting
from tests.patience import PATIENCE

pytestmark = pytest.mark.root

LATENCY_S = 0.050 * PATIENCE
ROUTES = 10_000


async def seen_after(world: World, netlink: Netlink, index: int, mtu: int) -> float:
    """Seconds from the kernel's answer to a change until the row shows it."""
    netlink.request(set_link(index, mtu=mtu))
    started = time.perf_counter()
    table = world.tables.devices
    with anyio.fail_after(5):
        while True:
            dev, changed = table.get_watch(world.db.read_txn(), index)
            if dev is not None and dev.mtu == mtu:
                return time.perf_counter() - started
            await changed.wait()


async def test_a_change_is_in_the_table_within_50_ms(kernel: Kernel) -> None:
    kernel.veth("v0", "v1", "10.0.0.1/24")
    async with reflecting(kernel) as (world, _):
        index = world.index("v0")
        with Netlink(kernel.netns) as netlink:
            times = [await seen_after(world, netlink, index, 1300 + i) for i in range(50)]
    assert statistics.median(times) < LATENCY_S, times


async def heartbeat(turns: list[float]) -> None:
    """Records how long the event loop takes for a turn, in seconds."""
    while True:
        started = time.perf_counter()
        await anyio.sleep(0.001)
        turns.append(time.perf_counter() - started)


def slow(turns: list[float]) -> float:
    """The 90th percentile."""
    return sorted(turns)[len(turns) * 9 // 10]


async def burst(kernel: Kernel, world: World) -> float:
    """Adds the routes, waits until all are there; by how much the loop's slow turns got slower."""
    table = world.tables.routes
    before = table.num_objects(world.db.read_txn())
    lines = [f"route add 10.{1 + (i >> 8)}.{i & 255}.0/24 dev v0" for i in range(ROUTES)]
    quiet: list[float] = []
    turns: list[float] = []
    with anyio.move_on_after(0.3):
        await heartbeat(quiet)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(heartbeat, turns)
        await anyio.to_thread.run_sync(kernel.ip_batch, lines)
        await world.until(table, lambda: table.num_objects(world.db.read_txn()) >= before + ROUTES)
        tasks.cancel_scope.cancel()
    return slow(turns) - slow(quiet)


async def routes_gone(world: World) -> None:
    table = world.tables.routes
    await world.until(table, lambda: table.num_objects(world.db.read_txn()) < 100)


async def test_ten_thousand_routes_of_someone_else_arrive_whole(kernel: Kernel) -> None:
    """The event loop stays usable meanwhile; the best of five runs counts on a noisy machine."""
    turns: list[float] = []
    for _ in range(5):
        kernel.veth("v0", "v1", "10.0.0.1/24")
        async with reflecting(kernel) as (world, reflector):
            turns.append(await burst(kernel, world))
            assert reflector.overruns == 0
            kernel.ip("link del v0")
            await routes_gone(world)
        if turns[-1] < LATENCY_S:
            break
    assert min(turns) < LATENCY_S


async def test_a_change_behind_a_burst_of_events_is_not_late(kernel: Kernel) -> None:
    """Addresses come and go a thousand times a second on another device."""
    kernel.veth("v0", "v1", "10.0.0.1/24")
    kernel.veth("w0", "w1")
    async with reflecting(kernel) as (world, _):
        index, other = world.index("v0"), world.index("w0")
        stop = threading.Event()

        def churn() -> None:
            with Netlink(kernel.netns) as netlink:
                number = 0
                while not stop.wait(0.001):
                    address = IP.parse(f"10.9.{number >> 8 & 255}.{number & 255}").packed
                    row = AddressMessage(False, other, address, 32, 0)
                    netlink.request(add_address(row))
                    netlink.request(delete_address(row))
                    number += 1

        thread = threading.Thread(target=churn)
        thread.start()
        try:
            with Netlink(kernel.netns) as netlink:
                times = [await seen_after(world, netlink, index, 1300 + i) for i in range(50)]
        finally:
            stop.set()
            await anyio.to_thread.run_sync(thread.join)
    assert statistics.median(times) < LATENCY_S, times
