# SPDX-License-Identifier: Apache-2.0
"""How a program is put together: each feature is given a context and gives back a part.

::

    # cilia/FEATURE/wiring.py
    def build(ctx: Context, options: FeatureOptions, ...) -> Part: ...

A feature that reads tables of another one takes that part as a further argument; the program's
wiring calls the features in an order in which each finds what it reads.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from anyio.abc import TaskGroup
from prometheus_client import CollectorRegistry

from cilia.k8s.object_writer import SharedObjects
from cilia.k8s.watch import Source
from cilia.program.health import HealthReporter, ModuleHealth
from cilia.program.jobs import run_job
from reconcilers.config import Config
from reconcilers.metrics import Metrics
from reconcilers.operations import Operations, VerifyOperations
from reconcilers.reconciler import Reconciler
from reconcilers.verify import Drift
from statedb import DB, ReadTxn, RWTable
from tables.health import Health
from tables.problems import Problem

__all__ = ["Context", "Job", "Part", "Report"]

T = TypeVar("T")

Job = Callable[[], Awaitable[object]]
Report = Callable[[ReadTxn], Any]
"""What a feature adds to `/status`: JSON of one snapshot."""


@dataclass(frozen=True)
class Context:
    """Given to every feature."""

    db: DB
    objects: Source
    health: RWTable[Health]
    problems: RWTable[Problem]
    drift: RWTable[Drift]
    metrics: Metrics
    registry: CollectorRegistry
    # Objects that nodes write and agree by; None: this one is alone, or writes nothing.
    shared: SharedObjects | None = None

    def health_of(self, module: str) -> ModuleHealth:
        """Return what tells the health of one module's parts."""
        return ModuleHealth(self.db, self.health, module)

    def reconciler(
        self,
        table: RWTable[T],
        operations: Operations[T],
        *,
        module: str = "",
        config: Config | None = None,
        weight: Callable[[T], int] | None = None,
    ) -> Reconciler[T]:
        """Make what carries a table out.

        `module`: the name under which its health is told, by default the table's.
        """
        return Reconciler(
            self.db,
            table,
            operations,
            config=config,
            health=self.health_of(module or table.name),
            metrics=self.metrics,
            drift=self.drift if isinstance(operations, VerifyOperations) else None,
            weight=weight,
        )

    def start(self, group: TaskGroup, jobs: Mapping[str, Job]) -> None:
        """Run jobs in a task group; each tells its health as `agent.job-NAME`."""
        for name, work in jobs.items():
            reporter = HealthReporter(self.db, self.health, "agent", f"job-{name}")
            group.start_soon(run_job, name, work, reporter)


@dataclass
class Part:
    """Given back by every feature; a subclass has the tables that other features read."""

    # Run by the program, each under its name, until the program ends.
    jobs: dict[str, Job] = field(default_factory=dict)
    # Called at the end; what is in force stays.
    closing: list[Callable[[], None]] = field(default_factory=list)
    # By key of `/status`.
    reports: dict[str, Report] = field(default_factory=dict)
