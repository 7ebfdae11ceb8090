# SPDX-License-Identifier: Apache-2.0
"""A database as Prometheus metrics.

Write transactions are counted as they end; what a table holds is read when someone scrapes, so that
it costs writers nothing. `observe` sets both up.

    PREFIX_write_txn_lock_wait_seconds   histogram by tables: waiting for the tables' locks
    PREFIX_write_txn_duration_seconds    histogram by tables: holding them
    PREFIX_commits_total                 by table
    PREFIX_table_objects, _revision      by table
    PREFIX_table_deleted_objects         by table: deleted, but an iterator or a snapshot holds them
    PREFIX_table_trackers                by table: open change iterators
    PREFIX_table_pending_initializers    by table
    PREFIX_table_bytes                   by table: an estimate
    PREFIX_table_budget_bytes            by table, if it has a budget
    PREFIX_oldest_snapshot_seconds       age of the oldest snapshot that is held below the newest
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from statedb._commits import ReadTxn
    from statedb.db import DB
    from statedb.table import Table

# 10 us is a transaction of one small write; above a second something is wrong.
BUCKETS = (0.00001, 0.00003, 0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)

Read = Callable[["Table[Any]", "ReadTxn"], "float | None"]

_GAUGES: tuple[tuple[str, str, Read], ...] = (
    ("objects", "Objects in the table.", lambda table, txn: table.num_objects(txn)),
    ("revision", "Revision of the table's newest write.", lambda table, txn: table.revision(txn)),
    (
        "deleted_objects",
        "Deleted objects that a change iterator or a snapshot holds.",
        lambda table, txn: table.graveyard_size(),
    ),
    ("trackers", "Open change iterators.", lambda table, txn: table.num_trackers()),
    (
        "pending_initializers",
        "Initializers that the table waits for.",
        lambda table, txn: len(table.pending_initializers(txn)),
    ),
    ("bytes", "Estimated memory of the table.", lambda table, txn: table.usage(txn).bytes),
    (
        "budget_bytes",
        "Memory that the table is meant to stay within.",
        lambda table, txn: table.budget_bytes,
    ),
)


class DatabaseMetrics(Collector):
    """Collects the metrics of one database; it is also what the database tells its transactions."""

    def __init__(self, db: DB, prefix: str = "statedb") -> None:
        self._db = db
        self._prefix = prefix
        self._lock_wait = Histogram(
            f"{prefix}_write_txn_lock_wait_seconds",
            "Time that write transactions waited for their tables.",
            ["db", "tables"],
            registry=None,
            buckets=BUCKETS,
        )
        self._duration = Histogram(
            f"{prefix}_write_txn_duration_seconds",
            "Time that write transactions held their tables.",
            ["db", "tables"],
            registry=None,
            buckets=BUCKETS,
        )
        self._commits = Counter(
            f"{prefix}_commits", "Commits that wrote the table.", ["db", "table"], registry=None
        )
        self._observers: dict[tuple[str, ...], tuple[Histogram, Histogram]] = {}

    def write_txn(
        self, db: str, tables: tuple[str, ...], lock_wait_s: float, duration_s: float
    ) -> None:
        """A write transaction was committed or aborted; called by the database."""
        observers = self._observers.get(tables)
        if observers is None:
            labels = (db, "+".join(tables))
            observers = (self._lock_wait.labels(*labels), self._duration.labels(*labels))
            self._observers[tables] = observers
        observers[0].observe(lock_wait_s)
        observers[1].observe(duration_s)

    def committed(self, table: str) -> None:
        """A table was written; called by the database."""
        self._commits.labels(self._db.name, table).inc()

    def collect(self) -> Iterator[Metric]:
        """The metrics as they are now, of one snapshot."""
        for counted in (self._lock_wait, self._duration, self._commits):
            yield from counted.collect()
        txn = self._db.read_txn()
        tables = self._db.tables()
        for name, text, read in _GAUGES:
            family = GaugeMetricFamily(f"{self._prefix}_table_{name}", text, labels=["db", "table"])
            for table in tables:
                value = read(table, txn)
                if value is not None:
                    family.add_metric([self._db.name, table.name], value)
            yield family
        held = self._db.oldest_held()
        oldest = GaugeMetricFamily(
            f"{self._prefix}_oldest_snapshot_seconds",
            "Age of the oldest snapshot that is held below the newest.",
            labels=["db"],
        )
        oldest.add_metric([self._db.name], 0.0 if held is None else time.monotonic() - held[1])
        yield oldest


def observe(db: DB, registry: CollectorRegistry, prefix: str = "statedb") -> DatabaseMetrics:
    """Makes the database tell its transactions, and adds its metrics to a registry."""
    metrics = DatabaseMetrics(db, prefix)
    registry.register(metrics)
    db.metrics = metrics
    return metrics
