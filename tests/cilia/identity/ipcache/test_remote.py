# SPDX-License-Identifier: Apache-2.0
"""Pods of other nodes claim their addresses; those of this node do not by their objects."""

from __future__ import annotations

import anyio
import pytest

from tables.addressing import IP, Prefix
from tables.identity.ipcache import Claim
from tables.sources import Source
from tests.cilia.identity.ipcache.test_followers import initializers
from tests.cilia.identity.ipcache.world import World, endpoint, node, remote

POD = "10.2.0.7/32"


def claims(world: World, prefix: str = POD) -> tuple[Claim, ...]:
    row = world.db.look(lambda txn: world.table.get(txn, (0, Prefix.parse(prefix))))
    return () if row is None else row.claims


async def test_a_pod_of_another_node_is_behind_it() -> None:
    world = World()
    async with world.running():
        pod = remote("web", "10.2.0.7", "fd00:2::7", at="192.0.2.2")
        world.write(pod)
        world.all_read()
        await world.until(lambda: len(claims(world)) == 1)
        (claim,) = claims(world)
        assert (claim.source, claim.identity) == (Source.CUSTOM_RESOURCE, 400)
        assert (claim.host, claim.namespace, claim.pod) == (IP.parse("192.0.2.2"), "test", "web")
        assert claims(world, "fd00:2::7/128") == (claim,)
        world.write(remote("web", "10.2.0.7", at="192.0.2.2", identity=401))
        await world.until(lambda: [c.identity for c in claims(world)] == [401])
        assert claims(world, "fd00:2::7/128") == ()
        world.remove(pod)
        await world.until(lambda: not claims(world))


async def test_an_object_of_this_node_claims_nothing_however_long_it_stays() -> None:
    """Also if it is read before this node's addresses, and if these change."""
    world = World()
    async with world.running():
        world.write(remote("mine", "10.1.0.7", at="192.0.2.1"))
        world.write(remote("other", "10.2.0.7", at="192.0.2.2"))
        world.all_read("k8s-endpoints")
        await anyio.wait_all_tasks_blocked()
        assert not claims(world), "nobody knows which node this is"
        world.write(node("one", "192.0.2.1"))
        world.all_read()
        await world.until(lambda: len(claims(world)) == 1)
        assert not claims(world, "10.1.0.7/32")
        world.write(node("one", "192.0.2.2"))
        await world.until(lambda: len(claims(world, "10.1.0.7/32")) == 1)
        await world.until(lambda: not claims(world))
        world.write(node("one", "192.0.2.1", external="192.0.2.2"))
        await world.until(lambda: not claims(world, "10.1.0.7/32"))
        assert not claims(world)


async def test_the_claims_are_known_once_the_objects_and_the_own_node_are() -> None:
    world = World()
    async with world.running():
        world.all_read("k8s-endpoints", "endpoints", "devices", "backends")
        await initializers(world, {"k8s-nodes", "k8s-endpoints"})
        world.all_read("k8s-nodes")
        await initializers(world, set())


async def test_a_local_endpoint_goes_before_what_another_node_says() -> None:
    world = World()
    async with world.running():
        world.write(remote("web", "10.1.0.7", at="192.0.2.2"), endpoint(7, "10.1.0.7"))
        world.all_read()
        await world.until(lambda: len(claims(world, "10.1.0.7/32")) == 2)
        assert world.shown()["10.1.0.7/32"] == ("local", 300)


@pytest.mark.parametrize("late_first", [False, True])
async def test_of_two_pods_of_one_address_the_later_one_is_in_force(*, late_first: bool) -> None:
    """The object of the former one is late to go, in whatever order they are read."""
    world = World()
    pods = [
        remote("before", "10.2.0.7", at="192.0.2.2", identity=400, created_at=1.0),
        remote("after", "10.2.0.7", at="192.0.2.2", identity=500, created_at=2.0),
    ]
    async with world.running():
        world.all_read()
        for number, pod in enumerate(reversed(pods) if late_first else pods, 1):
            world.write(pod)
            await world.until(lambda number=number: len(claims(world)) == number)  # type: ignore[misc]
        assert [claim.identity for claim in claims(world)] == [500, 400]
        # The former one's object is made anew: it is the later one now.
        world.write(remote("before", "10.2.0.7", at="192.0.2.2", identity=400, created_at=3.0))
        await world.until(lambda: [c.identity for c in claims(world)] == [400, 500])


async def test_a_pod_without_an_identity_claims_nothing() -> None:
    world = World()
    async with world.running():
        world.write(remote("web", "10.2.0.7", at="192.0.2.2", identity=0))
        world.write(remote("other", "10.2.0.8", at=""))
        world.all_read()
        await world.until(lambda: len(claims(world, "10.2.0.8/32")) == 1)
        assert not claims(world)


async def test_a_pod_has_no_reserved_identity_and_no_address_of_everybody() -> None:
    world = World()
    async with world.running():
        world.write(node("one", "192.0.2.1"))
        world.write(remote("host", "10.2.0.7", at="192.0.2.2", identity=1))
        world.write(remote("odd", "127.0.0.1", "fe80::1", "10.2.0.9", at="192.0.2.2"))
        world.all_read()
        await world.until(lambda: len(claims(world, "10.2.0.9/32")) == 1)
        for prefix in ("10.2.0.7/32", "127.0.0.1/32", "fe80::1/128"):
            assert not claims(world, prefix)
