# SPDX-License-Identifier: Apache-2.0
"""The kernel's tables as they are printed, after «someone else» changed the kernel."""

from __future__ import annotations

import anyio
import pytest

from cilia.linux.netlink import Netlink
from statedb.shown.columns import table_text
from statedb.shown.queries import query
from tables.node import devices, neighbors, routes, rules
from tests.kernel import Kernel, new_kernel
from tests.kernel_world import reflecting

pytestmark = pytest.mark.root


async def test_all_tables_are_initialised_with_what_is_there(kernel: Kernel) -> None:
    kernel.veth("v0", "v1", "10.0.0.1/24")
    async with reflecting(kernel) as (world, _):
        txn = world.db.read_txn()
        assert all(table.initialized(txn) for table in world.tables.all())
        await world.devices_show(
            "Name Index Selected Type MTU Flags OperStatus",
            """
            Name Index Selected Type   MTU   Flags                  OperStatus
            lo   1     false    device 65536 up|loopback            unknown
            v1   2     false    veth   1500  up|broadcast|multicast up
            v0   3     false    veth   1500  up|broadcast|multicast up
            """,
        )


async def test_a_device_with_names_addresses_and_flags_is_followed(kernel: Kernel) -> None:
    async with reflecting(kernel) as (world, _):
        kernel.ip_batch(
            [
                "link add v0 type veth peer name v1",
                "link set v0 address 02:00:00:00:00:01 mtu 1450",
                "addr add 10.0.0.2/24 dev v0",
                "addr add 10.0.0.1/24 dev v0",
                "addr add fd00::1/64 dev v0 nodad",
            ]
        )
        table = world.tables.devices
        await world.until(table, lambda: len(world.addresses("v0")) == 3)
        v0 = world.device("v0")
        assert v0 is not None
        columns = ["MTU", "HWAddr", "Flags", "Addresses", "OperStatus"]
        assert table_text(devices.COLUMNS, [v0], columns).splitlines()[1].split() == [
            "1450",
            "02:00:00:00:00:01",
            "broadcast|multicast",
            "10.0.0.1,",
            "10.0.0.2,",
            "fd00::1",
            "down",
        ]
        assert [a.secondary for a in v0.addresses] == [True, False, False]
        kernel.ip_batch(
            [
                "link property add dev v0 altname first",
                "link property add dev v0 altname second",
                "addr del 10.0.0.2/24 dev v0",
                "link set v0 name renamed",
            ]
        )
        await world.until(table, lambda: world.device("renamed") is not None)
        for name in ("renamed", "first", "second"):
            assert world.index(name) == v0.index
        assert world.device("v0") is None
        renamed = world.device("renamed")
        assert renamed is not None
        assert devices.COLUMNS[0].cell(renamed) == "renamed (first, second)"
        kernel.ip("link del renamed")
        await world.devices_show("Name", "Name\nlo")


async def test_the_way_out_selects_a_veth_and_patterns_select_others(kernel: Kernel) -> None:
    kernel.veth("v0", "v1", "10.0.0.1/24")
    kernel.veth("w0", "w1", "10.1.0.1/24")
    async with reflecting(kernel) as (world, _):
        await world.devices_show(
            "Name Selected", "Name Selected\nlo false\nv1 false\nv0 false\nw1 false\nw0 false"
        )
        kernel.ip("route add default via 10.0.0.9")
        await world.devices_show(
            "Name Selected", "Name Selected\nlo false\nv1 false\nv0 true\nw1 false\nw0 false"
        )
        kernel.ip("link set v0 down")
        await world.devices_show(
            "Name Selected", "Name Selected\nlo false\nv1 false\nv0 false\nw1 false\nw0 false"
        )
    async with reflecting(kernel, "w+", "!w1") as (world, _):
        await world.devices_show(
            "Name Selected", "Name Selected\nlo false\nv1 false\nv0 false\nw1 false\nw0 true"
        )


async def test_a_port_that_leaves_its_bridge_stays_a_device(kernel: Kernel) -> None:
    """The kernel announces it as the deletion of a link of the bridge family."""
    kernel.veth("v0", "v1", "10.0.0.1/24")
    async with reflecting(kernel) as (world, _):
        kernel.ip_batch(["link add br0 type bridge", "link set v0 master br0"])
        table = world.tables.devices

        def master() -> int | None:
            dev = world.device("v0")
            return dev.master_index if dev else None

        await world.until(table, lambda: bool(master()))
        assert master() == world.index("br0")
        kernel.ip("link set v0 nomaster")
        await world.until(table, lambda: master() == 0)
        assert world.addresses("v0")[:1] == ["10.0.0.1"]


async def test_a_device_that_moves_to_another_namespace_is_gone_and_comes_back(
    kernel: Kernel,
) -> None:
    kernel.veth("v0", "v1", "10.0.0.1/24")
    with new_kernel() as pod:
        async with reflecting(kernel) as (world, _):
            table = world.tables.devices
            kernel.ip(f"link set v0 netns {pod.netns.path}")
            await world.until(table, lambda: world.device("v0") is None)
            assert world.device("v1") is not None
            async with reflecting(pod) as (inside, _):
                await inside.until(inside.tables.devices, lambda: bool(inside.device("v0")))
                assert inside.addresses("v0") == []
                pod.ip(f"link set v0 netns {kernel.netns.path}")
                await inside.until(inside.tables.devices, lambda: inside.device("v0") is None)
            await world.until(table, lambda: world.device("v0") is not None)


async def test_routes_come_change_and_go(kernel: Kernel) -> None:
    kernel.veth("v0", "v1", "10.0.0.1/24")
    async with reflecting(kernel) as (world, _):
        await world.main_routes("10.0.0.0/24 gw - dev v0 table main metric 0")
        kernel.ip_batch(
            [
                "route add 10.9.0.0/16 via 10.0.0.9 metric 7 table 2000",
                "route add 10.9.0.0/16 via 10.0.0.8 metric 8 table 2000",
                "route add default via 10.0.0.9",
            ]
        )
        await world.main_routes(
            """
            10.0.0.0/24 gw - dev v0 table main metric 0
            0.0.0.0/0 gw 10.0.0.9 dev v0 table main metric 0
            10.9.0.0/16 gw 10.0.0.9 dev v0 table 2000 metric 7
            10.9.0.0/16 gw 10.0.0.8 dev v0 table 2000 metric 8
            """
        )
        kernel.ip("route del 10.9.0.0/16 metric 7 table 2000")
        kernel.ip("route del default")
        await world.main_routes(
            """
            10.0.0.0/24 gw - dev v0 table main metric 0
            10.9.0.0/16 gw 10.0.0.8 dev v0 table 2000 metric 8
            """
        )


async def test_a_replaced_route_is_not_left_behind(kernel: Kernel) -> None:
    """The kernel announces the successor alone."""
    kernel.veth("v0", "v1", "10.0.0.1/24")
    kernel.veth("w0", "w1", "10.1.0.1/24")
    async with reflecting(kernel) as (world, _):
        kernel.ip("route add 10.9.0.0/16 via 10.0.0.9")
        kernel.ip("route replace 10.9.0.0/16 via 10.1.0.9")
        kernel.ip("route replace 10.9.0.0/16 via 10.1.0.8")
        await world.main_routes(
            """
            10.0.0.0/24 gw - dev v0 table main metric 0
            10.1.0.0/24 gw - dev w0 table main metric 0
            10.9.0.0/16 gw 10.1.0.8 dev w0 table main metric 0
            """
        )


async def test_appended_routes_are_followed_to_the_last(kernel: Kernel) -> None:
    kernel.veth("v0", "v1", "10.0.0.1/24")
    async with reflecting(kernel) as (world, _):
        kernel.ip("route add 10.9.0.0/16 via 10.0.0.9")
        kernel.ip("route append 10.9.0.0/16 via 10.0.0.8")
        kernel.ip("route del 10.9.0.0/16 via 10.0.0.9")
        await world.main_routes(
            """
            10.0.0.0/24 gw - dev v0 table main metric 0
            10.9.0.0/16 gw 10.0.0.8 dev v0 table main metric 0
            """
        )
        kernel.ip("route del 10.9.0.0/16")
        await world.main_routes("10.0.0.0/24 gw - dev v0 table main metric 0")


async def test_a_route_is_found_by_its_text_key(kernel: Kernel) -> None:
    kernel.veth("v0", "v1", "10.0.0.1/24")
    kernel.ip("route add default via 10.0.0.9")
    kernel.ip("route add 10.9.0.0/16 via 10.0.0.9 metric 7")
    async with reflecting(kernel) as (world, _):
        v0, txn, table = world.index("v0"), world.db.read_txn(), world.tables.routes
        (default,) = query(table, txn, "get", f"main:{v0}:0.0.0.0/0")
        assert str(default.gateway) == "10.0.0.9"
        assert list(query(table, txn, "get", f"main:{v0}:10.9.0.0/16")) == []
        (metric,) = query(table, txn, "get", f"254:{v0}:10.9.0.0/16@7")
        assert metric.priority == 7
        assert len(list(query(table, txn, "prefix", f"main:{v0}"))) == 4
        (device,) = query(world.tables.devices, txn, "list", "v0", "name")
        assert device.index == v0


async def test_routes_that_vanish_silently_with_a_link_going_down_are_gone(
    kernel: Kernel,
) -> None:
    kernel.veth("v0", "v1", "10.0.0.1/24")
    kernel.veth("w0", "w1", "10.1.0.1/24")
    async with reflecting(kernel) as (world, _):
        kernel.ip("route add 10.9.0.0/16 via 10.0.0.9")
        await world.main_routes(
            """
            10.0.0.0/24 gw - dev v0 table main metric 0
            10.1.0.0/24 gw - dev w0 table main metric 0
            10.9.0.0/16 gw 10.0.0.9 dev v0 table main metric 0
            """
        )
        kernel.ip("link set v0 down")
        await world.main_routes("10.1.0.0/24 gw - dev w0 table main metric 0")
        kernel.ip("link del w0")
        await world.main_routes("")


async def test_a_multipath_route_is_one_row_and_goes_with_one_of_its_links(
    kernel: Kernel,
) -> None:
    kernel.veth("v0", "v1", "10.0.0.1/24")
    kernel.veth("w0", "w1", "10.1.0.1/24")
    async with reflecting(kernel) as (world, _):
        kernel.ip("route add 10.9.0.0/16 nexthop via 10.0.0.9 weight 3 nexthop via 10.1.0.9")
        table = world.tables.routes

        def multipath() -> list[routes.Route]:
            return [r for r in table.all(world.db.read_txn()) if r.nexthops]

        await world.until(table, lambda: len(multipath()) == 1)
        (row,) = multipath()
        v0, w0 = world.index("v0"), world.index("w0")
        assert row.link_index == 0
        assert [(h.link_index, str(h.gateway), h.weight) for h in row.nexthops] == [
            (v0, "10.0.0.9", 3),
            (w0, "10.1.0.9", 1),
        ]
        assert row in table.list(world.db.read_txn(), v0, routes.LINK_INDEX)
        assert row in table.list(world.db.read_txn(), w0, routes.LINK_INDEX)
        kernel.ip("link del v0")
        await world.until(table, lambda: not multipath())


async def test_ipv6_ways_fold_into_one_route_and_unfold(kernel: Kernel) -> None:
    kernel.veth("v0", "v1", "fd01::1/64")
    kernel.veth("w0", "w1", "fd02::1/64")
    async with reflecting(kernel) as (world, _):
        table = world.tables.routes

        def ways() -> list[list[str]]:
            rows = table.all(world.db.read_txn())
            found = [r for r in rows if str(r.destination) == "fd09::/64"]
            return [[str(h.gateway) for h in r.nexthops] or [str(r.gateway)] for r in found]

        kernel.ip("-6 route add fd09::/64 via fd01::9 metric 5")
        await world.until(table, lambda: ways() == [["fd01::9"]])
        kernel.ip("-6 route append fd09::/64 via fd02::9 metric 5")
        await world.until(table, lambda: ways() == [["fd01::9", "fd02::9"]])
        kernel.ip("-6 route del fd09::/64 via fd01::9 metric 5")
        await world.until(table, lambda: ways() == [["fd02::9"]])
        kernel.ip("-6 route replace fd09::/64 via fd01::8 metric 5")
        await world.until(table, lambda: ways() == [["fd01::8"]])


async def test_an_ipv6_multipath_route_survives_one_of_its_links(kernel: Kernel) -> None:
    kernel.veth("v0", "v1", "fd01::1/64")
    kernel.veth("w0", "w1", "fd02::1/64")
    kernel.ip("-6 route add fd09::/64 nexthop via fd01::9 nexthop via fd02::9")
    async with reflecting(kernel) as (world, _):
        table = world.tables.routes

        def ways() -> list[tuple[int, str]]:
            rows = table.all(world.db.read_txn())
            found = [r for r in rows if str(r.destination) == "fd09::/64"]
            return [(len(r.nexthops), str(r.gateway)) for r in found]

        await world.until(table, lambda: ways() == [(2, "None")])
        kernel.ip("link del v0")
        await world.until(table, lambda: ways() == [(0, "fd02::9")])


async def test_routes_of_a_nexthop_object_go_with_it(kernel: Kernel) -> None:
    kernel.veth("v0", "v1", "10.0.0.1/24")
    async with reflecting(kernel) as (world, _):
        kernel.ip("nexthop add id 7 via 10.0.0.9 dev v0")
        kernel.ip("route add 10.9.0.0/16 nhid 7")
        await world.main_routes(
            """
            10.0.0.0/24 gw - dev v0 table main metric 0
            10.9.0.0/16 gw 10.0.0.9 dev v0 table main metric 0
            """
        )
        kernel.ip("nexthop del id 7")
        await world.main_routes("10.0.0.0/24 gw - dev v0 table main metric 0")


async def test_route_columns(kernel: Kernel) -> None:
    kernel.veth("v0", "v1", "10.0.0.1/24")
    async with reflecting(kernel) as (world, _):
        names = "Destination Source Gateway LinkIndex Table Scope Priority"
        v0 = world.index("v0")
        rows = world.tables.routes.prefix(world.db.read_txn(), (254, v0))
        wanted = [r for r in rows if not r.destination.is_ipv6]
        printed = table_text(routes.COLUMNS, wanted, names.split())
        assert printed == (
            "Destination   Source     Gateway   LinkIndex   Table   Scope   Priority\n"
            f"10.0.0.0/24   10.0.0.1             {v0}           main    link    0\n"
        )


async def test_neighbors_are_followed(kernel: Kernel) -> None:
    kernel.veth("v0", "v1", "10.0.0.1/24")
    async with reflecting(kernel) as (world, _):
        kernel.ip_batch(
            [
                "neigh add 10.0.0.9 lladdr 02:00:00:00:00:09 dev v0 nud permanent",
                "neigh add 10.0.0.8 lladdr 02:00:00:00:00:08 dev v0 nud reachable extern_learn",
            ]
        )
        table = world.tables.neighbors

        def known() -> list[neighbors.Neighbor]:
            return [n for n in table.all(world.db.read_txn()) if not n.ip.is_ipv6]

        await world.until(table, lambda: len(known()) == 2)
        v0 = world.index("v0")
        assert table_text(neighbors.COLUMNS, known()) == (
            "LinkIndex   IPAddr     HardwareAddr        Type   State       Flags         FlagsExt\n"
            f"{v0}           10.0.0.8   02:00:00:00:00:08   DST    REACHABLE   EXT_LEARNED   NONE\n"
            f"{v0}           10.0.0.9   02:00:00:00:00:09   DST    PERMANENT   NONE          NONE\n"
        )
        kernel.ip("neigh del 10.0.0.9 dev v0")
        await world.until(table, lambda: [str(n.ip) for n in known()] == ["10.0.0.8"])
        kernel.ip("link del v0")
        await world.until(table, lambda: not known())


async def test_rules_are_followed(kernel: Kernel) -> None:
    async with reflecting(kernel) as (world, _):
        kernel.ip("rule add prio 20 to 10.8.0.0/16 fwmark 0x200/0xf00 lookup 2000")
        table = world.tables.rules

        def ours() -> list[rules.Rule]:
            return [rule for rule in table.all(world.db.read_txn()) if rule.priority == 20]

        await world.until(table, lambda: len(ours()) == 1)
        (rule,) = ours()
        assert (str(rule.destination), rule.mark, rule.mask, rule.table) == (
            "10.8.0.0/16",
            0x200,
            0xF00,
            2000,
        )
        kernel.ip("rule del prio 20")
        await world.until(table, lambda: not ours())


async def test_an_overrun_is_made_good(kernel: Kernel) -> None:
    kernel.veth("v0", "v1", "10.0.0.1/24")
    async with reflecting(kernel, buffer_bytes=4096) as (world, reflector):
        kernel.ip("route add 10.6.0.0/24 dev v0")
        for _ in range(3):  # one burst may by luck be read as fast as it comes
            kernel.ip_batch(f"route replace 10.7.{i}.0/24 dev v0" for i in range(250))
            kernel.ip_batch(["route del 10.6.0.0/24 dev v0", "route add 10.6.0.0/24 dev v0"])
        kernel.ip("route del 10.6.0.0/24 dev v0")
        table = world.tables.routes

        def added() -> set[str]:
            rows = table.all(world.db.read_txn())
            return {str(r.destination) for r in rows if str(r.destination) > "10.6"}

        wanted = {f"10.7.{i}.0/24" for i in range(250)}
        await world.until(table, lambda: {d for d in added() if d[:3] == "10."} == wanted)
        assert reflector.overruns > 0
        # The first one, and one for each overrun but perhaps the last, which may still be counted.
        assert reflector.resyncs >= reflector.overruns


async def test_reading_everything_again_writes_nothing_new(kernel: Kernel) -> None:
    kernel.veth("v0", "v1", "10.0.0.2/24", "10.0.0.1/24", "fd00::1/64")
    kernel.ip("route add default via 10.0.0.9")
    async with reflecting(kernel) as (world, reflector):
        kernel.ip("link add last0 type veth peer name last1")
        await world.until(world.tables.devices, lambda: world.device("last0") is not None)

        def revisions() -> list[int]:
            return [table.revision(world.db.read_txn()) for table in world.tables.all()]

        # Late events (carrier, duplicate address detection) may come between; not every time.
        with Netlink(kernel.netns) as netlink, anyio.fail_after(10):
            while True:
                before = revisions()
                await reflector._resync(netlink)
                if revisions() == before:
                    break
