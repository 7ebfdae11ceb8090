# SPDX-License-Identifier: Apache-2.0
"""Try many hostile inputs: no other object may be harmed, and memory has to return.

    python -m tests.soak.fuzz [NUMBER]

The inputs of `tests/cilia/fuzz`, 1,000,000 if no number is given. Failures are told with the
smallest plan that shows them; the exit code is 1 if there is any, or if the process grew.
"""

from __future__ import annotations

import argparse
import gc
import logging
import sys
import time
from typing import Any

import structlog

from tests.benchmarks.report import machine
from tests.cilia.fuzz.oracle import run
from tests.soak.journal import journal
from tests.soak.memory import rss_kib

# A piece of the run: recorded when it is finished.
BATCH = 2_000
# What the process may grow after the first piece, whatever the number of inputs.
GROWTH_KIB = 24 << 10


def batch(number: int) -> dict[str, Any]:
    """Try one piece; what failed, how long it took, and how large the process is after it."""
    began, cpu = time.monotonic(), time.process_time()
    found = run(range(number * BATCH, (number + 1) * BATCH))
    gc.collect()
    return {
        "failures": [[plan.seed, sorted(plan.dropped), said[:1000]] for plan, said in found],
        "s": time.monotonic() - began,
        "cpu_s": time.process_time() - cpu,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("number", type=int, nargs="?", default=1_000_000)
    number = parser.parse_args().number
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    batches = -(-number // BATCH)
    first_kib = 0
    with journal("soak-fuzz", {"number": number}) as kept:
        for at in range(len(kept.pieces), batches):
            piece = batch(at)
            kept.add(piece, f"{(at + 1) * BATCH} of {number} inputs")
            first_kib = first_kib or rss_kib()
            for seed, dropped, said in piece["failures"]:
                print(f"Plan({seed}, frozenset({dropped})): {said}", file=sys.stderr, flush=True)
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
