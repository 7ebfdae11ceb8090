# SPDX-License-Identifier: Apache-2.0
"""A fake API server, a proxy that injects faults, a source behind it, and a reader that mirrors it.

One fault at a time: it is armed, objects change until it happens, then the time is taken until the
source notices, and the mirror is compared with the server once the source had its say.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator
from typing import Any, Final

import msgspec

from cilia.k8s.access import Access
from cilia.k8s.api_servers import Servers, parse_server
from cilia.k8s.api_source import ApiSource
from cilia.k8s.client import Client, Limits
from cilia.k8s.objects import Service
from cilia.k8s.resource import Resource
from cilia.k8s.resource_watch import Options
from cilia.k8s.watch import Delete, Listed, Listing, Upsert
from cilia.k8s.watch_state import WatchState
from tests.cilia.k8s.fake_api import FakeApi
from tests.cilia.k8s.fault_proxy import Fault, FaultProxy

PATH: Final = "/api/v1/services"
NAMES: Final = 20
# A recovery that takes longer leaves what is not equal then as stale.
RECOVERED_S: Final = 40.0
NOTICED_S: Final = 30.0


class Times(msgspec.Struct, frozen=True):
    """What the client promises: seconds of silence until a ping and until the connection is given
    up, and between two proofs. `delay_s` is what the proxy does."""

    ping_s: float = 1.0
    heartbeat_s: float = 3.0
    proof_s: float = 5.0
    delay_s: tuple[float, float] = (5.0, 8.0)


class Outcome(msgspec.Struct, frozen=True):
    """`noticed_s` is None if the source never noticed. `stalled_s`: how late this process was, at
    most, to do what was due."""

    fault: Fault
    noticed_s: float | None
    stale: int
    stalled_s: float = 0.0


class Stalls:
    """How long the event loop stood still, which is time that nobody could notice anything in."""

    TICK_S: Final = 0.05

    def __init__(self) -> None:
        self.worst_s = 0.0
        self._task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        now = asyncio.get_running_loop().time
        while True:
            due = now() + self.TICK_S
            await asyncio.sleep(self.TICK_S)
            self.worst_s = max(self.worst_s, now() - due)

    def stop(self) -> None:
        self._task.cancel()


class Mirror:
    """What a reader holds, by the rules of `cilia.k8s.watch`."""

    def __init__(self) -> None:
        self.versions: dict[tuple[str, str], int] = {}
        self.changed = asyncio.Event()
        self._listing: set[tuple[str, str]] | None = None

    async def run(self, source: ApiSource) -> None:
        async for events in source.watch(Service):
            for event in events:
                match event:
                    case Upsert():
                        meta = event.obj.metadata
                        key = (meta.namespace, meta.name)
                        self.versions[key] = int(meta.resource_version)
                        if self._listing is not None:
                            self._listing.add(key)
                    case Delete():
                        self.versions.pop(event.key[1:], None)
                    case Listing():
                        self._listing = set()
                    case Listed():
                        assert self._listing is not None
                        for key in self.versions.keys() - self._listing:
                            del self.versions[key]
                        self._listing = None
            self.changed.set()


class FaultWorld:
    def __init__(self, seed: int, times: Times) -> None:
        self.rng = random.Random(seed)
        self.times = times
        self.api = FakeApi(PATH)
        self.mirror = Mirror()
        self.source: ApiSource | None = None
        self.proxy: FaultProxy | None = None
        # When the source said that something is wrong, and how often it has.
        self._noticed_at: list[float] = []
        self._noticed = asyncio.Event()
        self._troubles = 0

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[FaultWorld]:
        await self.api.start()
        for _ in range(NAMES):
            self.write()
        upstream = client_of(self.api.server.url, Limits(qps=1e6, burst=1000))
        self.proxy = FaultProxy(upstream, self.rng, self.times.delay_s)
        await self.proxy.start()
        limits = Limits(
            ping_s=self.times.ping_s,
            heartbeat_timeout_s=self.times.heartbeat_s,
            qps=1e6,
            burst=1000,
        )
        client = client_of(self.proxy.server.url, limits)
        options = Options(page_size=7, proof_interval_s=self.times.proof_s)
        self.source = ApiSource(client, [Resource(Service)], options)
        self.source.observe(self._report)
        tasks = [asyncio.create_task(self.mirror.run(self.source))]
        tasks += [asyncio.create_task(self.source.run())]
        try:
            await self.settle(RECOVERED_S)
            yield self
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self.proxy.stop()
            await self.api.stop()

    def _report(self, state: WatchState) -> None:
        troubles = state.errors + sum(state.anomalies.values())
        if troubles != self._troubles:
            self._troubles = troubles
            self._noticed_at.append(asyncio.get_running_loop().time())
            self._noticed.set()

    def write(self) -> None:
        """One random change."""
        name = f"svc-{self.rng.randrange(NAMES)}"
        if ("test", name) in self.api.versions(PATH) and self.rng.random() < 0.4:
            self.api.delete(PATH, "test", name)
        else:
            self.api.put(PATH, service(name))

    def stale(self) -> int:
        """Rows that are missing, old, or should be gone."""
        there, here = self.api.versions(PATH), self.mirror.versions
        return sum(there.get(key) != here.get(key) for key in there.keys() | here.keys())

    async def settle(self, limit_s: float) -> int:
        """Waits until the mirror equals the server; what is stale after the limit."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limit_s):
                while self.stale():
                    self.mirror.changed.clear()
                    await self.mirror.changed.wait()
        return self.stale()

    async def inject(self, fault: Fault) -> Outcome:
        """One fault, until it is noticed and repaired."""
        assert self.proxy is not None
        self._noticed_at.clear()
        armed = self.proxy.arm(fault, PATH)
        while not armed.happened.done():
            self.write()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.2):
                    await asyncio.shield(armed.happened)
        stalls = Stalls()
        noticed_s = await self._noticed_after(armed.happened.result())
        stalls.stop()
        return Outcome(fault, noticed_s, await self.settle(RECOVERED_S), stalls.worst_s)

    async def _noticed_after(self, moment: float) -> float | None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(NOTICED_S):
                while True:
                    for at in self._noticed_at:
                        if at >= moment:
                            return at - moment
                    self._noticed.clear()
                    await self._noticed.wait()
        return None

    async def storm(self, count: int) -> int:
        """Faults of all kinds over one another, while objects change; stale rows at the end."""
        assert self.proxy is not None
        for _ in range(count):
            self.proxy.arm(self.rng.choice(list(Fault)), PATH)
            for _ in range(self.rng.randrange(4)):
                self.write()
            await asyncio.sleep(self.rng.uniform(0, 0.05))
        self.proxy.calm()
        return await self.settle(RECOVERED_S)


def client_of(url: str, limits: Limits) -> Client:
    return Client(Access(anonymous=True), Servers([parse_server(url)]), limits)


def service(name: str, **metadata: Any) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": "test", "uid": name, **metadata},
        "spec": {"clusterIP": "10.96.0.1", "ports": [{"port": 80}]},
    }
