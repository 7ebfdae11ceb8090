# SPDX-License-Identifier: Apache-2.0
"""Events in, rows out: what needs no kernel to be shown."""

from __future__ import annotations

import pytest

from cilia.linux import rtnl
from cilia.node.device_selection import DeviceFilter, select
from cilia.node.kernel_batch import KernelBatch, KernelTables
from statedb import DB
from tables.addressing import IP, Prefix
from tables.node.devices import Device, DeviceAddress
from tables.node.routes import Route
from tests.kernel_world import new_tables

UP = 0x1003


def link(index: int, name: str, **fields: object) -> rtnl.LinkMessage:
    values: dict[str, object] = {
        "deleted": False,
        "index": index,
        "name": name,
        "alternative_names": (),
        "kind": "",
        "flags": UP,
        "mtu": 1500,
        "hardware_address": b"\2\0\0\0\0\1",
        "master": 0,
        "peer": 0,
        "peer_netns": -1,
        "oper_state": 6,
        "group": 0,
        "info": b"",
        "xdp": b"",
    }
    return rtnl.LinkMessage(**(values | fields))  # type: ignore[arg-type]


def address(index: int, text: str, length: int, *, deleted: bool = False) -> rtnl.AddressMessage:
    return rtnl.AddressMessage(deleted, index, IP.parse(text).packed, length, 0)


def route(text: str, **fields: object) -> rtnl.RouteMessage:
    prefix = Prefix.parse(text)
    family = rtnl.AF_INET6 if prefix.is_ipv6 else rtnl.AF_INET
    values: dict[str, object] = {
        "family": family,
        "destination": prefix.ip.packed,
        "prefix_len": prefix.length,
        "table": 254,
    }
    return rtnl.RouteMessage(**(values | fields))  # type: ignore[arg-type]


class Rows:
    def __init__(self) -> None:
        self.db = DB()
        self.tables: KernelTables = new_tables(self.db)

    def apply(self, *messages: rtnl.Message, patterns: tuple[str, ...] = ()) -> KernelBatch:
        with self.db.write_txn(*self.tables.all()) as wtxn:
            batch = KernelBatch(wtxn, self.tables, DeviceFilter(patterns))
            batch.apply(messages)
            batch.finish()
        return batch

    def device(self, index: int) -> Device:
        dev = self.tables.devices.get(self.db.read_txn(), index)
        assert dev is not None
        return dev

    def routes(self) -> list[str]:
        rows = self.tables.routes.all(self.db.read_txn())
        return [f"{r.destination} {r.gateway or '-'} {r.link_index}" for r in rows]


def test_a_route_alone_changes_which_devices_are_selected() -> None:
    rows = Rows()
    rows.apply(link(2, "eth0"), address(2, "10.0.0.1", 24))
    assert rows.device(2).not_selected_reason == "no global unicast routes"
    rows.apply(route("10.0.0.0/24", index=2))
    assert rows.device(2).selected
    rows.apply(route("10.0.0.0/24", index=2, deleted=True))
    assert not rows.device(2).selected


def test_the_first_end_of_a_pair_learns_its_peer_from_the_second() -> None:
    rows = Rows()
    rows.apply(link(2, "v1", kind="veth"), link(3, "v0", kind="veth", peer=2))
    assert rows.device(2).peer_index == 3
    rows.apply(link(4, "w0", kind="veth", peer=2, peer_netns=7))
    assert rows.device(2).peer_index == 3  # index 2 of another namespace is not ours


def test_a_device_that_goes_and_comes_within_one_batch_has_nothing_of_the_old_one() -> None:
    rows = Rows()
    rows.apply(link(2, "eth0"), address(2, "10.0.0.1", 24), route("10.0.0.0/24", index=2))
    rows.apply(link(2, "eth0", deleted=True), link(2, "eth1"), address(2, "10.1.0.1", 24))
    assert rows.device(2).name == "eth1"
    assert [str(a.address) for a in rows.device(2).addresses] == ["10.1.0.1"]
    assert rows.routes() == []


def test_unchanged_rows_are_not_written() -> None:
    rows = Rows()
    events = (link(2, "eth0"), address(2, "10.0.0.1", 24), route("10.0.0.0/24", index=2))
    rows.apply(*events)
    before = [table.revision(rows.db.read_txn()) for table in rows.tables.all()]
    rows.apply(*events)
    assert [table.revision(rows.db.read_txn()) for table in rows.tables.all()] == before


def test_a_link_that_went_down_leaves_its_routes_in_doubt() -> None:
    rows = Rows()
    rows.apply(link(2, "eth0"))
    assert rows.apply(link(2, "eth0", flags=0x1002)).stale_links == {2}
    assert not rows.apply(link(2, "eth0", flags=0x1002)).stale_links


def test_a_multipath_route_over_a_deleted_link_is_in_doubt() -> None:
    rows = Rows()
    hops = (rtnl.NextHop(2, b"", 1), rtnl.NextHop(3, b"", 1))
    rows.apply(link(2, "eth0"), link(3, "eth1"), route("fd00::/64", nexthops=hops))
    assert rows.apply(link(2, "eth0", deleted=True)).routes_uncertain


def test_a_replaced_route_takes_its_one_predecessor_with_it() -> None:
    rows = Rows()
    rows.apply(route("10.9.0.0/16", index=2, priority=5), route("10.9.0.0/16", index=2))
    batch = rows.apply(route("10.9.0.0/16", index=3, replaces=True))
    assert rows.routes() == ["10.9.0.0/16 - 2", "10.9.0.0/16 - 3"]
    assert not batch.routes_uncertain


def test_which_of_two_predecessors_was_replaced_is_in_doubt() -> None:
    rows = Rows()
    rows.apply(route("10.9.0.0/16", index=2), route("10.9.0.0/16", index=3))
    assert rows.apply(route("10.9.0.0/16", index=4, replaces=True)).routes_uncertain


def test_routes_that_share_a_key_are_one_row_and_a_delete_is_in_doubt() -> None:
    rows = Rows()
    one = IP.parse("10.0.0.1").packed
    two = IP.parse("10.0.0.2").packed
    first = route("10.9.0.0/16", index=2, gateway=one)
    batch = rows.apply(first, route("10.9.0.0/16", index=2, gateway=two))
    assert rows.routes() == ["10.9.0.0/16 10.0.0.1 2"]
    assert not batch.routes_uncertain
    assert rows.apply(route("10.9.0.0/16", index=2, gateway=two, deleted=True)).routes_uncertain
    assert rows.apply(route("10.9.0.0/16", index=2, gateway=one, deleted=True)).routes_uncertain
    with rows.db.write_txn(*rows.tables.all()) as wtxn:
        last = KernelBatch(wtxn, rows.tables, DeviceFilter())
        last.replace_routes([first])
        last.finish()
    assert not rows.apply(route("10.9.0.0/16", index=2, gateway=one, deleted=True)).routes_uncertain
    assert rows.routes() == []


def test_a_dump_with_routes_that_share_a_key_shows_the_first() -> None:
    rows = Rows()
    gateways = [IP.parse(f"10.0.0.{i}").packed for i in (1, 2, 3)]
    dump = [route("10.9.0.0/16", index=2, gateway=gateway) for gateway in gateways]
    with rows.db.write_txn(*rows.tables.all()) as wtxn:
        batch = KernelBatch(wtxn, rows.tables, DeviceFilter())
        batch.replace_routes(dump)
        batch.finish()
    (row,) = rows.tables.routes.all(rows.db.read_txn())
    assert (str(row.gateway), row.shares_key) == ("10.0.0.1", True)


def test_link_local_routes_of_many_devices_are_not_in_doubt() -> None:
    rows = Rows()
    batch = rows.apply(*(route("fe80::/64", index=i, priority=256) for i in range(2, 9)))
    assert len(rows.routes()) == 7
    assert not batch.routes_uncertain
    assert not rows.apply(route("fe80::/64", index=99, priority=256, deleted=True)).routes_uncertain


ADDRESS = (DeviceAddress(IP.parse("10.0.0.1"), 24),)
DEFAULT = Route(254, 2, Prefix.parse("0.0.0.0/0"), gateway=IP.parse("10.0.0.9"))
SUBNET = Route(254, 2, Prefix.parse("10.0.0.0/24"))
LINK_LOCAL = Route(254, 2, Prefix.parse("fe80::/64"))


def device(name: str = "eth0", **fields: object) -> Device:
    values: dict[str, object] = {"index": 2, "flags": UP, "addresses": ADDRESS}
    return Device(name=name, **(values | fields))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("dev", "routes", "reason"),
    [
        (device(), [SUBNET], ""),
        (device(), [DEFAULT, LINK_LOCAL], "no global unicast routes"),
        (device(addresses=()), [SUBNET], "device has no addresses"),
        (device(flags=0x1002), [SUBNET], "device is down"),
        (device("lo", flags=UP | 0x8), [SUBNET], "loopback or enslaved device"),
        (device(flags=UP | 0x800), [SUBNET], "loopback or enslaved device"),
        (device(master_index=7), [SUBNET], "port of the device with index 7"),
        (device("lxc123"), [SUBNET], "excluded prefix 'lxc'"),
        (device("cilia_host"), [SUBNET], "excluded prefix 'cilia_'"),
        (device(type="bridge"), [SUBNET], "bridge-like device, name it in --devices to use it"),
        (device(type="veth"), [SUBNET], "veth without default route"),
        (device(type="veth"), [SUBNET, DEFAULT], ""),
    ],
)
def test_what_a_device_looks_like_decides(dev: Device, routes: list[Route], reason: str) -> None:
    assert select(dev, routes, DeviceFilter()) == (not reason, reason)


@pytest.mark.parametrize(
    ("patterns", "names", "selected"),
    [
        (("eth0",), ("eth0",), True),
        (("eth0",), ("eth01",), False),
        (("eth+",), ("eth01",), True),
        (("eth+", "!eth9"), ("eth9",), False),
        (("!eth9",), ("eth0",), True),
        (("!eth+",), ("eth0",), False),
        (("uplink",), ("eth0", "uplink"), True),
        (("eth+", "!uplink"), ("eth0", "uplink"), False),
    ],
)
def test_patterns_decide(patterns: tuple[str, ...], names: tuple[str, ...], selected: bool) -> None:
    dev = device(names[0], alternative_names=names[1:], type="bridge")
    assert select(dev, [], DeviceFilter(patterns))[0] is selected


def test_patterns_with_detection_need_both() -> None:
    both = DeviceFilter(("eth+",), detect=True)
    assert select(device(), [SUBNET], both) == (True, "")
    assert not select(device(type="bridge"), [SUBNET], both)[0]
    assert select(device(type="veth"), [SUBNET], both) == (True, "")
