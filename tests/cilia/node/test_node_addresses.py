# SPDX-License-Identifier: Apache-2.0
"""Devices in, the printed node addresses out."""

from __future__ import annotations

from collections.abc import Callable

import anyio
import pytest

from cilia.node.node_addresses import InForce, NodeAddressConfig, NodeAddressController
from cilia.node.options import NodeOptions
from cilia.node.own_addresses import own_addresses
from statedb import DB
from statedb.shown.columns import table_text
from tables.addressing import IP, Prefix
from tables.cluster.nodes import Node, new_nodes_table
from tables.node.devices import Device, DeviceAddress, new_devices_table
from tables.node.node_addresses import COLUMNS, new_node_addresses_table
from tables.node.routes import TABLE_LOCAL, Route, RouteScope, RouteType, new_routes_table


def device(
    index: int,
    name: str,
    *addresses: str,
    selected: bool = True,
    up: bool = True,
    kind: str = "device",
) -> Device:
    """An address is written ADDRESS or ADDRESS*SCOPE; a leading ~ makes it secondary."""
    rows = []
    for text in addresses:
        ip, _, scope = text.lstrip("~").partition("*")
        rows.append(
            DeviceAddress(IP.parse(ip), 24, int(scope or 0), secondary=text.startswith("~"))
        )
    return Device(
        index,
        name,
        type=kind,
        flags=int(up),
        addresses=tuple(rows),
        selected=selected,
    )


class World:
    def __init__(
        self,
        config: NodeAddressConfig | None = None,
        *node_ips: str,
        before: Callable[[], InForce] = InForce,
    ) -> None:
        self.db = DB()
        self.devices = new_devices_table(self.db)
        self.routes = new_routes_table(self.db)
        self.table = new_node_addresses_table(self.db)
        self.nodes = new_nodes_table(self.db)
        self.controller = NodeAddressController(
            self.db,
            self.devices,
            self.routes,
            self.table,
            config,
            own_addresses(self.nodes, "here"),
            before,
        )
        if node_ips:
            self.put_node(*node_ips)

    def put_node(self, *internal: str, external: str = "") -> None:
        outside = (IP.parse(external),) if external else ()
        row = Node("here", internal_ips=tuple(map(IP.parse, internal)), external_ips=outside)
        with self.db.write_txn(self.nodes) as wtxn:
            self.nodes.insert(wtxn, row)

    def put(self, *devices: Device) -> None:
        with self.db.write_txn(self.devices) as wtxn:
            for dev in devices:
                self.devices.insert(wtxn, dev)

    def printed(self) -> list[str]:
        rows = self.table.all(self.db.read_txn())
        return [" ".join(line.split()) for line in table_text(COLUMNS, rows).splitlines()[1:]]

    def after_update(self) -> list[str]:
        self.controller.update()
        return self.printed()


def test_public_is_primary_and_private_answers_for_node_ports() -> None:
    world = World()
    world.put(device(2, "eth0", "10.0.0.2", "10.0.0.1", "1.2.3.4", "fd00::1", "2600::1"))
    assert world.after_update() == [
        "1.2.3.4 false true *",
        "1.2.3.4 false true eth0",
        "10.0.0.1 true false eth0",
        "10.0.0.2 false false eth0",
        "2600::1 false true *",
        "2600::1 false true eth0",
        "fd00::1 true false eth0",
    ]


def test_secondary_and_narrow_addresses_come_last_and_link_local_ones_do_not_count() -> None:
    world = World()
    world.put(device(2, "eth0", "~10.0.0.1", "10.0.0.5*200", "10.0.0.9", "fe80::1*253"))
    assert world.after_update() == [
        "10.0.0.1 false false eth0",
        "10.0.0.5 false false eth0",
        "10.0.0.9 false true *",
        "10.0.0.9 true true eth0",
        "fe80::1 false true *",
    ]


def chosen(world: World) -> list[str]:
    """What serves node ports or is primary on eth0."""
    return [line for line in world.after_update() if "eth0" in line and "true" in line]


IN_FORCE = InForce(
    tuple(map(IP.parse, ("1.2.3.4", "2600::2"))), tuple(map(IP.parse, ("10.0.0.7", "fd00::2")))
)


def test_what_an_agent_before_had_chosen_stays_while_there_is_no_node_object() -> None:
    world = World(before=lambda: IN_FORCE)
    world.put(device(2, "eth0", "10.0.0.1", "10.0.0.7", "1.2.3.3", "1.2.3.4", "fd00::1", "fd00::2"))
    kept = ["1.2.3.4 false true eth0", "10.0.0.7 true false eth0", "fd00::2 true false eth0"]
    assert set(kept) < set(chosen(world))
    world.put(device(2, "eth0", "10.0.0.1", "1.2.3.3", "fd00::1"))
    assert chosen(world)[:2] == ["1.2.3.3 false true eth0", "10.0.0.1 true false eth0"]
    world.put(device(2, "eth0", "10.0.0.1", "10.0.0.7", "1.2.3.3", "1.2.3.4", "fd00::1"))
    assert chosen(world)[:2] == ["1.2.3.3 false true eth0", "10.0.0.1 true false eth0"]


def test_the_node_object_goes_before_what_an_agent_before_had_chosen() -> None:
    world = World(None, "10.0.0.1", before=lambda: IN_FORCE)
    world.put(device(2, "eth0", "10.0.0.1", "10.0.0.7", "1.2.3.4"))
    assert chosen(world) == ["10.0.0.1 true true eth0"]


@pytest.mark.parametrize("known", ["10.0.0.7", "1.2.3.4"])
def test_the_address_that_the_cluster_knows_goes_before_all_others(known: str) -> None:
    world = World(None, known)
    world.put(device(2, "eth0", "10.0.0.1", "10.0.0.7", "1.2.3.4", "1.2.3.3"))
    assert chosen(world) == [f"{known} true true eth0"]


def test_internal_address_of_the_node_object_goes_before_its_external_one() -> None:
    world = World()
    world.put_node("10.0.0.7", external="10.0.0.1")
    world.put(device(2, "eth0", "10.0.0.1", "10.0.0.7"))
    assert chosen(world) == ["10.0.0.7 true true eth0"]


def test_node_object_that_comes_later_decides() -> None:
    world = World()
    world.put(device(2, "eth0", "10.0.0.1", "10.0.0.7", "fd00::1", "fd00::7"))
    assert chosen(world) == ["10.0.0.1 true true eth0", "fd00::1 true true eth0"]
    world.put_node("10.0.0.7", "fd00::7")
    assert chosen(world) == ["10.0.0.7 true true eth0", "fd00::7 true true eth0"]


@pytest.mark.parametrize("more", ["10.0.0.1", "1.2.3.4"])
def test_another_address_changes_nothing_while_the_first_is_there(more: str) -> None:
    world = World()
    world.put(device(2, "eth0", "10.0.0.5"))
    assert chosen(world) == ["10.0.0.5 true true eth0"]
    world.put(device(2, "eth0", "10.0.0.5", more))
    assert chosen(world) == ["10.0.0.5 true true eth0"]
    world.put(device(2, "eth0", more))
    assert chosen(world) == [f"{more} true true eth0"]


def test_ranges_choose_the_node_port_addresses() -> None:
    world = World(NodeAddressConfig(node_port_ranges=(Prefix.parse("10.0.0.0/31"),)))
    world.put(device(2, "eth0", "10.0.0.1", "10.0.0.2", "10.0.0.0"))
    assert [line for line in world.after_update() if " true " in f"{line.split()[1]:^6}"] == [
        "10.0.0.0 true true eth0",
        "10.0.0.1 true false eth0",
    ]


def test_option_of_node_port_addresses_takes_networks_and_single_addresses() -> None:
    options = NodeOptions(nodeport_addresses="10.0.0.0/31, 10.0.0.7,fd00::/64")
    assert list(map(str, options.node_port_ranges)) == ["10.0.0.0/31", "10.0.0.7/32", "fd00::/64"]
    world = World(NodeAddressConfig(options.node_port_ranges), "10.0.0.2")
    world.put(device(2, "eth0", "10.0.0.1", "10.0.0.2", "10.0.0.7", "fd00::1", "fd01::1"))
    ports = [line.split()[0] for line in world.after_update() if line.split()[1] == "true"]
    assert ports == ["10.0.0.1", "10.0.0.7", "fd00::1"]
    with pytest.raises(ValueError, match="has host bits set"):
        NodeOptions(nodeport_addresses="10.0.0.1/8")


def test_the_table_is_initialised_once_nodes_are_listed() -> None:
    world = World()
    with world.db.write_txn(world.nodes) as wtxn:
        listed = world.nodes.register_initializer(wtxn, "source")
    world.put(device(2, "eth0", "10.0.0.1", "10.0.0.7"))
    assert chosen(world) == ["10.0.0.1 true true eth0"]
    assert not world.db.look(world.table.initialized)
    world.put_node("10.0.0.7")
    with world.db.write_txn(world.nodes) as wtxn:
        listed(wtxn)
    assert chosen(world) == ["10.0.0.7 true true eth0"]
    assert world.db.look(world.table.initialized)


def test_devices_that_are_not_the_nodes_face_give_nothing() -> None:
    world = World()
    world.put(
        device(1, "lo", "127.0.0.1*254", "10.9.0.1", selected=False),
        device(2, "eth0", "10.0.0.1", up=False),
        device(3, "eth1", "10.1.0.1", selected=False),
        device(4, "dns", "169.254.20.10", selected=False, up=False, kind="dummy"),
        device(5, "cilia_host", "10.2.0.1*253", selected=False),
    )
    assert world.after_update() == [
        "10.2.0.1 false true cilia_host",
        "10.9.0.1 false true *",
        "10.9.0.1 true true lo",
        "169.254.20.10 false true dns",
    ]


def test_the_fallback_prefers_selected_then_public_then_the_lower_index() -> None:
    world = World()
    world.put(
        device(1, "lo", "9.9.9.9", selected=False),
        device(3, "eth1", "10.0.0.1"),
        device(2, "eth0", "10.0.0.2"),
    )
    assert "10.0.0.2 false true *" in world.after_update()
    world.put(device(4, "eth2", "1.2.3.4"))
    assert "1.2.3.4 false true *" in world.after_update()


def test_an_address_that_only_a_local_route_gives_is_the_nodes() -> None:
    world = World()
    world.put(device(2, "eth0", "10.0.0.1"))

    def local(prefix: str, source: str = "") -> Route:
        return Route(
            TABLE_LOCAL,
            2,
            Prefix.parse(prefix),
            source=IP.parse(source) if source else None,
            scope=RouteScope.HOST,
            type=RouteType.LOCAL,
        )

    with world.db.write_txn(world.routes) as wtxn:
        for route in (local("35.0.0.1/32"), local("10.0.0.1/32", "10.0.0.1"), local("36.0.0.0/8")):
            world.routes.insert(wtxn, route)
    assert world.after_update() == [
        "10.0.0.1 false true *",
        "10.0.0.1 true true eth0",
        "35.0.0.1 false true eth0",
    ]


def test_nothing_is_deleted_before_the_devices_are_known() -> None:
    world = World()
    world.put(device(2, "eth0", "10.0.0.1"))
    world.controller.update()
    with world.db.write_txn(world.devices) as wtxn:
        done = world.devices.register_initializer(wtxn, "kernel")
        world.devices.delete_all(wtxn)
    assert world.after_update() == ["10.0.0.1 false true *", "10.0.0.1 true true eth0"]
    with world.db.write_txn(world.devices) as wtxn:
        done(wtxn)
    assert world.after_update() == []


def test_unchanged_rows_are_not_written() -> None:
    world = World()
    world.put(device(2, "eth0", "10.0.0.1"))
    world.controller.update()
    before = world.table.revision(world.db.read_txn())
    world.put(device(3, "lxc1", selected=False))
    world.controller.update()
    assert world.table.revision(world.db.read_txn()) == before


async def test_the_table_follows_the_devices_and_is_initialised_after_them() -> None:
    world = World()
    with world.db.write_txn(world.devices) as wtxn:
        done = world.devices.register_initializer(wtxn, "kernel")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(world.controller.run)
        await anyio.lowlevel.checkpoint()
        ready, became_ready = world.table.initialized_watch(world.db.read_txn())
        assert not ready
        world.put(device(2, "eth0", "10.0.0.1"))
        with world.db.write_txn(world.devices) as wtxn:
            done(wtxn)
        with anyio.fail_after(5):
            await became_ready.wait()
        assert "10.0.0.1 true true eth0" in world.printed()
        _, changed = world.table.all_watch(world.db.read_txn())
        world.put(device(2, "eth0", "10.0.0.2"))
        with anyio.fail_after(5):
            await changed.wait()
        assert world.printed() == ["10.0.0.2 false true *", "10.0.0.2 true true eth0"]
        tasks.cancel_scope.cancel()
