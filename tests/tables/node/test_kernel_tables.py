# SPDX-License-Identifier: Apache-2.0
"""The kernel's tables and what a node is to have, as printed, and their keys as text."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import pytest

from statedb import DB, BadKey, Column
from statedb.shown.columns import table_text
from statedb.shown.queries import query
from statedb.status import done, error
from tables.addressing import IP, Prefix
from tables.datapath import attachments
from tables.node import (
    desired_addresses,
    desired_devices,
    desired_routes,
    desired_rules,
    devices,
    neighbors,
    routes,
    rules,
    sysctl,
)
from tables.node.desired_routes import DesiredHop, DesiredRoute
from tables.node.devices import Device, DeviceAddress
from tables.node.neighbors import Neighbor
from tables.node.routes import Route, RouteScope, RouteType


def printed(columns: Sequence[Column], rows: Sequence[Any], *names: str) -> str:
    """The table without the blanks at the ends of lines; `|` ends each line."""
    lines = table_text(columns, rows, names).splitlines()
    return "".join(line.rstrip() + "\n" for line in lines)


def test_devices_as_printed() -> None:
    rows = [
        Device(1, "lo", mtu=65536, hardware_address=bytes(6), flags=0x10049),
        Device(
            2,
            "dummy2",
            ("alt1", "alt2"),
            "dummy",
            1500,
            bytes.fromhex("0a0000000001"),
            flags=0x1003,
            oper_state=6,
            addresses=(
                DeviceAddress(IP.parse("10.0.0.1"), 24),
                DeviceAddress(IP.parse("fd00::1"), 64),
            ),
            selected=True,
        ),
        Device(3, "tun0", oper_state=2),
    ]
    assert printed(devices.COLUMNS, rows) == (
        "Name                  Index   Selected   Type     MTU     HWAddr              "
        "Flags                    Addresses           OperStatus\n"
        "lo                    1       false      device   65536   00:00:00:00:00:00   "
        "up|loopback                                  unknown\n"
        "dummy2 (alt1, alt2)   2       true       dummy    1500    0a:00:00:00:00:01   "
        "up|broadcast|multicast   10.0.0.1, fd00::1   up\n"
        "tun0                  3       false      device   0                           "
        "0                                            down\n"
    )


def test_routes_as_printed_in_the_order_of_their_keys() -> None:
    table = routes.new_routes_table(db := DB())
    local = Route(255, 2, Prefix.parse("10.0.0.1/32"), scope=RouteScope.HOST, type=RouteType.LOCAL)
    default = Route(254, 2, routes.DEFAULT_V4, gateway=IP.parse("10.0.0.9"), priority=7, mtu=1400)
    other = Route(2000, 3, Prefix.parse("fd00::/64"), source=IP.parse("fd00::1"), scope=77)
    with db.write_txn(table) as wtxn:
        for row in (local, other, default):
            table.insert(wtxn, row)
    txn = db.read_txn()
    names = ("Destination", "Source", "Gateway", "LinkIndex", "Table", "Scope", "Priority")
    assert printed(routes.COLUMNS, list(table.all(txn)), *names) == (
        "Destination   Source    Gateway    LinkIndex   Table   Scope      Priority\n"
        "0.0.0.0/0               10.0.0.9   2           main    universe   7\n"
        "10.0.0.1/32                        2           local   host       0\n"
        "fd00::/64     fd00::1              3           2000    77         0\n"
    )
    assert list(query(table, txn, "get", "local:2:10.0.0.1/32")) == [local]
    assert list(query(table, txn, "get", "main:2:0.0.0.0/0@7")) == [default]
    assert list(query(table, txn, "prefix", "2000")) == [other]
    assert list(query(table, txn, "list", "2", "LinkIndex")) == [default, local]
    with pytest.raises(BadKey):
        query(table, txn, "get", "main:2:nothing")


def test_neighbors_as_printed() -> None:
    rows = [
        Neighbor(2, IP.parse("10.0.0.9"), b"\2\0\0\0\0\t", 1, 0x86, 0x10, 0),
        Neighbor(2, IP.parse("fd00::9"), b"", 99, 0, 0x100, 1),
    ]
    assert printed(neighbors.COLUMNS, rows) == (
        "LinkIndex   IPAddr     HardwareAddr        Type          State                       "
        "Flags         FlagsExt\n"
        "2           10.0.0.9   02:00:00:00:00:09   DST           REACHABLE|STALE|PERMANENT   "
        "EXT_LEARNED   NONE\n"
        "2           fd00::9                        UNKNOWN(99)   NONE                        "
        "UNKNOWN(8)    MANAGED\n"
    )
    table = neighbors.new_neighbors_table(db := DB())
    with db.write_txn(table) as wtxn:
        table.insert_many(wtxn, rows)
    txn = db.read_txn()
    assert list(query(table, txn, "get", "2:fd00::9")) == [rows[1]]
    assert list(query(table, txn, "get", "10.0.0.9", "IPAddr")) == [rows[0]]


def test_desired_routes_as_printed() -> None:
    rows = [
        DesiredRoute(
            owner="a",
            prefix=Prefix.parse("10.1.0.0/16"),
            device="veth0",
            device_index=2,
            table=2000,
            selected=True,
            status=done(),
        ),
        DesiredRoute(
            owner="b",
            prefix=Prefix.parse("10.1.0.0/16"),
            priority=5,
            admin_distance=20,
            multipath=(
                DesiredHop("veth0", device_index=2),
                DesiredHop("veth1", IP.parse("192.168.2.2"), device_index=3),
            ),
            mtu=1400,
            status=error("no device veth1"),
        ),
    ]
    names = [column.name for column in desired_routes.COLUMNS if column.name != "Since"]
    assert names[:14] == [
        *("Owner", "Table", "Prefix", "Priority", "AD", "Selected", "Nexthop", "Src"),
        *("Device", "MultiPath", "MTU", "Scope", "Type", "Status"),
    ]
    lines = table_text(desired_routes.COLUMNS, rows, names).splitlines()
    assert [re.split(" {3,}", line.rstrip()) for line in lines[1:]] == [
        [
            *("a", "2000", "10.1.0.0/16", "none", "100", "true", "none", "none", "veth0 (2)"),
            *("none", "none", "universe", "unspec", "Done"),
        ],
        [
            *("b", "main (254)", "10.1.0.0/16", "5", "20", "false", "none", "none", "none"),
            *("[veth0 (2), 192.168.2.2 veth1 (3)]", "1400", "universe", "unspec", "Error"),
            "no device veth1",
        ],
    ]
    table = desired_routes.new_desired_routes_table(db := DB())
    with db.write_txn(table) as wtxn:
        table.insert_many(wtxn, rows)
    txn = db.read_txn()
    assert list(query(table, txn, "prefix", "b:main:10.1.0.0/16")) == [rows[1]]
    assert list(query(table, txn, "get", "b:254:10.1.0.0/16:5")) == [rows[1]]
    assert list(query(table, txn, "get", "main:10.1.0.0/16:5", "table-prefix")) == [rows[1]]
    assert list(query(table, txn, "list", "veth0", "device")) == rows


def test_an_ipv6_prefix_in_a_text_key_keeps_its_colons() -> None:
    assert desired_routes.ID.parse_key("a:main:fd00::/64:7") == (
        "a",
        254,
        Prefix.parse("fd00::/64"),
        7,
    )
    assert routes.ID.parse_key("main:2:fd00::/64@7") == (254, 2, Prefix.parse("fd00::/64"), 7)


def test_a_rule_reads_as_a_sentence() -> None:
    rule = rules.Rule(
        family=2, priority=20, table=254, destination=Prefix.parse("10.0.0.1/32"), mark=0x200
    )
    assert desired_rules.rule_text(rule) == (
        "priority 20 from all to 10.0.0.1/32 fwmark 0x200/0x0 table main"
    )


def test_a_device_that_no_kernel_could_take_is_refused_by_field() -> None:
    spec = desired_devices.VethSpec("peer")
    good = desired_devices.DesiredDevice(owner="a", name="cilia_a", spec=spec)
    desired_devices.check(good)
    for fields, field in (
        ({"owner": ""}, "owner"),
        ({"name": "sixteen-letters-"}, "name"),
        ({"name": "a/b"}, "name"),
        ({"spec": desired_devices.VethSpec("")}, "name"),
        ({"hardware_address": b"\0"}, "hardware_address"),
    ):
        values: dict[str, Any] = {"owner": "a", "name": "cilia_a", "spec": spec} | fields
        with pytest.raises(ValueError, match=field):
            desired_devices.check(desired_devices.DesiredDevice(**values))


@pytest.mark.parametrize(
    ("module", "names"),
    [
        (desired_devices, ["Owner", "Name", "Properties", "Status"]),
        (desired_addresses, ["Owner", "Device", "Address", "Scope", "Status"]),
        (desired_rules, ["Owner", "Family", "Rule", "Status"]),
        (sysctl, ["Name", "Value", "Status"]),
        (attachments, ["Target", "Hook", "Owner", "Program", "Order"]),
    ],
)
def test_the_first_columns_of_what_is_wanted(module: Any, names: list[str]) -> None:
    assert [column.name for column in module.COLUMNS][: len(names)] == names
