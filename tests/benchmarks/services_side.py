# SPDX-License-Identifier: Apache-2.0
"""One run of the services benchmark: decoded objects with one backend each to maps, and back.

The whole line runs in one event loop, as in the agent: reflector, tables, reconciler. Time ends
when the reconciler has settled the last revision. CPU seconds stand beside it, for a busy machine;
memory is what the process has grown by then, without the decoded objects. Prints a line of JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import time
from collections.abc import AsyncIterator, Sequence
from ipaddress import IPv4Address
from pathlib import Path

from bpf.maps.lb import LBMaps
from cilia.k8s.objects import K8sObject, decode
from cilia.k8s.watch import Delete, Event, Listed, Listing, Upsert
from cilia.loadbalancer.options import LoadBalancerOptions
from cilia.loadbalancer.services.reflector import KINDS, ServiceReflector
from cilia.loadbalancer.services.writer import LoadBalancerTables, Writer
from cilia.loadbalancer.this_node import LocalNode
from reconcilers.loadbalancer.frontends import FrontendOperations
from reconcilers.reconciler import Reconciler
from statedb import DB
from tables.node.node_addresses import new_node_addresses_table
from tables.problems import new_problems_table
from tests.cilia.k8s.forms import service_form, slice_form


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

    def __init__(self, maps: LBMaps) -> None:
        self.feed = Feed()
        self.db = DB()
        self.tables = LoadBalancerTables(self.db, new_problems_table(self.db))
        node = LocalNode("here")
        writer = Writer(self.db, self.tables, LoadBalancerOptions(), node)
        self.reflector = ServiceReflector(self.feed, writer)
        operations = FrontendOperations(
            maps,
            self.tables.frontends,
            new_node_addresses_table(self.db),
            LoadBalancerOptions(),
        )
        self.reconciler = Reconciler(
            self.db,
            self.tables.frontends,
            operations,
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


async def one_round(upserts: Sequence[Upsert], maps: LBMaps) -> dict[str, float]:
    """Inserts all and deletes all."""
    before = resident_bytes()
    line = Line(maps)
    tasks = [asyncio.create_task(run) for run in (line.reflector.run(), line.reconciler.run())]
    lists = [Listing(kind.KIND) for kind in KINDS], [Listed(kind.KIND) for kind in KINDS]
    cpu = time.process_time()
    inserted = await line.timed([*lists[0], *upserts, *lists[1]], len(upserts) // 2)
    cpu_inserted, used = time.process_time() - cpu, resident_bytes() - before
    services = sum(1 for _ in maps.v4.service.items())
    assert services >= len(upserts), services
    cpu = time.process_time()
    deleted = await line.timed([Delete(upsert.obj.key) for upsert in upserts], 0)
    cpu_deleted = time.process_time() - cpu
    assert not any(1 for _ in maps.v4.service.items())
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return {
        "insert_s": inserted,
        "insert_cpu_s": cpu_inserted,
        "delete_s": deleted,
        "delete_cpu_s": cpu_deleted,
        "bytes": used,
    }


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--services", type=int, default=50_000)
    parser.add_argument("--kernel", action="store_true", help="BPF maps, not maps in memory")
    arguments = parser.parse_args()
    entries = 4 * arguments.services
    maps = LBMaps.create(entries) if arguments.kernel else LBMaps.fake(entries)
    upserts = objects(arguments.services)
    gc.set_threshold(50_000, 50, 100)  # as the agent does
    gc.collect()
    gc.freeze()
    print(json.dumps(asyncio.run(one_round(upserts, maps))))


if __name__ == "__main__":
    main()
