# SPDX-License-Identifier: Apache-2.0
"""What `cilia status` shows: one snapshot of the tables and a look at the datapath."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import cilia
from bpf.maps.switch import Switch
from cilia.datapath.coexistence import Coexistence
from cilia.program.parts import Report
from statedb import DB, ReadTxn, StatusKind, Table
from tables.cluster.k8s_watches import K8sWatch
from tables.health import Health, Level
from tables.loadbalancer.frontends import Frontend
from tables.problems import Problem

NO_OTHERS: dict[str, Any] = {"programs": [], "kube_proxy": [], "error": ""}
INPUT_TABLES = ("services", "frontends", "backends", "problems")


class Datapath(Protocol):
    """What the status needs of the datapath, real or in memory."""

    switch: Switch

    def mode(self) -> str: ...
    def map_usage(self) -> list[dict[str, Any]]: ...


class Programs(Protocol):
    """What the status needs of attached programs."""

    def links(self) -> list[dict[str, Any]]: ...


@dataclass(frozen=True)
class StatusView:
    """Reads, writes nothing."""

    db: DB
    instance: str
    source: str
    frontends: Table[Frontend]
    health: Table[Health]
    problems: Table[Problem]
    watches: Table[K8sWatch]
    datapath: Datapath
    coexistence: Coexistence | None = None
    programs: Programs | None = None
    # What else the programs need; their rows have a `status`.
    needed: Sequence[Table[Any]] = ()
    # Maps that features named, beside those of the datapath.
    more_maps: Callable[[], list[dict[str, Any]]] = list
    # Whose sockets are translated: "all", "node" or "none".
    sockets: str = "none"
    # What features say of themselves, by key of the answer.
    reports: Mapping[str, Report] = field(default_factory=dict)
    started: float = field(default_factory=time.time)

    def as_dict(self) -> dict[str, Any]:
        """The JSON of `/status`; see `cilia.cli.status` for how it is shown."""
        others = self.coexistence.as_dict(self.db) if self.coexistence else NO_OTHERS
        txn = self.db.read_txn()
        counts = self.frontend_counts(txn)
        degraded = self.degraded(txn)
        problems = [problem_dict(row) for row in self.problems.all(txn)]
        synchronised = self.synchronised(txn, counts)
        return {
            "healthy": synchronised and not degraded and not problems and not counts["error"],
            "version": cilia.__version__,
            "pid": os.getpid(),
            "uptime_s": round(time.time() - self.started, 1),
            "instance": self.instance,
            "instance_id": self.db.instance_id,
            "source": self.source,
            "synchronised": synchronised,
            "frontends": counts,
            "replacement": self.datapath.switch.state.name.lower(),
            "datapath": {
                "mode": self.datapath.mode(),
                "sockets": self.sockets,
                "links": [] if self.programs is None else self.programs.links(),
                "maps": [*self.datapath.map_usage(), *self.more_maps()],
            },
            **{key: report(txn) for key, report in self.reports.items()},
            "watches": [watch_dict(row) for row in self.watches.all(txn)],
            "tables": [self._table_dict(txn, table) for table in self.db.tables()],
            "degraded": degraded,
            "problems": problems,
            "others": others,
        }

    def frontend_counts(self, txn: ReadTxn | None = None) -> dict[str, int]:
        """Frontends by status: done (also while refreshing), pending, error, refused."""
        kinds = [fe.status.kind for fe in self.frontends.all(txn or self.db.read_txn())]
        return {
            "done": kinds.count(StatusKind.DONE) + kinds.count(StatusKind.REFRESHING),
            "pending": kinds.count(StatusKind.PENDING),
            "error": kinds.count(StatusKind.ERROR),
            "refused": kinds.count(StatusKind.REFUSED),
        }

    def listed(self, txn: ReadTxn | None = None) -> bool:
        """All inputs were read once."""
        txn = txn or self.db.read_txn()
        return all(self.db.table(name).initialized(txn) for name in INPUT_TABLES)

    def synchronised(self, txn: ReadTxn, counts: dict[str, int]) -> bool:
        """All inputs were listed, every frontend was attempted with what they say, and all that the
        programs need, their attachment to the devices that are there included.
        """
        attempted = (_is_attempted(txn, table) for table in self.needed)
        return self.listed(txn) and not counts["pending"] and all(attempted)

    def degraded(self, txn: ReadTxn | None = None) -> list[dict[str, str]]:
        return [
            {"component": f"{h.module}.{h.component}", "message": h.message, "error": h.error}
            for h in self.health.all(txn or self.db.read_txn())
            if h.level is Level.DEGRADED
        ]

    def _table_dict(self, txn: ReadTxn, table: Table[Any]) -> dict[str, Any]:
        usage = table.usage(txn)
        return {
            "name": table.name,
            "objects": usage.objects,
            "revision": table.revision(txn),
            "pending": list(table.pending_initializers(txn)),
            "bytes": usage.bytes,
            "budget_bytes": usage.budget_bytes,
        }


def problem_dict(row: Problem) -> dict[str, Any]:
    return {
        "file": row.file,
        "document": row.document,
        "object": row.object,
        "field": row.field,
        "message": row.message,
    }


def watch_dict(row: K8sWatch) -> dict[str, Any]:
    """`proof_age_s` is None as long as there was no list."""
    return {
        "resource": row.resource,
        "state": row.state,
        "listed": row.listed,
        "objects": row.objects,
        "resource_version": row.revision,
        "proof_age_s": round(time.time() - row.proven_at, 1) if row.proven_at else None,
        "repairs": sum(row.repairs.values()),
        "errors": row.errors,
        "error": row.error,
    }


def _is_attempted(txn: ReadTxn, table: Table[Any]) -> bool:
    rows = table.all(txn)
    return table.initialized(txn) and all(row.status.kind is not StatusKind.PENDING for row in rows)
