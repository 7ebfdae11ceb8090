# SPDX-License-Identifier: Apache-2.0
"""Pods and the namespaces that have their addresses."""

from __future__ import annotations

import subprocess
from typing import Any

import pytest

from bpf.features import netns_cookie
from cilia.cluster.pod_namespaces import Found, PodNamespaceReflector, look
from cilia.linux.netns import NetNS
from statedb import DB
from tables.addressing import IP
from tables.cluster.pod_namespaces import new_pod_namespaces_table
from tables.cluster.pods import Pod, new_pods_table

V4, V6 = IP.parse("10.1.0.1"), IP.parse("fd00::1")


class World:
    def __init__(self) -> None:
        self.db = DB()
        self.pods = new_pods_table(self.db)
        self.table = new_pod_namespaces_table(self.db)
        self.namespaces: list[Found] = []
        self.looks = 0
        self.reflector = PodNamespaceReflector(self.db, self.pods, self.table, self._look)

    def _look(self) -> list[Found]:
        self.looks += 1
        return self.namespaces

    def put(self, name: str, *ips: IP, host_network: bool = False, phase: str = "Running") -> None:
        pod = Pod("test", name, ips=ips, host_network=host_network, phase=phase)
        with self.db.write_txn(self.pods) as wtxn:
            self.pods.insert(wtxn, pod)

    @property
    def cookies(self) -> dict[str, int]:
        return {row.pod: row.cookie for row in self.table.all(self.db.read_txn())}


async def test_a_pod_is_in_the_namespace_that_has_all_of_its_addresses() -> None:
    world = World()
    world.put("one", V4, V6)
    world.namespaces = [(7, frozenset({V4})), (8, frozenset({V4, V6}))]
    assert not (await world.reflector.step())[1]
    assert world.cookies == {"test/one": 8}


async def test_a_pod_that_is_not_found_is_looked_for_again_and_a_known_one_is_not() -> None:
    world = World()
    world.put("one", V4)
    assert (await world.reflector.step())[1]
    world.namespaces = [(7, frozenset({V4}))]
    assert not (await world.reflector.step())[1]
    await world.reflector.step()
    assert (world.looks, world.cookies) == (2, {"test/one": 7})


@pytest.mark.parametrize("fields", [{"host_network": True}, {"phase": "Pending"}])
async def test_pods_without_a_namespace_of_their_own_are_not_looked_for(
    fields: dict[str, Any],
) -> None:
    world = World()
    world.put("one", V4, **fields)
    assert not (await world.reflector.step())[1]
    assert world.looks == 0


async def test_a_pod_that_goes_takes_its_row_along_and_inputs_complete_it() -> None:
    world = World()
    assert not world.table.initialized(world.db.read_txn())
    world.put("one", V4)
    world.namespaces = [(7, frozenset({V4}))]
    await world.reflector.step()
    assert world.table.initialized(world.db.read_txn())
    with world.db.write_txn(world.pods) as wtxn:
        world.pods.delete_all(wtxn)
    await world.reflector.step()
    assert world.cookies == {}


@pytest.mark.root
def test_namespaces_are_read_from_inside() -> None:
    with NetNS.new() as namespace:
        for address in ("10.1.0.1/32", "fd00::1/128"):
            command = ["ip", "address", "add", address, "dev", "lo"]
            namespace.run(lambda command=command: subprocess.run(command, check=True))  # type: ignore[misc]
        cookie = namespace.run(netns_cookie)
        namespace.run(lambda: subprocess.run(["ip", "link", "set", "lo", "up"], check=True))
        ((found, addresses),) = look([namespace])
    assert found == cookie != netns_cookie()
    assert {V4, V6} <= addresses
