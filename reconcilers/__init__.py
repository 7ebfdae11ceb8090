# SPDX-License-Identifier: Apache-2.0
"""Reconcilers: from tables to the world outside, with retries and status.

Here belong the engine (everything exported below) and one module for each target. The engine
knows nothing of networking: it imports `statedb`, anyio and sortedcontainers, and is usable with
`statedb` as a library of its own. What decides *what* a table contains is a controller and does
not belong here. Start reading at `operations.py` (what a target must do), then `reconciler.py` (the
loop); `statedb/README.md` teaches the engine with examples.

To add a reconciler: a module named as its table, with a class of `update`, `delete` and `prune`
that is given its target and holds nothing else that matters: what it remembers is a cache of the
target, read from it before the first round, so that a kill at any point loses nothing. Add
`actual`, `expected` and `describe`, so that drift is seen, and the batch operations where one call
for many objects is cheaper. What blocks runs with `Config(in_thread=True)`. Write what others lead
to before what leads to it, delete in the opposite order, and `prune` only what is certainly ours.
The feature's `wiring.py` makes the `Reconciler` and its job; `node/addresses.py` is a small
example. Tests run it against a fake target that fails at random, and against the real one.
"""

from reconcilers.config import Config
from reconcilers.metrics import Metrics, NoMetrics, PrometheusMetrics
from reconcilers.operations import BatchOperations, Entry, Operations, VerifyOperations
from reconcilers.progress import Mark
from reconcilers.reconciler import Health, Reconciler
from reconcilers.status_set import StatusSet, pending_set
from reconcilers.verify import Drift, new_drift_table

__all__ = [
    "BatchOperations",
    "Config",
    "Drift",
    "Entry",
    "Health",
    "Mark",
    "Metrics",
    "NoMetrics",
    "Operations",
    "PrometheusMetrics",
    "Reconciler",
    "StatusSet",
    "VerifyOperations",
    "new_drift_table",
    "pending_set",
]
