# SPDX-License-Identifier: Apache-2.0
"""An API server whose store was restored from a backup: versions go back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from cilia.k8s.access import Access
from cilia.k8s.api_servers import Servers, parse_server
from cilia.k8s.api_source import ApiSource
from cilia.k8s.client import Client, Limits
from cilia.k8s.objects import Service
from cilia.k8s.resource import Resource
from cilia.k8s.resource_watch import Options
from cilia.k8s.watch import Delete, Upsert
from tests.cilia.k8s.fake_api import FakeApi
from tests.cilia.k8s.forms import service_form
from tests.cilia.k8s.reader import Reader

pytestmark = pytest.mark.usefixtures("short_grace")

SERVICES = "/api/v1/services"
PROOF_S = 0.2
#: Enough for the new connection, a proof and a list.
TOLD_S = 2.0
OLD_IP, NEW_IP = "10.96.0.1", "10.96.0.9"


@pytest.fixture
async def api() -> AsyncIterator[FakeApi]:
    made = FakeApi(SERVICES)
    await made.start()
    yield made
    await made.stop()


@pytest.fixture
async def reader(api: FakeApi) -> AsyncIterator[Reader]:
    limits = Limits(connect_timeout_s=1.0, qps=1e6, burst=1000)
    client = Client(Access(anonymous=True), Servers([parse_server(api.server.url)]), limits)
    options = Options(proof_interval_s=PROOF_S)
    source = ApiSource(client, [Resource(Service)], options)
    made = Reader(source, Service)
    running = asyncio.create_task(source.run())
    yield made
    for task in (running, made.task):
        task.cancel()
    await asyncio.gather(running, made.task, return_exceptions=True)


def told(reader: Reader) -> dict[str, str]:
    """Return the cluster address of each Service that the reader knows."""
    found: dict[str, str] = {}
    for event in reader.events:
        match event:
            case Upsert():
                found[event.obj.metadata.name] = event.obj.spec.cluster_ip  # type: ignore[attr-defined]
            case Delete():
                found.pop(event.key[2], None)
    return found


@pytest.mark.parametrize("since", ["changed", "created"])
@pytest.mark.parametrize("writes_since", [0, 20], ids=["behind", "ahead"])
async def test_readers_are_told_what_was_restored(
    api: FakeApi, reader: Reader, since: str, writes_since: int
) -> None:
    """The restored store may have gone on beyond the versions that were told before."""
    api.put(SERVICES, service_form("stays", OLD_IP))
    await reader.names("stays")
    backup = api.backup()
    if since == "changed":
        api.put(SERVICES, service_form("stays", NEW_IP))
        await reader.until(lambda _: told(reader) == {"stays": NEW_IP})
    else:
        api.put(SERVICES, service_form("late"))
        await reader.names("stays", "late")
    await api.stop()
    api.restore(backup)
    expected = {"stays": OLD_IP}
    for number in range(writes_since):
        api.put(SERVICES, service_form("other", f"10.96.1.{number}"))
        expected["other"] = f"10.96.1.{number}"
    await api.start()
    async with asyncio.timeout(TOLD_S):
        await reader.until(lambda _: told(reader) == expected)
