# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from cilia.loadbalancer.host_ports import HostPortController, convert_pod
from cilia.loadbalancer.options import LoadBalancerOptions
from cilia.loadbalancer.services.writer import KEEP
from statedb import WatchSet
from tables.addressing import IP
from tables.cluster.pods import Container, ContainerPort, Pod, new_pods_table
from tables.loadbalancer.services import Service
from tests.cilia.loadbalancer.world import World

HTTP = ContainerPort(8080, host_port=80)


def pod(*ports: ContainerPort, ips: tuple[str, ...] = ("10.1.0.1",), **fields: Any) -> Pod:
    values: dict[str, Any] = {"uid": "u1", "phase": "Running", **fields}
    name = values.pop("name", "web")
    container = Container("c", ports or (HTTP,))
    addresses = tuple(map(IP.parse, ips))
    return Pod("test", name, ips=addresses, containers=(container,), **values)


def shown(pod: Pod, config: LoadBalancerOptions | None = None) -> dict[str, list[str]]:
    """Frontends and backends by service, a loopback service marked with an exclamation mark."""
    found = {}
    for name, change in convert_pod(pod, config or LoadBalancerOptions()).changes.items():
        assert isinstance(change.service, Service)
        assert change.backends is not KEEP
        mark = "!" if change.service.loopback_host_port else ""
        found[name + mark] = [str(fe.address) for fe in change.frontends] + [
            f"-> {be.address}" for be in change.backends
        ]
    return found


def test_a_host_port_is_a_service_named_by_the_uid() -> None:
    assert shown(pod()) == {"test/web:host-port:80:u1": ["0.0.0.0:80/TCP", "-> 10.1.0.1:8080/TCP"]}


def test_families_follow_the_pod_and_the_options() -> None:
    both = pod(ips=("10.1.0.1", "fd00::1"))
    [frontends] = shown(both).values()
    assert frontends == [
        "[::]:80/TCP",
        "0.0.0.0:80/TCP",
        "-> 10.1.0.1:8080/TCP",
        "-> [fd00::1]:8080/TCP",
    ]
    [frontends] = shown(both, LoadBalancerOptions(enable_ipv6=False)).values()
    assert frontends == ["0.0.0.0:80/TCP", "-> 10.1.0.1:8080/TCP"]


def test_protocols_of_one_host_port_are_one_service() -> None:
    dns = [ContainerPort(53, protocol, host_port=53) for protocol in ("UDP", "TCP")]
    assert shown(pod(*dns)) == {
        "test/web:host-port:53:u1": [
            "0.0.0.0:53/TCP",
            "0.0.0.0:53/UDP",
            "-> 10.1.0.1:53/UDP",
            "-> 10.1.0.1:53/TCP",
        ]
    }


@pytest.mark.parametrize(
    ("host_ip", "mark", "address"),
    [
        ("192.168.0.1", "", "192.168.0.1:80/TCP"),
        ("0.0.0.0", "", "0.0.0.0:80/TCP"),
        ("127.0.0.1", "!", "0.0.0.0:80/TCP"),
        ("::1", "!", "[::]:80/TCP"),
    ],
)
def test_host_ip(host_ip: str, mark: str, address: str) -> None:
    port = ContainerPort(8080, host_port=80, host_ip=IP.parse(host_ip))
    [(name, frontends)] = shown(pod(port)).items()
    assert name == f"test/web:host-port:80:u1{mark}"
    assert frontends[0] == address


def test_what_cannot_be_opened_is_left_out_and_reported() -> None:
    loopback = ContainerPort(8080, "UDP", host_port=80, host_ip=IP.parse("127.0.0.1"))
    node_port = ContainerPort(8080, host_port=30000)
    converted = convert_pod(pod(HTTP, loopback, node_port), LoadBalancerOptions())
    assert list(converted.changes) == ["test/web:host-port:80:u1"]
    assert len(converted.warnings) == 2
    above = pod(ContainerPort(8080, host_port=32768))
    assert len(shown(above)) == 1
    assert shown(pod(host_network=True)) == {}
    assert shown(pod(ContainerPort(8080))) == {}


class PodWorld(World):
    def __init__(self) -> None:
        super().__init__()
        self.pods = new_pods_table(self.db)
        with self.db.write_txn(self.pods) as wtxn:
            self.complete = self.pods.register_initializer(wtxn, "k8s")
        self.controller = HostPortController(self.writer, self.pods)
        self.task = asyncio.create_task(self.controller.run())

    def put(self, *pods: Pod) -> None:
        with self.db.write_txn(self.pods) as wtxn:
            for row in pods:
                self.pods.insert(wtxn, row)

    def remove(self, row: Pod) -> None:
        with self.db.write_txn(self.pods) as wtxn:
            self.pods.delete(wtxn, row)

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(5):
            while True:
                txn, t = self.db.read_txn(), self.tables
                watch = WatchSet(t.services.all_watch(txn)[1], t.claims.all_watch(txn)[1])
                if condition():
                    return
                await watch.wait()

    async def until_owner(self, owner: str | None) -> None:
        await self.until(lambda: self.frontends.get("0.0.0.0:80/TCP") == owner)


@pytest.fixture
async def world() -> AsyncIterator[PodWorld]:
    world = PodWorld()
    yield world
    world.task.cancel()
    await asyncio.gather(world.task, return_exceptions=True)


async def test_a_pod_comes_and_goes(world: PodWorld) -> None:
    world.put(pod())
    await world.until_owner("web:host-port:80:u1")
    assert world.backends_of("0.0.0.0:80/TCP") == ["10.1.0.1:8080/TCP"]
    world.remove(pod())
    await world.until_owner(None)
    assert world.tables.backends.num_objects(world.db.read_txn()) == 0


@pytest.mark.parametrize("phase", ["Succeeded", "Failed"])
async def test_a_pod_that_ended_gives_its_port_up(world: PodWorld, phase: str) -> None:
    world.put(pod())
    await world.until_owner("web:host-port:80:u1")
    world.put(pod(phase=phase))
    await world.until_owner(None)


async def test_only_a_running_pod_gets_a_port_and_a_deleted_one_keeps_it(world: PodWorld) -> None:
    world.put(pod(phase="Pending"), pod(name="other", uid="u2"))
    await world.until_owner("other:host-port:80:u2")
    world.put(pod(name="other", uid="u2", deleting=True), pod())
    await world.until(lambda: bool(world.waiting))
    assert world.frontends == {"0.0.0.0:80/TCP": "other:host-port:80:u2"}
    world.remove(pod(name="other"))
    await world.until_owner("web:host-port:80:u1")


async def test_a_successor_of_the_same_name_is_another_service(world: PodWorld) -> None:
    world.put(pod())
    await world.until_owner("web:host-port:80:u1")
    world.put(pod(uid="u2", ips=("10.1.0.2",)))
    await world.until_owner("web:host-port:80:u2")
    assert world.services == ["web:host-port:80:u2"]
    world.put(pod(uid="u3", phase="Pending"))
    await world.until_owner(None)


async def test_initialised_when_the_pods_are(world: PodWorld) -> None:
    world.put(pod())
    await world.until_owner("web:host-port:80:u1")
    t = world.tables.services
    assert not t.initialized(world.db.read_txn())
    with world.db.write_txn(world.pods) as wtxn:
        world.complete(wtxn)
    async with asyncio.timeout(5):
        while not (state := t.initialized_watch(world.db.read_txn()))[0]:
            await state[1].wait()


async def test_a_restarted_controller_sees_what_went(world: PodWorld) -> None:
    world.put(pod(), pod(ContainerPort(1, host_port=81), name="other"))
    await world.until(lambda: len(world.frontends) == 2)
    world.task.cancel()
    await asyncio.gather(world.task, return_exceptions=True)
    world.remove(pod())
    world.task = asyncio.create_task(world.controller.run())
    await world.until_owner(None)
    assert list(world.frontends) == ["0.0.0.0:81/TCP"]


async def test_warnings_are_problems_until_the_pod_goes(world: PodWorld) -> None:
    bad = pod(HTTP, ContainerPort(8080, host_port=30000))
    world.put(bad)
    await world.until_owner("web:host-port:80:u1")
    assert world.problems == ["Pod test/web: host port 30000 is in the range of node ports"]
    world.remove(bad)
    await world.until_owner(None)
    assert world.problems == []
