# SPDX-License-Identifier: Apache-2.0
"""Claims follow the tables that they are made from, row by row."""

from __future__ import annotations

import random
from typing import Any

import anyio
import msgspec
import pytest

from cilia.identity.ipcache.follower import BATCH
from statedb import ReadTxn
from tables.addressing import Prefix
from tables.identity.ipcache import IPCacheEntry
from tables.sources import Source
from tests.cilia.identity.ipcache.world import BOTH, World, apiserver, device, endpoint, node

HOST, REMOTE, SERVER = ("local", 1), ("k8s", 6), ("kube-apiserver", 7)


async def test_each_table_makes_its_claims_and_takes_them_away() -> None:
    world = World()
    async with world.running():
        rows = [
            endpoint(7, "10.1.0.7", "fd00:1::7", identity=300),
            endpoint(8, "10.1.0.8", identity=0),
            device(2, "eth0", "192.0.2.1", "fd00:2::1", "fe80::1"),
            device(3, "nodelocaldns", "169.254.20.10"),
            device(1, "lo", "127.0.0.1", "::1"),
            node("one", "192.0.2.1", external="198.51.100.1"),
            node("two", "192.0.2.2", "fd00:2::2", external="198.51.100.2"),
        ]
        world.write(*rows)
        wanted = {
            "10.1.0.7/32": ("local", 300),
            "fd00:1::7/128": ("local", 300),
            "192.0.2.1/32": HOST,
            "fd00:2::1/128": HOST,
            "169.254.20.10/32": HOST,
            "198.51.100.1/32": HOST,
            "192.0.2.2/32": REMOTE,
            "fd00:2::2/128": REMOTE,
            "198.51.100.2/32": REMOTE,
        }
        await world.until(lambda: world.shown() == wanted)
        world.remove(*rows)
        await world.until(lambda: world.shown() == {})


@pytest.mark.parametrize(
    ("families", "worlds"),
    [
        (frozenset({False}), {"0.0.0.0/0": 2}),
        (frozenset({True}), {"::/0": 2}),
        (BOTH, {"0.0.0.0/0": 9, "::/0": 10}),
    ],
)
async def test_a_family_that_is_off_has_no_prefix(
    families: frozenset[bool], worlds: dict[str, int]
) -> None:
    world = World(families)
    rows = world.db.look(lambda txn: list(world.table.all(txn)))
    assert {str(row.prefix): row.in_force.identity for row in rows} == worlds
    async with world.running():
        world.write(
            endpoint(7, "10.1.0.7", "fd00:1::7"),
            device(2, "eth0", "192.0.2.1", "fd00:2::1"),
            apiserver("203.0.113.1"),
            apiserver("2001:db8::1"),
        )
        await world.until(lambda: len(world.shown()) == 3 * len(families))
    assert {Prefix.parse(text).is_ipv6 for text in world.shown()} == families


async def test_a_device_that_is_made_anew_keeps_its_address() -> None:
    """Of one name and with the same address, told in one transaction."""
    world = World()
    async with world.running():
        before, after = device(2, "eth0", "192.0.2.1"), device(9, "eth0", "192.0.2.1")
        world.write(before)
        await world.until(lambda: world.shown() == {"192.0.2.1/32": HOST})
        for gone, come in ((before, after), (after, before)):
            with world.db.write_txn(world.devices) as wtxn:
                world.devices.insert(wtxn, come)
                world.devices.delete(wtxn, gone)
            owner = f"device {come.index} (eth0)"
            await world.until(lambda owner=owner: owners(world, "192.0.2.1/32") == [owner])  # type: ignore[misc]


def owners(world: World, prefix: str) -> list[str]:
    row = world.db.look(lambda txn: world.table.get(txn, (0, Prefix.parse(prefix))))
    return [] if row is None else [claim.owner for claim in row.claims]


async def test_an_address_that_goes_to_another_pod_is_never_nobodys() -> None:
    world = World()
    async with world.running():
        world.write(endpoint(1, "10.1.0.7", identity=300))
        await world.until(lambda: "10.1.0.7/32" in world.shown())
        with world.db.write_txn(world.table) as wtxn:
            changes = world.table.changes(wtxn)
        for step in range(20):
            old, new = (1, 2) if step % 2 == 0 else (2, 1)
            with world.db.write_txn(world.endpoints) as wtxn:
                world.endpoints.delete_key(wtxn, old)
                world.endpoints.insert(wtxn, endpoint(new, "10.1.0.7", identity=300 + new))
            await world.until(lambda new=new: owners(world, "10.1.0.7/32") == [f"endpoint {new}"])  # type: ignore[misc]
            assert world.shown() == {"10.1.0.7/32": ("local", 300 + new)}
            found, _ = changes.next(world.db.read_txn())
            assert not any(change.deleted for change in found)


async def test_what_is_local_stays_what_it_is_as_an_api_server() -> None:
    world = World()
    world.write(
        *(apiserver(ip) for ip in ("192.0.2.1", "192.0.2.2", "203.0.113.9", "10.1.0.7")),
        apiserver("203.0.113.10", Source.API),  # a file's, and nobody's word on these
        device(2, "eth0", "192.0.2.1"),
        node("two", "192.0.2.2"),
        endpoint(7, "10.1.0.7", identity=300),
    )
    async with world.running():
        wanted = {
            "192.0.2.1/32": ("kube-apiserver", 1),
            "192.0.2.2/32": SERVER,
            "203.0.113.9/32": SERVER,
            "10.1.0.7/32": ("kube-apiserver", 300),
        }
        await world.until(lambda: world.shown() == wanted)
        world.remove(device(2, "eth0"))
        await world.until(lambda: world.shown()["192.0.2.1/32"] == SERVER)
        world.remove(apiserver("192.0.2.2"), apiserver("203.0.113.9"))
        wanted = {
            "192.0.2.1/32": SERVER,
            "192.0.2.2/32": REMOTE,
            "10.1.0.7/32": wanted["10.1.0.7/32"],
        }
        await world.until(lambda: world.shown() == wanted)


def missing(world: World) -> set[str]:
    return set(world.db.look(world.table.pending_initializers))


async def test_the_table_is_known_when_all_that_claims_are_made_from_is() -> None:
    world = World()
    async with world.running():
        first = {"endpoints", "devices", "k8s-nodes", "api-servers", "k8s-endpoints"}
        assert missing(world) == first
        # Whether an API server is this node is not known before its devices are.
        world.all_read("backends", "k8s-nodes", "k8s-endpoints")
        await initializers(world, {"endpoints", "devices", "api-servers"})
        world.all_read("devices")
        await initializers(world, {"endpoints", "api-servers"})
        world.all_read("endpoints")
        await initializers(world, set())


async def initializers(world: World, wanted: set[str]) -> None:
    with anyio.fail_after(5):
        while missing(world) != wanted:
            changed = world.db.look(lambda txn: world.table.filled_watch(txn)[1])
            if missing(world) != wanted:
                await changed.wait()


async def test_an_input_that_cannot_be_read_holds_nothing_up_and_removes_nothing() -> None:
    world = World()
    async with world.running():
        world.all_read("backends", "endpoints", "devices", "k8s-endpoints")
        with world.db.write_txn(world.nodes) as wtxn:
            world.read["k8s-nodes"].stall(wtxn)
        with anyio.fail_after(5):
            while not world.db.look(world.table.filled):
                await world.db.look(lambda txn: world.table.filled_watch(txn)[1]).wait()
        assert missing(world) == {"k8s-nodes"}


async def test_a_follower_that_failed_takes_up_what_it_missed() -> None:
    world = World()
    rows = [endpoint(number, f"10.1.0.{number}") for number in range(1, 6)]
    world.write(*rows)
    async with world.running():
        await world.until(lambda: len(world.shown()) == 5)
    world.remove(rows[0])
    world.write(msgspec.structs.replace(rows[1], identity=999))
    async with world.running():
        await world.until(lambda: world.shown().get("10.1.0.2/32") == ("local", 999))
        await world.until(lambda: "10.1.0.1/32" not in world.shown())
    assert len(world.shown()) == 4


async def test_many_rows_come_in_parts() -> None:
    world = World()
    number = 2 * BATCH
    world.write(*(node(f"n{n}", f"10.{n >> 8}.{n & 255}.1") for n in range(number)))
    world.all_read()
    async with world.running():
        await initializers(world, set())
        assert len(world.shown()) == number


async def test_random_changes_end_with_what_the_tables_say() -> None:
    """The model: what all rows that are left claim, in whatever order they came and went."""
    rng = random.Random(4)
    world = World()
    pods: dict[int, Any] = {}
    nodes: dict[str, Any] = {}
    async with world.running():
        for _ in range(300):
            number, last = rng.randrange(6), rng.randrange(1, 5)
            with world.db.write_txn(world.endpoints, world.nodes) as wtxn:
                if rng.random() < 0.6:
                    pods[number] = endpoint(number, f"10.1.0.{last}", identity=300 + number)
                    world.endpoints.insert(wtxn, pods[number])
                elif number in pods:
                    world.endpoints.delete(wtxn, pods.pop(number))
                name = f"n{number % 3}"
                if rng.random() < 0.5:
                    nodes[name] = node(name, f"10.1.0.{last}", f"10.2.0.{number}")
                    world.nodes.insert(wtxn, nodes[name])
                elif name in nodes:
                    world.nodes.delete(wtxn, nodes.pop(name))
            if rng.random() < 0.5:
                await anyio.sleep(0)
        await world.until(lambda: claims(world) == expected(pods, nodes))


def claims(world: World) -> dict[str, set[tuple[str, int]]]:
    def look(txn: ReadTxn) -> list[IPCacheEntry]:
        return list(world.table.all(txn))

    return {
        str(row.prefix): {(claim.owner, claim.identity) for claim in row.claims}
        for row in world.db.look(look)
        if row.prefix.length
    }


def expected(pods: dict[int, Any], nodes: dict[str, Any]) -> dict[str, set[tuple[str, int]]]:
    found: dict[str, set[tuple[str, int]]] = {}
    for pod in pods.values():
        found.setdefault(f"{pod.ipv4}/32", set()).add((f"endpoint {pod.id}", pod.identity))
    for row in nodes.values():
        for ip in row.internal_ips:
            found.setdefault(f"{ip}/32", set()).add((f"node {row.name}", 6))
    return found
