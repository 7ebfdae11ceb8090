# SPDX-License-Identifier: Apache-2.0
"""Desired routes in the kernel, as the ip command and the printed table show them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest

from cilia.linux.netlink import Group, Netlink, Subscription
from cilia.linux.rtnl import RouteMessage
from cilia.node.routes import DesiredRoutes
from reconcilers.node.routes import RouteOperations, concerns_routes
from statedb.shown.columns import table_text
from tables.addressing import IP, Prefix
from tables.node import desired_routes as desired
from tables.node.desired_routes import DesiredHop, DesiredRoute
from tables.node.routes import RouteScope, RouteType
from tests.kernel import Kernel
from tests.kernel_world import Repairing, reflecting, repairing

pytestmark = pytest.mark.root

OURS = "table all proto 196"


def route(prefix: str, owner: str = "test", **fields: object) -> DesiredRoute:
    return DesiredRoute(owner=owner, prefix=Prefix.parse(prefix), **fields)  # type: ignore[arg-type]


def ip(text: str) -> IP:
    return IP.parse(text)


class Routes:
    def __init__(self, bench: Repairing[DesiredRoute], writer: DesiredRoutes) -> None:
        self.bench = bench
        self.writer = writer
        self.kernel = bench.world.kernel

    def upsert(self, *routes: DesiredRoute) -> None:
        with self.bench.world.db.write_txn(self.bench.table) as wtxn:
            for row in routes:
                self.writer.upsert(wtxn, row)

    def delete(self, *routes: DesiredRoute) -> None:
        with self.bench.world.db.write_txn(self.bench.table) as wtxn:
            for row in routes:
                self.writer.delete(wtxn, row)

    def shown(self, family: int = 4) -> list[str]:
        """Our routes as ip prints them, blanks folded."""
        text = self.kernel.ip(f"-{family} route show {OURS}")
        return sorted(" ".join(line.split()) for line in text.splitlines() if line.strip())

    def printed(self, *names: str) -> str:
        rows = self.bench.table.all(self.bench.world.db.read_txn())
        return table_text(desired.COLUMNS, rows, names)


@asynccontextmanager
async def routing(kernel: Kernel, **settings: Any) -> AsyncIterator[Routes]:
    async with reflecting(kernel) as (world, _):
        with Netlink(kernel.netns) as netlink:
            table = desired.new_desired_routes_table(world.db)
            bench = repairing(
                world,
                table,
                RouteOperations(netlink, world.tables.devices, table),
                world.tables.routes,
                concerns_routes(table),
                desired.DEVICE,
                **settings,
            )
            async with bench as running:
                yield Routes(running, DesiredRoutes(table))


async def test_routes_of_every_form_arrive_and_are_printed(kernel: Kernel) -> None:
    kernel.veth("veth0", "peer0", "192.168.1.1/24", "fd01::1/64")
    kernel.veth("veth1", "peer1", "192.168.2.1/24", "fd02::1/64")
    async with routing(kernel) as routes:
        v0, v1 = routes.bench.world.index("veth0"), routes.bench.world.index("veth1")
        routes.upsert(
            route("10.2.3.4/32", device="veth0", table=2000, scope=RouteScope.UNIVERSE),
            route("10.3.0.0/16", nexthop=ip("192.168.1.2"), device="veth0", mtu=1400, priority=7),
            route("10.4.0.0/16", nexthop=ip("192.168.1.2"), source=ip("192.168.2.1")),
            route(
                "10.5.0.0/16",
                multipath=(DesiredHop("veth0"), DesiredHop("veth1", ip("192.168.2.2"), 3)),
            ),
            route("10.6.0.0/16", type=RouteType.UNREACHABLE, priority=9),
            route("fd09::/64", nexthop=ip("fd01::2"), device="veth0"),
            route("fd0a::/64", type=RouteType.BLACKHOLE),
            route(
                "fd0b::/64",
                multipath=(DesiredHop("veth0", ip("fd01::2")), DesiredHop("veth1", ip("fd02::2"))),
            ),
        )
        assert await routes.bench.settled() == ["done"] * 8
        assert routes.shown() == [
            "10.2.3.4 dev veth0 table 2000",
            "10.3.0.0/16 via 192.168.1.2 dev veth0 metric 7 mtu 1400",
            "10.4.0.0/16 via 192.168.1.2 dev veth0 src 192.168.2.1",
            "10.5.0.0/16",
            "nexthop dev veth0 weight 1",
            "nexthop via 192.168.2.2 dev veth1 weight 3",
            "unreachable 10.6.0.0/16 metric 9",
        ]
        assert len(routes.shown(6)) == 5
        names = ("Table", "Prefix", "Priority", "AD", "Selected", "Nexthop", "Device", "MTU")
        lines = [" ".join(line.split()) for line in routes.printed(*names).splitlines()]
        assert f"main (254) 10.3.0.0/16 7 100 true 192.168.1.2 veth0 ({v0}) 1400" in lines
        assert "main (254) 10.4.0.0/16 none 100 true 192.168.1.2 none none" in lines
        assert f"2000 10.2.3.4/32 none 100 true none veth0 ({v0}) none" in lines
        rest = [
            " ".join(line.split())
            for line in routes.printed("Prefix", "MultiPath", "Scope", "Type").splitlines()
        ]
        ways = f"[veth0 ({v0}), 192.168.2.2 veth1 ({v1})]"
        assert f"10.5.0.0/16 {ways} universe unspec" in rest
        assert "10.6.0.0/16 none universe unreachable" in rest
        # A read-back finds nothing to mend in any of these forms.
        seen = routes.bench.drifted()
        routes.bench.reconciler.verify_now()
        routes.upsert(route("10.99.0.0/16", device="veth0"))
        await routes.bench.settled()
        rows, _ = seen.next(routes.bench.world.db.read_txn())
        assert [change.obj for change in rows] == []


async def test_the_lowest_distance_wins_and_the_next_takes_its_place(kernel: Kernel) -> None:
    kernel.veth("veth0", "peer0", "192.168.1.1/24")
    async with routing(kernel) as routes:
        near = route("10.3.0.0/16", "b", nexthop=ip("192.168.1.2"), admin_distance=20)
        far = route("10.3.0.0/16", "a", nexthop=ip("192.168.1.3"), admin_distance=200)
        routes.upsert(far)
        await routes.bench.settled()
        assert routes.shown() == ["10.3.0.0/16 via 192.168.1.3 dev veth0"]
        routes.upsert(near)
        await routes.bench.settled()
        assert routes.shown() == ["10.3.0.0/16 via 192.168.1.2 dev veth0"]
        assert routes.printed("Owner", "AD", "Selected", "Status") == (
            "Owner   AD    Selected   Status\n"
            "a       200   false      Done\n"
            "b       20    true       Done\n"
        )
        with Subscription((Group.IPV4_ROUTE,), kernel.netns) as events:
            routes.delete(near)
            await routes.bench.settled()
            assert [m.deleted for m in events.read() if isinstance(m, RouteMessage)] == [False]
        assert routes.shown() == ["10.3.0.0/16 via 192.168.1.3 dev veth0"]
        routes.delete(far)
        await routes.bench.settled()
        assert routes.shown() == []


async def test_a_change_replaces_in_one_step(kernel: Kernel) -> None:
    kernel.veth("veth0", "peer0", "192.168.1.1/24")
    async with routing(kernel) as routes:
        routes.upsert(route("10.3.0.0/16", nexthop=ip("192.168.1.2")))
        await routes.bench.settled()
        with Subscription((Group.IPV4_ROUTE,), kernel.netns) as events:
            routes.upsert(route("10.3.0.0/16", nexthop=ip("192.168.1.3")))
            await routes.bench.settled()
            (event,) = events.read()
        assert isinstance(event, RouteMessage)
        assert (event.deleted, event.replaces) == (False, True)
        assert routes.shown() == ["10.3.0.0/16 via 192.168.1.3 dev veth0"]


async def test_deleting_metric_0_leaves_the_other_metrics(kernel: Kernel) -> None:
    """The kernel takes 0 for «any» when it deletes."""
    kernel.veth("veth0", "peer0", "192.168.1.1/24")
    async with routing(kernel) as routes:
        first = route("10.3.0.0/16", device="veth0")
        routes.upsert(first, route("10.3.0.0/16", device="veth0", priority=5))
        await routes.bench.settled()
        kernel.ip("route del 10.3.0.0/16 metric 0")
        routes.delete(first)
        await routes.bench.settled()
        assert routes.shown() == ["10.3.0.0/16 dev veth0 metric 5"]


async def test_a_route_of_someone_else_is_never_touched(kernel: Kernel) -> None:
    kernel.veth("veth0", "peer0", "192.168.1.1/24")
    kernel.ip("route add 10.3.0.0/16 via 192.168.1.9 proto static")
    kernel.ip("route add 10.4.0.0/16 via 192.168.1.9 proto 196")
    async with routing(kernel) as routes:
        mine = route("10.3.0.0/16", nexthop=ip("192.168.1.2"))
        routes.upsert(mine, route("10.5.0.0/16", nexthop=ip("192.168.1.2")))
        statuses = await routes.bench.settled()
        assert statuses == ["error: a route of protocol 4 is there already", "done"]
        # What a former run of ours left is pruned; what others made stays, also under our row.
        await routes.bench.world.until(
            routes.bench.world.tables.routes,
            lambda: routes.shown() == ["10.5.0.0/16 via 192.168.1.2 dev veth0"],
        )
        routes.delete(mine)
        await routes.bench.settled()
        assert "10.3.0.0/16 via 192.168.1.9" in kernel.ip("route show proto static")


async def test_a_restart_changes_nothing_that_is_right(kernel: Kernel) -> None:
    kernel.veth("veth0", "peer0", "192.168.1.1/24", "fd01::1/64")
    rows = [route(f"10.3.{i}.0/24", nexthop=ip("192.168.1.2")) for i in range(50)]
    rows += [route(f"fd09:{i}::/64", nexthop=ip("fd01::2")) for i in range(50)]
    async with routing(kernel) as routes:
        routes.upsert(*rows)
        await routes.bench.settled()
    async with routing(kernel) as routes:
        with Subscription((Group.IPV4_ROUTE, Group.IPV6_ROUTE), kernel.netns) as events:
            routes.upsert(*rows)
            assert await routes.bench.settled() == ["done"] * 100
            assert events.read() == []
        assert len(routes.shown()) == 50
        assert len(routes.shown(6)) == 50


@pytest.mark.parametrize(
    ("row", "command"),
    [
        (route("10.3.0.0/16", nexthop=ip("192.168.1.2")), "route del 10.3.0.0/16"),
        (route("10.3.0.0/16", device="veth0", table=2000), "route flush table 2000"),
        (route("fd09::/64", device="veth0"), "-6 route del fd09::/64"),
        (
            route("10.3.0.0/16", nexthop=ip("192.168.1.2")),
            "route replace 10.3.0.0/16 via 192.168.1.77 proto 196",
        ),
    ],
)
async def test_a_route_taken_or_changed_by_hand_is_back_within_a_second(
    kernel: Kernel, row: DesiredRoute, command: str
) -> None:
    kernel.veth("veth0", "peer0", "192.168.1.1/24", "fd01::1/64")
    async with routing(kernel) as routes:
        routes.upsert(row)
        await routes.bench.settled()
        whole = [routes.shown(), routes.shown(6)]
        await anyio.sleep(0.3)  # the watch is over our own writes
        seen = routes.bench.drifted()
        kernel.ip(command)
        drift = await routes.bench.repaired(
            lambda: [routes.shown(), routes.shown(6)] != whole, seen
        )
        assert drift.reconciler == "desired-routes"
        assert drift.kind == ("different" if "replace" in command else "missing")
        assert str(row.prefix) in drift.key
        assert await routes.bench.settled() == ["done"]
        # The row of the drift goes with the next read-back.
        routes.bench.reconciler.verify_now()
        table = routes.bench.drift
        await routes.bench.world.until(
            table, lambda: table.num_objects(routes.bench.world.db.read_txn()) == 0
        )


async def test_a_route_waits_for_its_device_and_comes_back_with_it(kernel: Kernel) -> None:
    async with routing(kernel, retry_backoff_min_s=60.0) as routes:
        routes.upsert(route("10.3.0.0/16", device="veth0"))
        await routes.bench.until_statuses("error: no device veth0")
        kernel.veth("veth0", "peer0")
        await routes.bench.until_statuses("done")
        kernel.ip("link del veth0")
        await routes.bench.until_statuses("error: no device veth0")
        kernel.veth("other0", "other1")  # takes the next index
        kernel.veth("veth0", "peer0")
        await routes.bench.until_statuses("done")
        index = routes.bench.world.index("veth0")
        assert f"veth0 ({index})" in routes.printed("Device")


async def test_a_foreign_route_with_our_number_is_pruned(kernel: Kernel) -> None:
    kernel.veth("veth0", "peer0", "192.168.1.1/24")
    async with routing(kernel) as routes:
        routes.upsert(route("10.3.0.0/16", device="veth0"))
        await routes.bench.settled()
        whole = routes.shown()
        seen = routes.bench.drifted()
        kernel.ip("route add 10.66.0.0/16 dev veth0 proto 196")
        drift = await routes.bench.repaired(lambda: routes.shown() != whole, seen)
        assert (drift.kind, drift.expected) == ("foreign", "")
