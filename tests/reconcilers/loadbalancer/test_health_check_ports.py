# SPDX-License-Identifier: Apache-2.0
"""Health check node ports over real sockets of loopback, and kube-proxy's /healthz."""

from __future__ import annotations

import asyncio
import json
import socket
from typing import Any

import msgspec
import pytest

from cilia.loadbalancer.health_checks import count_local, wants_health_check
from cilia.loadbalancer.proxy_healthz import proxy_healthz_app
from cilia.loadbalancer.this_node import LocalNode
from cilia.program.serving import serve, tcp_socket
from reconcilers.loadbalancer import health_check_ports as health_ports
from reconcilers.loadbalancer.health_check_ports import HealthPortOperations
from statedb import DB
from tables.addressing import IP, L3n4Addr, ServiceName
from tables.health import Health, Level, new_health_table
from tables.loadbalancer.backends import Backend, BackendState
from tables.loadbalancer.health_check_ports import HealthCheckPort, new_health_check_ports_table
from tables.loadbalancer.services import ProxyDelegation, Service, TrafficPolicy
from tables.sources import Source

ECHO = ServiceName("test/echo")
LOCAL = Service(
    ECHO, Source.K8S, ext_traffic_policy=TrafficPolicy.LOCAL, health_check_node_port=32000
)
ONCE = b"GET /healthz HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n"
NODE = LocalNode("here", addresses=frozenset({IP.parse("192.0.2.1")}))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class World:
    def __init__(self, address: str = "127.0.0.1") -> None:
        self.db = DB()
        self.table = new_health_check_ports_table(self.db)
        self.ops = HealthPortOperations(self.db, self.table, address)

    def put(self, port: int, endpoints: int, service: ServiceName = ECHO) -> None:
        row = HealthCheckPort(service, port, endpoints)
        with self.db.write_txn(self.table) as wtxn:
            self.table.insert(wtxn, row)
        self.ops.update(self.db.read_txn(), 1, row)


async def get(port: int, host: str = "127.0.0.1", request: bytes = b"") -> tuple[bytes, bytes]:
    """Head and body of the answer."""
    reader, writer = await asyncio.open_connection(host, port)
    writer.write(request or b"GET /healthz HTTP/1.1\r\nHost: node\r\n\r\n")
    answer = await reader.read()
    writer.close()
    head, _, body = answer.partition(b"\r\n\r\n")
    return head, body


@pytest.mark.parametrize(("endpoints", "status"), [(2, b"200 OK"), (0, b"503 Service Unavailable")])
async def test_answer_says_how_many_endpoints_are_here(endpoints: int, status: bytes) -> None:
    world, port = World(), free_port()
    world.put(port, endpoints)
    head, body = await get(port)
    assert head.startswith(b"HTTP/1.1 " + status)
    assert f"X-Load-Balancing-Endpoint-Weight: {endpoints}".encode() in head
    service = {"namespace": "test", "name": "echo"}
    assert json.loads(body) == {"service": service, "localEndpoints": endpoints}


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_the_node_answers_at_all_of_its_addresses(host: str) -> None:
    world, port = World(""), free_port()
    world.put(port, 1)
    head, _ = await get(port, host)
    assert head.startswith(b"HTTP/1.1 200")


async def test_a_port_that_is_taken_is_an_error_that_names_it_until_it_is_free() -> None:
    world, port = World(), free_port()
    taken = pytest.raises(OSError, match=f"health check node port {port}: Address already in use")
    with socket.create_server(("127.0.0.1", port)), taken:
        world.put(port, 1)
    world.put(port, 1)
    assert (await get(port))[0].startswith(b"HTTP/1.1 200")


async def test_a_service_that_goes_closes_its_port() -> None:
    world, port = World(), free_port()
    world.put(port, 1)
    await get(port)
    world.ops.delete(world.db.read_txn(), 2, HealthCheckPort(ECHO, port))
    await until_refused(port)


async def until_refused(port: int) -> None:
    """Ends by the test's own time limit if the port stays open."""
    while True:
        try:
            await get(port)
        except ConnectionRefusedError:
            return
        except ConnectionResetError:
            continue  # it was closed between the kernel's acceptance and ours


async def test_ports_that_two_services_exchange_are_both_answered() -> None:
    world, one, two = World(), free_port(), free_port()
    other = ServiceName("test/other")
    world.put(one, 1)
    world.put(two, 0, other)
    await get(one)

    async def until_put(port: int, endpoints: int, service: ServiceName) -> None:
        while True:
            try:
                return world.put(port, endpoints, service)
            except OSError:
                await asyncio.sleep(0)

    world.ops.delete(world.db.read_txn(), 2, HealthCheckPort(ECHO, one))
    await until_put(one, 0, other)
    await until_put(two, 1, ECHO)
    assert (await get(one))[0].startswith(b"HTTP/1.1 503")
    assert (await get(two))[0].startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("request_", [b"GARBAGE\r\n\r\n", b"GET / HTTP/1.1\r\nHost: a\r\n"])
async def test_clients_that_say_nothing_useful_are_let_go(
    request_: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health_ports, "REQUEST_TIMEOUT_S", 0.05)
    world, port = World(), free_port()
    world.put(port, 1)
    assert await get(port, request=request_) == (b"", b"")
    assert (await get(port))[0].startswith(b"HTTP/1.1 200")


def backend(address: str, **fields: Any) -> Backend:
    return Backend(ECHO, L3n4Addr.parse(address), **fields)


@pytest.mark.parametrize(
    ("backends", "count"),
    [
        ([backend("10.1.0.1:80/TCP", node_name="here")], 1),
        ([backend("10.1.0.1:80/TCP", node_name="there")], 0),
        ([backend("10.1.0.1:80/TCP", node_name="here", state=BackendState.TERMINATING)], 0),
        ([backend("10.1.0.1:80/TCP"), backend("10.1.0.1:443/TCP")], 1),
        ([backend("10.1.0.1:80/TCP"), backend("10.1.0.2:80/TCP")], 2),
    ],
    ids=["here", "there", "terminating", "two-ports", "two-pods"],
)
def test_active_addresses_of_this_node_are_counted(backends: list[Backend], count: int) -> None:
    assert count_local(LOCAL, backends, NODE) == count


def test_with_delegation_a_local_backend_is_the_node_itself() -> None:
    delegated = msgspec.structs.replace(LOCAL, proxy_delegation=ProxyDelegation.DELEGATE_IF_LOCAL)
    both = [backend("10.1.0.1:80/TCP", node_name="here"), backend("192.0.2.1:80/TCP")]
    assert count_local(delegated, both, NODE) == 1


def test_only_local_services_with_a_port_are_asked_for() -> None:
    assert wants_health_check(LOCAL)
    assert not wants_health_check(msgspec.structs.replace(LOCAL, health_check_node_port=0))
    cluster = msgspec.structs.replace(LOCAL, ext_traffic_policy=TrafficPolicy.CLUSTER)
    assert not wants_health_check(cluster)


async def test_healthz_of_kube_proxy_follows_the_health_of_the_agent() -> None:
    db = DB()
    table = new_health_table(db)
    listener = tcp_socket("--test", "127.0.0.1:0")
    port = listener.getsockname()[1]
    server = asyncio.create_task(serve(proxy_healthz_app(db, table), listener))
    head, _ = await get(port, request=ONCE)
    assert head.startswith(b"HTTP/1.1 200")
    with db.write_txn(table) as wtxn:
        table.insert(wtxn, Health("agent", "job", Level.DEGRADED, last_ok=5.0))
    head, body = await get(port, request=ONCE)
    assert head.startswith(b"HTTP/1.1 503")
    assert json.loads(body)["lastUpdated"] == "1970-01-01T00:00:05Z"
    server.cancel()
