# SPDX-License-Identifier: Apache-2.0
"""How late a source is after its server was away: no later than the first of its watches."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from cilia.k8s.access import Access
from cilia.k8s.api_servers import Servers, parse_server
from cilia.k8s.api_source import ApiSource
from cilia.k8s.client import Client, Limits
from cilia.k8s.objects import EndpointSlice, Service
from cilia.k8s.resource import Resource
from cilia.k8s.watch_state import State
from tests.cilia.k8s.fake_api import FakeApi
from tests.cilia.k8s.forms import service_form

SERVICES = "/api/v1/services"
SLICES = "/apis/discovery.k8s.io/v1/endpointslices"
# Longer than a test may take.
LONG_S, SHORT_S = 60.0, 0.01


@pytest.fixture
async def api() -> AsyncIterator[FakeApi]:
    made = FakeApi(SERVICES, SLICES)
    await made.start()
    yield made
    await made.stop()


@pytest.fixture
async def source(api: FakeApi) -> AsyncIterator[ApiSource]:
    limits = Limits(connect_timeout_s=1.0, qps=1e6, burst=1000)
    client = Client(Access(anonymous=True), Servers([parse_server(api.server.url)]), limits)
    made = ApiSource(client, [Resource(Service), Resource(EndpointSlice)])
    task = asyncio.create_task(made.run())
    await until(made, State.WATCHING)
    yield made
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def until(source: ApiSource, state: State) -> None:
    """Until every watch is in that state."""
    async with asyncio.timeout(10):
        while any(watch.state.state is not state for watch in source.watches.values()):
            await asyncio.sleep(0.01)


def waits(first: float, then: float) -> Callable[[float, float], float]:
    """In place of random waits."""
    chosen = itertools.chain([first], itertools.repeat(then))
    return lambda least, most: next(chosen)


async def test_a_watch_that_waits_goes_on_once_another_is_answered(
    api: FakeApi, source: ApiSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("random.uniform", waits(LONG_S, SHORT_S))
    await api.stop()
    await until(source, State.FAILED)
    await api.start()
    await until(source, State.WATCHING)


def kubeconfig(path: Path, url: str) -> None:
    """As a tool does that renews it: in one step."""
    form = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "c",
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        "clusters": [{"name": "c", "cluster": {"server": url}}],
        "users": [{"name": "u", "user": {"token": "t"}}],
    }
    new = path.with_name("new")
    new.write_text(json.dumps(form))
    new.replace(path)


async def test_a_kubeconfig_is_read_again_before_another_connection(
    api: FakeApi, tmp_path: Path
) -> None:
    """Its CA, its credentials and its server may be others; one that is broken changes nothing."""
    path, other = tmp_path / "kubeconfig", FakeApi(SERVICES)
    kubeconfig(path, api.server.url)
    access = Access(path)
    limits = Limits(connect_timeout_s=1.0, qps=1e6, burst=1000)
    client = Client(access, Servers([parse_server(access.server)]), limits)
    source = ApiSource(client, [Resource(Service)])
    task = asyncio.create_task(source.run())
    await until(source, State.WATCHING)
    path.write_text("{broken")
    for connection in list(api.server.connections):
        connection.cut()
    async with asyncio.timeout(10):
        while client.connects < 2:
            await asyncio.sleep(0.01)
    await until(source, State.WATCHING)
    await other.start()
    other.put(SERVICES, service_form("moved"))
    kubeconfig(path, other.server.url)
    await api.stop()
    async with asyncio.timeout(10):
        while source.watches["Service"].state.objects != 1:
            await asyncio.sleep(0.01)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await other.stop()
