# SPDX-License-Identifier: Apache-2.0
"""Identities of 100,000 prefixes: claims -> table -> map in the kernel, and what they cost.

The figures are of a process of its own. `--full` has as many as the map has room for.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import anyio
import anyio.lowlevel

from bpf.maps import ipcache as codec
from bpf.maps.map import Map
from bpf.maps.types import MapFlag, MapType
from cilia.identity.ipcache.writer import IPCacheWriter
from reconcilers.identity.ipcache import CONFIG, ipcache_operations
from reconcilers.reconciler import Reconciler
from statedb import DB
from tables.addressing import IP, Prefix
from tables.identity.ipcache import COVERING, Claim, IPCacheEntry, new_ipcache_table
from tables.sources import Source
from tests.benchmarks.reconciler_side import resident_bytes
from tests.benchmarks.report import Report

SHORT, FULL = 100_000, codec.ENTRIES
BATCH = 1000

#: Unit of each figure, and whether more of it is better.
ROWS = {
    "ipcache.table_to_map": ("prefixes/s", True),
    "ipcache.table_to_map.cpu": ("s/prefix", False),
    "ipcache.change_one": ("s", False),
    "ipcache.read_map": ("entries/s", True),
    "ipcache.covering": ("look-ups/s", True),
    "ipcache.memory.agent": ("bytes/prefix", False),
    "ipcache.memory.kernel": ("bytes/prefix", False),
}


def run(*, peers: bool, full: bool = False) -> None:
    number = FULL if full else SHORT
    report = Report(f"ipcache, {number} prefixes of pods of 250 nodes")
    if os.geteuid() != 0:
        print("not run: needs root")
        return
    side = [sys.executable, "-m", "tests.benchmarks.bench_ipcache", f"--side={number}"]
    done = subprocess.run(side, check=True, capture_output=True, text=True)
    for name, value in json.loads(done.stdout).items():
        unit, higher_is_better = ROWS[name]
        report.row(name, value, unit, higher_is_better=higher_is_better)


def prefix(number: int) -> Prefix:
    return Prefix.of(IP.from_packed((0x0A000000 + number).to_bytes(4, "big")), 32)


async def side(number: int) -> dict[str, float]:
    db = DB()
    table = new_ipcache_table(db)
    writer = IPCacheWriter(table)
    sizes = (codec.KEY_BYTES, codec.VALUE_BYTES, codec.ENTRIES)
    with Map.create(MapType.LPM_TRIE, codec.NAME, *sizes, flags=MapFlag.NO_PREALLOC) as raw:
        reconciler = Reconciler(db, table, ipcache_operations(raw), config=CONFIG)
        gc.collect()
        before = resident_bytes(), memory_of(raw)
        began, cpu_began = time.perf_counter(), time.process_time()
        async with anyio.create_task_group() as group:
            group.start_soon(reconciler.run)
            for first in range(0, number, BATCH):
                with db.write_txn(table) as wtxn:
                    for n in range(first, min(first + BATCH, number)):
                        writer.upsert(wtxn, prefix(n), claim(n))
                await anyio.lowlevel.checkpoint()
            await reconciled(reconciler)
            found = {"ipcache.table_to_map": number / (time.perf_counter() - began)}
            found["ipcache.table_to_map.cpu"] = (time.process_time() - cpu_began) / number
            gc.collect()
            found["ipcache.memory.agent"] = (resident_bytes() - before[0]) / number
            found["ipcache.memory.kernel"] = (memory_of(raw) - before[1]) / number
            for n in range(4):  # the first ones wait for the prune
                began = time.perf_counter()
                with db.write_txn(table) as wtxn:
                    writer.upsert(wtxn, prefix(n), claim(number + n))
                await reconciled(reconciler)
                found["ipcache.change_one"] = time.perf_counter() - began
            group.cancel_scope.cancel()
        began = time.perf_counter()
        assert raw.count() == number
        found["ipcache.read_map"] = number / (time.perf_counter() - began)
    txn = db.read_txn()
    began = time.perf_counter()
    for n in range(number):
        row = table.get(txn, (0, prefix(n)), COVERING)
        assert row is not None
    found["ipcache.covering"] = number / (time.perf_counter() - began)
    return found


def claim(number: int) -> Claim:
    """Of a pod of another node."""
    host = IP.from_packed((0xC0000200 + number % 250).to_bytes(4, "big"))
    return Claim(
        source=Source.CUSTOM_RESOURCE,
        owner=f"endpoint team-{number % 50}/web-{number}",
        identity=256 + number % 5000,
        host=host,
        namespace=f"team-{number % 50}",
        pod=f"web-{number}",
    )


async def reconciled(reconciler: Reconciler[IPCacheEntry]) -> None:
    table = reconciler.db.table("ipcache")
    await reconciler.wait_until_reconciled(reconciler.db.look(table.revision), settled=True)


def memory_of(raw: Map) -> int:
    """What the kernel counts for a map."""
    for line in Path(f"/proc/self/fdinfo/{raw.number}").read_text().splitlines():
        if line.startswith("memlock:"):
            return int(line.split()[1])
    raise RuntimeError("the kernel tells no memory of the map")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--side", type=int, help="be the process that measures")
    arguments = parser.parse_args()
    if arguments.side:
        print(json.dumps(anyio.run(side, arguments.side)))
    else:
        run(peers=False, full=arguments.full)


if __name__ == "__main__":
    main()
