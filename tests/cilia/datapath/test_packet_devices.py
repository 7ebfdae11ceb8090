# SPDX-License-Identifier: Apache-2.0
"""Which device gets which packet programs."""

from __future__ import annotations

from pathlib import Path

import msgspec

from bpf.xdp import XdpMode
from cilia.datapath.options import DatapathOptions
from cilia.datapath.packet_devices import PacketDevicesController, netdev_of
from statedb import DB
from statedb.status import done
from tables.addressing import IP
from tables.datapath import attachments, netdevs
from tables.datapath.attachments import AttachHook, Attachment
from tables.node.devices import GROUP_ENDPOINT, IFF_UP, Device, DeviceAddress, new_devices_table
from tables.node.routes import RouteScope


def address(
    text: str, scope: int = RouteScope.UNIVERSE, *, secondary: bool = False
) -> DeviceAddress:
    return DeviceAddress(IP.parse(text), 24, scope, secondary)


UPLINK = Device(
    2,
    "eth0",
    flags=IFF_UP,
    selected=True,
    addresses=(
        address("192.0.2.7", secondary=True),
        address("192.0.2.9"),
        address("fe80::1", RouteScope.LINK),
        address("2001:db8::9"),
    ),
)
POD = Device(5, "veth1", type="veth", flags=IFF_UP)
OTHER = Device(6, "docker0", type="bridge", flags=IFF_UP)


class World:
    def __init__(self, **options: object) -> None:
        self.db = DB()
        self.devices = new_devices_table(self.db)
        self.netdevs = netdevs.new_netdevs_table(self.db)
        self.attachments = attachments.new_attachments_table(self.db)
        self.controller = PacketDevicesController(
            self.db,
            self.devices,
            self.netdevs,
            self.attachments,
            DatapathOptions.model_validate({"pod_devices": "veth+", **options}),
            Path("/pins"),
        )

    def programs(self) -> set[tuple[str, str, str]]:
        rows = self.attachments.all(self.db.read_txn())
        return {(row.target, row.hook.value, row.program) for row in rows}

    def known(self) -> list[tuple[int, str, str]]:
        rows = self.netdevs.all(self.db.read_txn())
        return [(row.index, str(row.ipv4 or ""), str(row.ipv6 or "")) for row in rows]


def with_addresses(*texts: str) -> Device:
    return msgspec.structs.replace(UPLINK, addresses=tuple(map(address, texts)))


def test_packets_leave_with_the_address_of_the_node_object() -> None:
    world = World()
    own = (IP.parse("192.0.2.9"), IP.parse("2001:db8::9"))
    dev = with_addresses("1.2.3.4", "192.0.2.1", "192.0.2.9", "2001:db8::1", "2001:db8::9")
    world.controller.step([dev], own)
    assert world.known() == [(UPLINK.index, "192.0.2.9", "2001:db8::9")]


def test_packets_leave_with_the_address_that_they_had_while_it_is_there() -> None:
    world = World()
    world.controller.step([with_addresses("192.0.2.9", "2001:db8::9")])
    world.controller.step([with_addresses("1.2.3.4", "192.0.2.9", "2001:db8::1", "2001:db8::9")])
    assert world.known() == [(UPLINK.index, "192.0.2.9", "2001:db8::9")]
    world.controller.step([with_addresses("192.0.2.1", "2001:db8::1")])
    assert world.known() == [(UPLINK.index, "192.0.2.1", "2001:db8::1")]


def test_packets_leave_with_the_address_that_an_agent_before_had_chosen() -> None:
    before = (IP.parse("192.0.2.9"), IP.parse("2001:db8::9"))
    dev = with_addresses("1.2.3.4", "192.0.2.1", "192.0.2.9", "2001:db8::1", "2001:db8::9")
    row = netdev_of(dev, before=before)
    assert (str(row.ipv4), str(row.ipv6)) == ("192.0.2.9", "2001:db8::9")
    own = (IP.parse("192.0.2.1"),)
    row = netdev_of(dev, own, before=before)
    assert (str(row.ipv4), str(row.ipv6)) == ("192.0.2.1", "2001:db8::9")
    held = netdev_of(with_addresses("1.2.3.4"))
    assert str(netdev_of(dev, held=held, before=before).ipv4) == "1.2.3.4"


def test_each_kind_of_device_gets_its_programs() -> None:
    world = World()
    world.controller.step([UPLINK, POD, OTHER])
    assert world.programs() == {
        ("eth0", "ingress", "/pins/from_netdev"),
        ("eth0", "egress", "/pins/to_netdev"),
        ("veth1", "ingress", "/pins/from_pod"),
        ("veth1", "egress", "/pins/to_pod"),
    }


def test_pods_of_another_plugin_are_served_beside_ours() -> None:
    """An endpoint's device is known by its group; its programs are asked for elsewhere."""
    world = World(pod_network=True, pod_devices="veth+,lxc+")
    ours = Device(8, "lxc1", type="veth", flags=IFF_UP, group=GROUP_ENDPOINT)
    theirs = Device(9, "lxc2", type="veth", flags=IFF_UP)
    world.controller.step([UPLINK, POD, OTHER, ours, theirs])
    assert world.programs() == {
        ("eth0", "ingress", "/pins/from_netdev"),
        ("eth0", "egress", "/pins/to_netdev"),
        ("veth1", "ingress", "/pins/from_other_pod"),
        ("veth1", "egress", "/pins/to_pod"),
        ("lxc2", "ingress", "/pins/from_other_pod"),
        ("lxc2", "egress", "/pins/to_pod"),
    }


def test_translated_packets_leave_with_the_best_global_address() -> None:
    world = World()
    world.controller.step([UPLINK, POD])
    assert world.known() == [(2, "192.0.2.9", "2001:db8::9")]
    world.controller.step([msgspec.structs.replace(UPLINK, addresses=())])
    assert world.known() == [(2, "", "")]


def test_what_goes_takes_its_rows_along_and_those_of_others_stay() -> None:
    world = World()
    theirs = Attachment(target="eth0", hook=AttachHook.INGRESS, owner="them", program="/x")
    with world.db.write_txn(world.attachments) as wtxn:
        world.attachments.insert(wtxn, theirs)
    world.controller.step([UPLINK, POD])
    world.controller.step([msgspec.structs.replace(UPLINK, selected=False)])
    assert world.programs() == {("eth0", "ingress", "/x")}
    assert world.known() == []


def test_rows_that_are_as_wanted_are_not_written() -> None:
    world = World()
    world.controller.step([UPLINK, POD])
    with world.db.write_txn(world.attachments, world.netdevs) as wtxn:
        for row in list(world.attachments.all(wtxn)):
            reconciled = msgspec.structs.replace(row, status=done(), link_id=7, program_id=3)
            world.attachments.insert(wtxn, reconciled)
        for dev in list(world.netdevs.all(wtxn)):
            world.netdevs.insert(wtxn, msgspec.structs.replace(dev, status=done()))
    txn = world.db.read_txn()
    before = world.attachments.revision(txn), world.netdevs.revision(txn)
    world.controller.step([UPLINK, POD])
    txn = world.db.read_txn()
    assert (world.attachments.revision(txn), world.netdevs.revision(txn)) == before


def test_xdp_is_asked_for_on_devices_of_the_node_alone() -> None:
    world = World(bpf_lb_acceleration="best-effort")
    world.controller.step([UPLINK, POD])
    (row,) = [
        row for row in world.attachments.all(world.db.read_txn()) if row.hook is AttachHook.XDP
    ]
    assert (row.target, row.program, row.xdp_mode, row.optional) == (
        "eth0",
        "/pins/from_netdev_xdp",
        XdpMode.NATIVE,
        True,
    )


def test_tables_are_initialized_by_the_first_look_at_devices() -> None:
    world = World()
    assert not world.netdevs.initialized(world.db.read_txn())
    world.controller.step([])
    txn = world.db.read_txn()
    assert world.netdevs.initialized(txn)
    assert world.attachments.initialized(txn)
