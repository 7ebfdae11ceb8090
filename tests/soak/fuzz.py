# SPDX-License-Identifier: Apache-2.0
"""Try many hostile inputs: no other object may be harmed, and memory has to return.

    python -m tests.soak.fuzz [--requests] [NUMBER]

The objects and files of `tests/cilia/fuzz`, or its requests; 1,000,000 if no number is given.
Failures are told with the smallest plan, or the seed, that shows them; the exit code is 1 if there
is any, or if the process grew.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import structlog

from tests.benchmarks.report import machine
from tests.cilia.fuzz.oracle import run
from tests.cilia.fuzz.requests import run_requests
from tests.soak.journal import journal
from tests.soak.memory import rss_kib

# A piece of the run: recorded when it is finished.
BATCH = 2_000
# What the process may grow after the first piece, whatever the number of inputs.
GROWTH_KIB = 24 << 10


def objects(seeds: range) -> list[str]:
    return [f"{plan}: {said[:1000]}" for plan, said in run(seeds)]


def requests(seeds: range) -> list[str]:
    with tempfile.TemporaryDirectory() as directory:
        found = asyncio.run(run_requests(Path(directory), seeds))
    return [f"make_request({seed}): {said[:1000]}" for seed, said in found]


def batch(work: Callable[[range], list[str]], number: int) -> dict[str, Any]:
    """Try one piece; what failed, and how long it took."""
    began, cpu = time.monotonic(), time.process_time()
    failures = work(range(number * BATCH, (number + 1) * BATCH))
    gc.collect()
    return {
        "failures": failures,
        "s": time.monotonic() - began,
        "cpu_s": time.process_time() - cpu,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("number", type=int, nargs="?", default=1_000_000)
    parser.add_argument("--requests", action="store_true", help="requests to the unix socket")
    given = parser.parse_args()
    number, work = given.number, requests if given.requests else objects
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    batches = -(-number // BATCH)
    first_kib = 0
    with journal(f"soak-fuzz-{work.__name__}", {"number": number}) as kept:
        for at in range(len(kept.pieces), batches):
            piece = batch(work, at)
            kept.add(piece, f"{(at + 1) * BATCH} of {number} inputs")
            first_kib = first_kib or rss_kib()
            for said in piece["failures"]:
                print(said, file=sys.stderr, flush=True)
        grown_kib = rss_kib() - first_kib if first_kib else 0
        failures = sum(len(piece["failures"]) for piece in kept.pieces)
        spent_s = sum(piece["cpu_s"] for piece in kept.pieces)
        result = (
            f"{len(kept.pieces) * BATCH} inputs, {failures} failures, "
            f"{len(kept.pieces) * BATCH / spent_s:.0f} inputs a second of processor time, "
            f"grew by {grown_kib} KiB after the first {BATCH}"
        )
        kept.finish(result)
    print(machine(), result, sep="\n")
    return 1 if failures or grown_kib > GROWTH_KIB else 0


if __name__ == "__main__":
    sys.exit(main())
