# SPDX-License-Identifier: Apache-2.0
"""Node objects, options and a file in the maps that say what is not masqueraded."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import anyio

from bpf.libbpf import ffi
from bpf.maps.masquerade import VALUE, MasqueradeMaps, decode_key, encode_key
from cilia.masquerade.exclusions import ExclusionsController
from cilia.masquerade.ip_masq_agent import IPMasqAgentFile
from cilia.masquerade.options import MasqueradeOptions
from cilia.program.health import HealthReporter
from reconcilers import Reconciler
from reconcilers.masquerade.exclusions import exclusion_operations
from statedb import DB
from tables.addressing import IP, Prefix
from tables.cluster.nodes import Node, new_nodes_table
from tables.health import new_health_table
from tables.masquerade.exclusions import new_masquerade_exclusions_table
from tests.reconcilers.targets import FAST

ONE = Node("one", pod_cidrs=("10.1.0.0/24", "fd01::/64", "broken"))
TWO = Node("two", pod_cidrs=("10.2.0.0/24", "fd02::/64"))


class World:
    def __init__(self, file: Path | None = None, **options: object) -> None:
        self.db = DB()
        self.nodes = new_nodes_table(self.db)
        with self.db.write_txn(self.nodes) as wtxn:
            self.listed = self.nodes.register_initializer(wtxn, "list")
        self.table = new_masquerade_exclusions_table(self.db)
        self.maps = MasqueradeMaps.fake(16)
        self.reconciler = Reconciler(
            self.db, self.table, exclusion_operations(self.maps), config=FAST
        )
        reporter = HealthReporter(self.db, new_health_table(self.db), "masquerade", "file")
        self.file = IPMasqAgentFile(file, reporter) if file else None
        self.controller = ExclusionsController(
            self.db,
            self.nodes,
            self.table,
            MasqueradeOptions.model_validate({"pod_network": True, **options}),
            self.file,
        )

    def put(self, *nodes: Node, complete: bool = True) -> None:
        with self.db.write_txn(self.nodes) as wtxn:
            self.nodes.delete_all(wtxn)
            self.nodes.insert_many(wtxn, nodes)
            if complete:
                self.listed(wtxn)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with anyio.create_task_group() as group:
            group.start_soon(self.controller.run)
            group.start_soon(self.reconciler.run)
            if self.file is not None:
                group.start_soon(self.file.run)
            yield
            group.cancel_scope.cancel()

    def entries(self) -> set[str]:
        keys = [decode_key(key) for raw in self.maps for key, _ in raw.items()]
        return {str(Prefix.of(IP.from_packed(address), length)) for address, length in keys}

    def reasons(self) -> dict[str, str]:
        rows = self.table.all(self.db.read_txn())
        return {str(row.prefix): row.reason for row in rows}

    async def until(self, condition: Callable[[], bool]) -> None:
        with anyio.fail_after(5):
            while not condition():
                await anyio.sleep(0.001)


async def test_pods_of_all_nodes_know_the_way_back() -> None:
    world = World()
    async with world.running():
        world.put(ONE, TWO)
        both = {"10.1.0.0/24", "10.2.0.0/24", "fd01::/64", "fd02::/64"}
        await world.until(lambda: world.entries() == both)
        assert world.reasons()["10.2.0.0/24"] == "pods of node two"
        world.put(ONE)
        await world.until(lambda: world.entries() == {"10.1.0.0/24", "fd01::/64"})


async def test_an_option_takes_the_place_of_the_nodes_of_its_family() -> None:
    world = World(ipv4_native_routing_cidr="10.0.0.0/8", ipam="static", ipv6_range="fd99::/64")
    async with world.running():
        world.put(ONE)
        expected = {"10.0.0.0/8", "fd01::/64", "fd99::/64"}
        await world.until(lambda: world.entries() == expected)
        assert world.reasons()["10.0.0.0/8"] == "--ipv4-native-routing-cidr"


async def test_a_family_that_is_not_masqueraded_has_no_exclusions() -> None:
    world = World(enable_ipv6_masquerade=False, ipv6_native_routing_cidr="fd00::/8")
    async with world.running():
        world.put(ONE)
        await world.until(lambda: world.entries() == {"10.1.0.0/24"})


async def test_what_is_in_force_stays_until_nodes_and_file_are_known(tmp_path: Path) -> None:
    path = tmp_path / "ip-masq-agent"
    path.write_text("broken: [")
    world = World(path)
    old = Prefix.parse("192.168.0.0/16")
    world.maps.v4.update(encode_key(old.ip.packed, old.length), VALUE)

    async def pruned() -> None:
        world.reconciler.prune_now()
        await world.reconciler.wait_until_reconciled(world.db.look(world.table.revision))

    async with world.running():
        world.put(ONE, complete=False)
        await world.until(lambda: "10.1.0.0/24" in world.entries())
        await pruned()
        assert str(old) in world.entries()
        assert not world.controller.listed.closed
        world.put(ONE)
        await world.until(lambda: world.controller.listed.closed)
        await pruned()
        assert str(old) in world.entries(), "nobody knows what the file said"
        path.write_text("nonMasqueradeCIDRs: [172.16.0.0/12]\nmasqLinkLocal: true")
        expected = {"10.1.0.0/24", "fd01::/64", "172.16.0.0/12", "fe80::/10"}
        await world.until(lambda: world.entries() == expected)
        assert world.reasons()["172.16.0.0/12"] == "ip-masq-agent"
        path.write_text("broken: [")
        world.put(TWO)
        expected = {"10.2.0.0/24", "fd02::/64", "172.16.0.0/12", "fe80::/10"}
        await world.until(lambda: world.entries() == expected)


async def test_a_prefix_of_two_reasons_stays_while_one_of_them_holds(tmp_path: Path) -> None:
    path = tmp_path / "ip-masq-agent"
    path.write_text("nonMasqueradeCIDRs: [10.1.0.0/24]")
    world = World(path, enable_ipv6_masquerade=False)
    async with world.running():
        world.put(ONE)
        await world.until(lambda: "169.254.0.0/16" in world.entries())
        assert world.reasons()["10.1.0.0/24"] == "pods of node one"
        world.put(TWO)
        await world.until(lambda: world.reasons().get("10.1.0.0/24") == "ip-masq-agent")
        assert "10.1.0.0/24" in world.entries()


def test_the_codec_is_the_c_struct() -> None:
    assert ffi.sizeof("struct masquerade_exclusion") == len(VALUE)
    for number, address in ((4, bytes(4)), (6, bytes(16))):
        key = encode_key(address, 8)
        assert ffi.sizeof(f"struct masquerade{number}_key") == len(key)
        assert decode_key(key) == (address, 8)
