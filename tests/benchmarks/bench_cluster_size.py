# SPDX-License-Identifier: Apache-2.0
"""10,000 Services of 10 backends each: what they take in memory, and one change to the maps.

The whole line from decoded objects to maps in memory runs in one event loop, as in the agent, with
its settings of the garbage collector.
"""

from __future__ import annotations

import asyncio
import gc
import statistics
from ipaddress import IPv4Address

from bpf.maps.lb import LBMaps
from cilia.k8s.objects import decode
from cilia.k8s.watch import Listed, Listing, Upsert
from cilia.loadbalancer.services.reflector import KINDS
from tests.benchmarks.report import Report
from tests.benchmarks.services_side import Line, resident_bytes
from tests.cilia.k8s.forms import service_form, slice_form

SERVICES = 10_000
BACKENDS = 10
CHANGES = 200


def run(*, peers: bool) -> None:
    del peers
    report = Report(f"{SERVICES} Services of {BACKENDS} backends each")
    gc.set_threshold(50_000, 50, 100)
    used, latencies = asyncio.run(_measure())
    report.row("size.memory", used / 1e6, "MB", higher_is_better=False)
    report.row("size.memory_service", used / SERVICES, "bytes a service", higher_is_better=False)
    ordered = sorted(latencies)
    report.row("size.one_change_p50", statistics.median(ordered), "ms", higher_is_better=False)
    p99 = ordered[int(len(ordered) * 0.99)]
    report.row("size.one_change_p99", p99, "ms", higher_is_better=False)


def _slice(number: int, backends: int) -> Upsert:
    first = IPv4Address("11.0.0.1") + number * (BACKENDS + 1)
    addresses = tuple(str(first + n) for n in range(backends))
    return Upsert(decode(slice_form(f"svc-{number}-1", f"svc-{number}", addresses)))


async def _measure() -> tuple[int, list[float]]:
    services = []
    for number in range(SERVICES):
        address = str(IPv4Address("10.0.0.1") + number)
        form = service_form(f"svc-{number}", address, clusterIPs=[address])
        services += [Upsert(decode(form)), _slice(number, BACKENDS)]
    gc.collect()
    before = resident_bytes()
    line = Line(LBMaps.fake())
    tasks = [asyncio.create_task(run) for run in (line.reflector.run(), line.reconciler.run())]
    lists = [Listing(kind.KIND) for kind in KINDS], [Listed(kind.KIND) for kind in KINDS]
    await line.timed([*lists[0], *services, *lists[1]], SERVICES)
    used = resident_bytes() - before
    latencies = []
    for change in range(CHANGES):
        number = change * 37 % SERVICES
        latencies.append(1000 * await _one_change(line, number))
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return used, latencies


async def _one_change(line: Line, number: int) -> float:
    """Seconds until one more backend of a Service is in the maps."""
    table = line.tables.frontends
    _, changed = table.all_watch(line.db.read_txn())
    loop = asyncio.get_running_loop()
    started = loop.time()
    line.feed.queue.put_nowait([_slice(number, BACKENDS + 1)])
    await changed.wait()
    await line.reconciler.wait_until_reconciled(table.revision(line.db.read_txn()))
    return loop.time() - started
