# SPDX-License-Identifier: Apache-2.0
"""Services and slices as decoded objects, one backend each, to maps in memory: insert and delete.

The whole line runs in one event loop, as in the agent: reflector, tables, reconciler. Time ends
when the reconciler has settled the last revision. CPU seconds stand beside it, for a busy machine;
memory is what the process has grown by then, without the decoded objects.
"""

from __future__ import annotations

import asyncio
import gc
import statistics
import time
from collections.abc import AsyncIterator, Sequence
from ipaddress import IPv4Address
from pathlib import Path
from typing import NamedTuple

from bpf.maps.lb import LBMaps
from cilia.controllers.loadbalancer.config import LoadBalancerConfig, LocalNode
from cilia.controllers.loadbalancer.writer import LoadBalancerTables, Writer
from cilia.k8s.objects import K8sObject, decode
from cilia.k8s.watch import Delete, Event, Listed, Listing, Upsert
from cilia.reflectors.services import KINDS, ServiceReflector
from reconcilers.frontends import FrontendConfig, FrontendOperations
from reconcilers.reconciler import Reconciler
from statedb import DB
from tables.frontends import get_status, set_status
from tables.node_addresses import new_node_addresses_table
from tables.problems import new_problems_table
from tests.benchmarks.report import Report
from tests.k8s.forms import service_form, slice_form

SERVICES = 50_000
ROUNDS = 3


class Feed:
    """A source that hands over what it is given."""

    def __init__(self) -> None:
        self.queue: asyncio.Queue[list[Event]] = asyncio.Queue()

    async def watch(self, *kinds: type[K8sObject]) -> AsyncIterator[list[Event]]:
        while True:
            yield await self.queue.get()


def objects(count: int) -> list[Upsert]:
    found = []
    for number in range(count):
        frontend = str(IPv4Address("10.0.0.1") + number)
        backend = str(IPv4Address("11.0.0.1") + number)
        name = f"svc-{number}"
        found.append(Upsert(decode(service_form(name, frontend, clusterIPs=[frontend]))))
        found.append(Upsert(decode(slice_form(f"{name}-1", name, (backend,)))))
    return found


class Line:
    """All from the source to the maps."""

    def __init__(self) -> None:
        self.feed = Feed()
        self.db = DB()
        self.tables = LoadBalancerTables(self.db, new_problems_table(self.db))
        node = LocalNode("here")
        writer = Writer(self.db, self.tables, LoadBalancerConfig(), node)
        self.reflector = ServiceReflector(self.feed, writer)
        self.maps = LBMaps.fake(4 * SERVICES)
        operations = FrontendOperations(
            self.maps,
            self.tables.frontends,
            new_node_addresses_table(self.db),
            FrontendConfig(),
        )
        self.reconciler = Reconciler(
            self.db,
            self.tables.frontends,
            operations,
            get_status=get_status,
            set_status=set_status,
        )

    async def timed(self, events: Sequence[Event], frontends: int) -> float:
        """Seconds until all events are in the maps and this many frontends exist."""
        started = time.perf_counter()
        self.feed.queue.put_nowait(list(events))
        table = self.tables.frontends
        while True:
            count, channel = table.num_objects_watch(self.db.read_txn())
            if count == frontends:
                break
            await channel.wait()
        await self.reconciler.wait_until_reconciled(table.revision(self.db.read_txn()))
        return time.perf_counter() - started


class Round(NamedTuple):
    insert_s: float
    insert_cpu_s: float
    delete_s: float
    delete_cpu_s: float
    bytes_used: int


async def one_round(upserts: Sequence[Upsert]) -> Round:
    """Inserts all and deletes all."""
    before = resident_bytes()
    line = Line()
    tasks = [asyncio.create_task(run) for run in (line.reflector.run(), line.reconciler.run())]
    lists = [Listing(kind.KIND) for kind in KINDS], [Listed(kind.KIND) for kind in KINDS]
    cpu = time.process_time()
    inserted = await line.timed([*lists[0], *upserts, *lists[1]], len(upserts) // 2)
    cpu_inserted, used = time.process_time() - cpu, resident_bytes() - before
    services = sum(1 for _ in line.maps.v4.service.items())
    assert services >= len(upserts), services
    cpu = time.process_time()
    deleted = await line.timed([Delete(upsert.obj.key) for upsert in upserts], 0)
    cpu_deleted = time.process_time() - cpu
    assert not any(1 for _ in line.maps.v4.service.items())
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return Round(inserted, cpu_inserted, deleted, cpu_deleted, used)


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


def run(*, peers: bool) -> None:
    del peers  # the peer is a Go program of its own
    report = Report(f"services to maps: {SERVICES} Services and EndpointSlices, maps in memory")
    upserts = objects(SERVICES)
    gc.collect()
    gc.freeze()
    rounds = [asyncio.run(one_round(upserts)) for _ in range(ROUNDS)]
    middle = Round(*map(statistics.median, zip(*rounds, strict=True)))
    report.row("services.insert", SERVICES / middle.insert_s, "services/s")
    report.row("services.insert_cpu", SERVICES / middle.insert_cpu_s, "services/CPU s")
    report.row("services.delete", SERVICES / middle.delete_s, "services/s")
    report.row("services.delete_cpu", SERVICES / middle.delete_cpu_s, "services/CPU s")
    # The first round alone starts with memory that no other has used before.
    used = rounds[0].bytes_used / SERVICES
    report.row("services.memory", used, "bytes a service", higher_is_better=False)
    gc.unfreeze()
