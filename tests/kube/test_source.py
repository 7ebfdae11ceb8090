# SPDX-License-Identifier: Apache-2.0
"""The agent's source at a real API server: pages, watches, and what happens while it is away."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from cilia.k8s.api_source import ApiSource
from cilia.k8s.objects import Pod, Service
from cilia.k8s.watch_state import Anomaly, State
from tests.cilia.k8s.reader import Reader

from .agents import api_source, config_for
from .apiserver import CLIENTS, ApiServer

pytestmark = pytest.mark.timeout(90)

PAGE = 7


def put(server: ApiServer, *names: str) -> None:
    for name in names:
        form = {"metadata": {"name": name}, "spec": {"ports": [{"port": 80}]}}
        server.post("/api/v1/namespaces/default/services", form)


def annotate(server: ApiServer, name: str, value: str) -> None:
    body = {"metadata": {"annotations": {"test": value}}}
    server.patch(f"/api/v1/namespaces/default/services/{name}", body)


def remove(server: ApiServer, *names: str) -> None:
    for name in names:
        server.delete(f"/api/v1/namespaces/default/services/{name}")


class Relay:
    """A way to the API server that can be cut; new connections are refused while it is."""

    def __init__(self, port: int) -> None:
        self._to = port
        self.port = 0
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.StreamWriter] = set()

    async def join(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    def cut(self) -> None:
        assert self._server is not None
        self._server.close()
        for writer in self._open:
            writer.transport.abort()
        self._open.clear()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            there = await asyncio.open_connection("127.0.0.1", self._to)
            self._open |= {writer, there[1]}
            await asyncio.gather(_pump(reader, there[1]), _pump(there[0], writer))


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
    writer.transport.abort()


class World:
    """A source behind a relay, and its reader of Services."""

    def __init__(self, server: ApiServer, relay: Relay, source: ApiSource) -> None:
        self.server, self.relay, self.source = server, relay, source
        self.services = Reader(source, Service)
        self.state = source.watches[Service.KIND].state

    async def call(self, function: Any, *arguments: Any) -> None:
        await asyncio.to_thread(function, self.server, *arguments)

    async def until(self, *states: State) -> None:
        async with asyncio.timeout(20):
            while self.state.state not in states:
                await asyncio.sleep(0.02)


@pytest.fixture
async def world(server: ApiServer, tmp_path: Path) -> AsyncIterator[World]:
    relay = Relay(server.port)
    await relay.join()
    kubeconfig = tmp_path / "kubeconfig"
    server.write_kubeconfig(
        kubeconfig, server.tokens["admin"], server=f"https://127.0.0.1:{relay.port}"
    )
    options = {"k8s_watch_list_page_size": PAGE, "k8s_client_qps": 1000, "k8s_client_burst": 1000}
    source = api_source(config_for(kubeconfig, **options))
    made = World(server, relay, source)
    running = asyncio.create_task(source.run())
    try:
        yield made
    finally:
        for task in (running, made.services.task):
            task.cancel()
        await asyncio.gather(running, made.services.task, return_exceptions=True)
        relay.cut()
        for service in server.get("/api/v1/namespaces/default/services")["items"]:
            if service["metadata"]["name"] != "kubernetes":
                remove(server, service["metadata"]["name"])


NAMES = [f"s{i}" for i in range(3 * PAGE)]


async def test_a_list_of_several_pages_is_complete_and_then_followed(world: World) -> None:
    await world.call(put, *NAMES)
    await world.services.names("kubernetes", *NAMES)
    asked = world.source.client.traffic.requests
    late = Reader(world.source, Service)
    await late.names("kubernetes", *NAMES)
    assert world.source.client.traffic.requests - asked >= 4, "a page after the other, and a watch"
    await world.call(put, "new")
    await world.call(annotate, "s1", "changed")
    await world.call(remove, "s2")
    left = {"kubernetes", "new", *NAMES} - {"s2"}
    await world.services.names(*left)
    await late.names(*left)
    late.task.cancel()
    assert not world.state.anomalies and not world.state.repairs


async def test_what_is_deleted_while_it_is_disconnected_goes(world: World) -> None:
    await world.call(put, *NAMES)
    await world.services.names("kubernetes", *NAMES)
    world.relay.cut()
    await world.until(State.FAILED)
    await world.call(remove, "s0", "s7", "s20")
    await world.call(put, "new")
    await world.relay.join()
    await world.services.names("kubernetes", "new", *(set(NAMES) - {"s0", "s7", "s20"}))
    assert world.state.state is State.WATCHING
    assert not world.state.anomalies, "the watch went on where it was"


def forget_history(server: ApiServer) -> None:
    """etcd keeps no version but the last, and an API server that starts knows no more."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(str(server.memory / CLIENTS))
        connection = http.client.HTTPConnection("localhost")
        connection.sock = sock
        now = int(server.get("/api/v1/services")["metadata"]["resourceVersion"])
        body = json.dumps({"revision": now, "physical": True})
        connection.request("POST", "/v3/kv/compaction", body)
        answer = connection.getresponse()
        assert answer.status == 200, answer.read()
    server.restart()


async def test_what_is_deleted_goes_also_when_the_server_has_forgotten_it(world: World) -> None:
    await world.call(put, *NAMES)
    await world.services.names("kubernetes", *NAMES)
    world.relay.cut()
    await world.until(State.FAILED)
    await world.call(remove, "s1", "s8")
    await world.call(annotate, "s2", "changed")
    forget_history(world.server)  # here: a program ends with the thread that started it
    await world.relay.join()
    await world.services.names("kubernetes", *(set(NAMES) - {"s1", "s8"}))
    assert world.state.anomalies[Anomaly.GONE] == 1
    assert world.state.repairs == {("gone", "deleted"): 2, ("gone", "changed"): 1}


async def test_pods_of_other_nodes_are_not_read(world: World) -> None:
    spec = {"containers": [{"name": "main", "image": "example.org/none"}]}
    path = "/api/v1/namespaces/default/pods"
    for name, node in (("mine", "testnode"), ("theirs", "other"), ("nobodys", "")):
        body = {"metadata": {"name": name}, "spec": {**spec, "nodeName": node}}
        await asyncio.to_thread(world.server.post, path, body)
    pods = Reader(world.source, Pod)
    await pods.names("mine")
    assert world.source.watches[Pod.KIND].state.objects == 1
    await asyncio.to_thread(world.server.delete, f"{path}/mine?gracePeriodSeconds=0")
    await pods.names()
    pods.task.cancel()
