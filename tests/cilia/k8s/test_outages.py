# SPDX-License-Identifier: Apache-2.0
"""How late a source is after its server was away: no later than the first of its watches."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable

import pytest

from cilia.k8s.access import Access
from cilia.k8s.api_servers import Servers, parse_server
from cilia.k8s.api_source import ApiSource
from cilia.k8s.client import Client, Limits
from cilia.k8s.objects import EndpointSlice, Service
from cilia.k8s.resource import Resource
from cilia.k8s.watch_state import State
from tests.cilia.k8s.fake_api import FakeApi

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
    monkeypatch.setattr("cilia.k8s.resource_watch.random.uniform", waits(LONG_S, SHORT_S))
    await api.stop()
    await until(source, State.FAILED)
    await api.start()
    await until(source, State.WATCHING)
