# SPDX-License-Identifier: Apache-2.0
"""Desired addresses, rules, devices and parameters in the kernel."""

from __future__ import annotations

import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest

from cilia.linux.netlink import Netlink
from cilia.linux.sysctl import Sysctl
from reconcilers.node.addresses import AddressOperations, concerns_addresses
from reconcilers.node.devices import DeviceOperations, concerns_devices
from reconcilers.node.rules import RuleOperations, concerns_rules
from reconcilers.node.sysctl import SysctlOperations
from tables.addressing import IP, Prefix
from tables.node import desired_addresses, desired_devices, desired_rules, sysctl
from tables.node.desired_addresses import DesiredAddress
from tables.node.desired_devices import DesiredDevice, VethSpec, VxlanSpec
from tables.node.desired_rules import DesiredRule, desired_rule
from tables.node.rules import Rule
from tables.node.sysctl import SysctlSetting
from tests.kernel import Kernel
from tests.kernel_world import Repairing, reflecting, repairing

pytestmark = pytest.mark.root

# Time for the watch to get over what our own writes looked like.
QUIET_S = 0.3


def shown(kernel: Kernel, arguments: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(kernel.ip(f"-j -d {arguments}") or "[]")
    return [row for row in found if row]


# Addresses


def address(text: str, device: str = "v0", owner: str = "test") -> DesiredAddress:
    ip, _, length = text.partition("/")
    return DesiredAddress(owner=owner, device=device, address=IP.parse(ip), prefix_len=int(length))


@asynccontextmanager
async def addressing(kernel: Kernel, **settings: Any) -> AsyncIterator[Repairing[DesiredAddress]]:
    async with reflecting(kernel) as (world, _):
        with Netlink(kernel.netns) as netlink:
            table = desired_addresses.new_desired_addresses_table(world.db)
            async with repairing(
                world,
                table,
                AddressOperations(netlink, world.tables.devices, table),
                world.tables.devices,
                concerns_addresses(table),
                desired_addresses.DEVICE,
                **settings,
            ) as bench:
                yield bench


def addresses(kernel: Kernel, device: str = "v0") -> list[str]:
    (link,) = shown(kernel, f"addr show dev {device}")
    return [
        f"{row['local']}/{row['prefixlen']}"
        for row in link["addr_info"]
        if row["scope"] == "global"
    ]


async def test_addresses_come_and_go_with_the_last_owner(kernel: Kernel) -> None:
    kernel.veth("v0", "v1", "10.0.0.9/24")
    async with addressing(kernel) as bench:
        one, two = address("10.1.0.1/24"), address("10.1.0.1/24", owner="other")
        bench.write(one, two, address("fd00::1/128"))
        assert await bench.settled() == ["done"] * 3
        assert addresses(kernel) == ["10.0.0.9/24", "10.1.0.1/24", "fd00::1/128"]
        (link,) = shown(kernel, "addr show dev v0")
        flags = [row for row in link["addr_info"] if row["local"] == "fd00::1"]
        assert flags[0].get("nodad") is True
        bench.delete(two)
        await bench.settled()
        assert "10.1.0.1/24" in addresses(kernel)
        bench.delete(one)
        await bench.settled()
        assert addresses(kernel) == ["10.0.0.9/24", "fd00::1/128"]


async def test_an_address_of_someone_else_is_as_good_and_stays(kernel: Kernel) -> None:
    kernel.veth("v0", "v1", "10.0.0.9/24")
    async with addressing(kernel) as bench:
        row = address("10.0.0.9/24")
        bench.write(row, address("10.1.0.1/24"))
        assert await bench.settled() == ["done"] * 2
        await anyio.sleep(QUIET_S)
        seen = bench.drifted()
        kernel.ip("addr del 10.1.0.1/24 dev v0")
        await bench.repaired(lambda: len(addresses(kernel)) != 2, seen)
        assert bench.recorded == {"10.1.0.1/24 dev v0"}
        bench.delete(row)
        await bench.settled()
        assert sorted(addresses(kernel)) == ["10.0.0.9/24", "10.1.0.1/24"]


async def test_an_address_taken_by_hand_is_back_within_a_second(kernel: Kernel) -> None:
    kernel.veth("v0", "v1")
    async with addressing(kernel) as bench:
        bench.write(address("10.1.0.1/24"))
        await bench.settled()
        await anyio.sleep(QUIET_S)
        seen = bench.drifted()
        kernel.ip("addr del 10.1.0.1/24 dev v0")
        drift = await bench.repaired(lambda: addresses(kernel) != ["10.1.0.1/24"], seen)
        assert (drift.kind, drift.key) == ("missing", "10.1.0.1/24 dev v0")


async def test_an_address_waits_for_its_device(kernel: Kernel) -> None:
    async with addressing(kernel, retry_backoff_min_s=60.0) as bench:
        bench.write(address("10.1.0.1/24"))
        await bench.until_statuses("error: no device v0")
        kernel.veth("v0", "v1")
        await bench.until_statuses("done")
        assert addresses(kernel) == ["10.1.0.1/24"]


async def test_an_address_of_a_former_run_is_pruned(kernel: Kernel) -> None:
    kernel.veth("v0", "v1", "10.0.0.9/24")
    async with addressing(kernel) as bench:
        bench.write(address("10.1.0.1/24"), address("10.2.0.1/24"))
        await bench.settled()
    async with addressing(kernel) as bench:
        bench.write(address("10.1.0.1/24"))
        await bench.settled()
        await bench.world.until(
            bench.world.tables.devices,
            lambda: addresses(kernel) == ["10.0.0.9/24", "10.1.0.1/24"],
        )


# Rules


def rule(priority: int, to: str = "", **fields: Any) -> DesiredRule:
    destination = Prefix.parse(to) if to else None
    ipv6 = destination is not None and destination.is_ipv6
    family = socket.AF_INET6 if ipv6 else socket.AF_INET
    return desired_rule(
        "test",
        Rule(family=family, priority=priority, table=2000, destination=destination, **fields),
    )


@asynccontextmanager
async def ruling(kernel: Kernel) -> AsyncIterator[Repairing[DesiredRule]]:
    async with reflecting(kernel) as (world, _):
        with Netlink(kernel.netns) as netlink:
            table = desired_rules.new_desired_rules_table(world.db)
            async with repairing(
                world,
                table,
                RuleOperations(netlink, table),
                world.tables.rules,
                concerns_rules(table),
            ) as bench:
                yield bench


def rules(kernel: Kernel) -> list[str]:
    lines = (kernel.ip("-4 rule show") + kernel.ip("-6 rule show")).splitlines()
    default = ("0:", "32766:", "32767:")
    return [" ".join(line.split()) for line in lines if not line.startswith(default)]


async def test_rules_come_and_go(kernel: Kernel) -> None:
    async with ruling(kernel) as bench:
        rows = [
            rule(20, "10.8.0.0/16"),
            rule(30, mark=0x200, mask=0xF00, input_device="lo"),
            rule(40, "fd00::/64", source=Prefix.parse("fd01::/64"), invert=True),
        ]
        bench.write(*rows)
        assert await bench.settled() == ["done"] * 3
        assert rules(kernel) == [
            "20: from all to 10.8.0.0/16 lookup 2000 proto 196",
            "30: from all fwmark 0x200/0xf00 iif lo lookup 2000 proto 196",
            "40: not from fd01::/64 to fd00::/64 lookup 2000 proto 196",
        ]
        bench.delete(rows[0], rows[2])
        await bench.settled()
        assert len(rules(kernel)) == 1


async def test_a_rule_taken_by_hand_is_back_and_foreign_ones_stay(kernel: Kernel) -> None:
    kernel.ip("rule add prio 20 to 10.8.0.0/16 lookup 2000")
    kernel.ip("rule add prio 25 to 10.9.0.0/16 lookup 2000 protocol 196")
    theirs = "20: from all to 10.8.0.0/16 lookup 2000"
    async with ruling(kernel) as bench:
        same = rule(20, "10.8.0.0/16")
        bench.write(same, rule(30, "10.7.0.0/16"))
        assert await bench.settled() == ["done"] * 2
        whole = [
            theirs,
            f"{theirs} proto 196",
            "30: from all to 10.7.0.0/16 lookup 2000 proto 196",
        ]
        await bench.world.until(bench.world.tables.rules, lambda: rules(kernel) == whole)
        await anyio.sleep(QUIET_S)
        seen = bench.drifted()
        kernel.ip("rule del prio 30")
        drift = await bench.repaired(lambda: rules(kernel) != whole, seen)
        assert drift.key == "IPv4 priority 30 from all to 10.7.0.0/16 table 2000"
        bench.delete(same)
        await bench.settled()
        assert rules(kernel) == [whole[0], whole[2]]


# Devices


@asynccontextmanager
async def making(kernel: Kernel, **settings: Any) -> AsyncIterator[Repairing[DesiredDevice]]:
    async with reflecting(kernel) as (world, _):
        with Netlink(kernel.netns) as netlink:
            table = desired_devices.new_desired_devices_table(world.db)
            async with repairing(
                world,
                table,
                DeviceOperations(netlink, table),
                world.tables.devices,
                concerns_devices(table),
                **settings,
            ) as bench:
                yield bench


def links(kernel: Kernel) -> list[str]:
    return sorted(row["ifname"] for row in shown(kernel, "link show"))


def veth(name: str, peer: str, **fields: Any) -> DesiredDevice:
    return DesiredDevice(owner="test", name=name, spec=VethSpec(peer), **fields)


async def test_devices_of_both_kinds_are_made_changed_and_removed(kernel: Kernel) -> None:
    async with making(kernel) as bench:
        pair = veth("cilia_a", "cilia_b", mtu=1400, hardware_address=bytes.fromhex("020000000001"))
        tunnel = DesiredDevice(owner="test", name="cilia_vxlan", spec=VxlanSpec())
        fixed = DesiredDevice(
            owner="test",
            name="cilia_v7",
            spec=VxlanSpec(port=4789, external=False, vni=7),
            up=False,
        )
        bench.write(pair, tunnel, fixed)
        assert await bench.settled() == ["done"] * 3
        (a,) = shown(kernel, "link show dev cilia_a")
        (b,) = shown(kernel, "link show dev cilia_b")
        assert (a["mtu"], a["address"], a["link"]) == (1400, "02:00:00:00:00:01", "cilia_b")
        assert (b["mtu"], b["operstate"]) == (1400, "UP")
        (t,) = shown(kernel, "link show dev cilia_vxlan")
        assert t["linkinfo"]["info_data"]["external"] is True
        assert t["linkinfo"]["info_data"]["port"] == 8472
        assert "UP" in t["flags"]
        (v,) = shown(kernel, "link show dev cilia_v7")
        assert (v["linkinfo"]["info_data"]["id"], v["linkinfo"]["info_data"]["port"]) == (7, 4789)
        assert "UP" not in v["flags"]
        rows = {row.name: row for row in bench.table.all(bench.world.db.read_txn())}
        assert rows["cilia_a"].index == a["ifindex"]
        properties = desired_devices.properties_text
        assert properties(rows["cilia_a"]) == (
            "Type=veth, Peer=cilia_b, MTU=1400, HWAddr=02:00:00:00:00:01"
        )
        assert properties(rows["cilia_v7"]) == "Type=vxlan, VNI=7, Port=4789"
        # A change that the kernel can make in place leaves the device the same one.
        bench.write(veth("cilia_a", "cilia_b", mtu=1300))
        await bench.settled()
        (changed,) = shown(kernel, "link show dev cilia_a")
        assert (changed["mtu"], changed["ifindex"]) == (1300, a["ifindex"])
        # One that it cannot make takes a new device.
        bench.write(DesiredDevice(owner="test", name="cilia_v7", spec=VxlanSpec(port=4790)))
        await bench.settled()
        (made,) = shown(kernel, "link show dev cilia_v7")
        assert made["linkinfo"]["info_data"]["port"] == 4790
        bench.delete(*bench.table.all(bench.world.db.read_txn()))
        await bench.settled()
        assert links(kernel) == ["lo"]


async def test_a_device_of_someone_else_is_never_touched(kernel: Kernel) -> None:
    kernel.veth("cilia_a", "theirs")
    kernel.veth("other0", "other1")
    async with making(kernel) as bench:
        row = veth("cilia_a", "cilia_b", mtu=1300)
        bench.write(row)
        assert await bench.settled() == [
            "error: a device cilia_a is there already, made by someone else"
        ]
        bench.reconciler.prune_now()
        bench.delete(row)
        await bench.settled()
        assert links(kernel) == ["cilia_a", "lo", "other0", "other1", "theirs"]
        (link,) = shown(kernel, "link show dev cilia_a")
        assert link["mtu"] == 1500


async def test_a_device_of_a_former_run_is_pruned(kernel: Kernel) -> None:
    async with making(kernel) as bench:
        bench.write(veth("cilia_a", "cilia_b"), veth("cilia_c", "cilia_d"))
        await bench.settled()
    async with making(kernel) as bench:
        bench.write(veth("cilia_a", "cilia_b"))
        await bench.settled()
        await bench.world.until(
            bench.world.tables.devices, lambda: links(kernel) == ["cilia_a", "cilia_b", "lo"]
        )


@pytest.mark.parametrize(
    ("command", "kind"),
    [
        ("link del cilia_a", "missing"),
        ("link set cilia_a down", "different"),
        ("link set cilia_a mtu 1200", "different"),
    ],
)
async def test_a_device_changed_by_hand_is_whole_again_within_a_second(
    kernel: Kernel, command: str, kind: str
) -> None:
    def broken() -> bool:
        found = {row["ifname"]: row for row in shown(kernel, "link show")}
        if "cilia_a" not in found:
            return True
        return found["cilia_a"]["mtu"] != 1400 or "UP" not in found["cilia_a"]["flags"]

    async with making(kernel) as bench:
        bench.write(veth("cilia_a", "cilia_b", mtu=1400))
        await bench.settled()
        await anyio.sleep(QUIET_S)
        seen = bench.drifted()
        kernel.ip(command)
        drift = await bench.repaired(broken, seen)
        assert (drift.key, drift.kind) == ("cilia_a", kind)


# Parameters


async def test_parameters_are_set_and_set_again(kernel: Kernel) -> None:
    kernel.veth("v0.7", "v1")
    parameters = Sysctl(kernel.netns)
    async with reflecting(kernel) as (world, _):
        table = sysctl.new_sysctl_table(world.db)
        async with repairing(
            world,
            table,
            SysctlOperations(world.db, parameters, table),
            verify_interval_s=0.2,
        ) as bench:
            bench.write(
                SysctlSetting("net.ipv4.conf.v0/7.rp_filter", "2"),
                SysctlSetting("net.ipv4.ip_local_port_range", "20000 30000"),
                SysctlSetting("net.ipv4.no_such_parameter", "1"),
                SysctlSetting("net.ipv6.no_such_parameter", "1", optional=True),
            )
            assert await bench.settled() == [
                "done",
                "done",
                "error: this kernel has no parameter net.ipv4.no_such_parameter",
                "done",
            ]
            name = "net.ipv4.conf.v0/7.rp_filter"
            assert parameters.read(name) == "2"
            assert parameters.read("net.ipv4.ip_local_port_range") == "20000\t30000"
            seen = bench.drifted()
            parameters.write(name, "0")
            drift = await bench.repaired(lambda: parameters.read(name) != "2", seen)
            assert (drift.key, drift.kind, drift.expected, drift.actual) == (
                name,
                "different",
                "2",
                "0",
            )
