# SPDX-License-Identifier: Apache-2.0
"""The whole operator on one screen: a Lease decides who leads, and the leader runs the jobs.

A coming controller is one more line in `jobs`. Jobs are restarted with backoff when they fail and
cancelled when the replica does not lead any more; each has a row in the `health` table. What all
jobs need, the kinds at the API server, is there before the first of them begins.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial

import anyio
import structlog
from prometheus_client import CollectorRegistry

from cilia.k8s.crds import DEFINITIONS, POD_NETWORK_DEFINITIONS
from cilia.k8s.object_writer import ObjectWriter
from cilia.operator.collection import collect
from cilia.operator.config import OperatorConfig
from cilia.operator.crds import register
from cilia.operator.election import Election
from cilia.operator.metrics import CollectionMetrics, ElectionMetrics
from cilia.program.health import HealthReporter
from cilia.program.jobs import run_job
from statedb import DB, RWTable
from statedb.metrics import observe
from tables.health import Health, Level, new_health_table

__all__ = ["Operator", "build"]

Job = Callable[[], Awaitable[object]]
log = structlog.get_logger("operator")

REGISTER = "register-crds"
ELECTION = "election"


@dataclass
class Operator:
    """The parts that the program around the wiring uses."""

    config: OperatorConfig
    db: DB
    health: RWTable[Health]
    registry: CollectorRegistry
    election: Election
    prepare: Job | None
    jobs: dict[str, Job] = field(default_factory=dict)

    async def lead(self) -> None:
        """What the leader does, until cancelled."""
        try:
            if self.prepare is not None:
                await run_job(REGISTER, self.prepare, self.reporter(REGISTER))
            async with anyio.create_task_group() as group:
                for name, work in self.jobs.items():
                    group.start_soon(run_job, name, work, self.reporter(name))
        finally:
            for name in (REGISTER, *self.jobs):
                self.reporter(name).stopped("Another replica leads")

    def degraded(self) -> list[dict[str, str]]:
        found = [
            {"component": row.component, "message": row.message, "error": row.error}
            for row in self.health.all(self.db.read_txn())
            if row.level is Level.DEGRADED
        ]
        if self.election.failure and not self.election.present_leader:
            said = "nobody leads, and this replica cannot take the Lease"
            found.append({"component": ELECTION, "message": said, "error": self.election.failure})
        return found

    def reporter(self, name: str) -> HealthReporter:
        """Return what tells the health of one component."""
        return HealthReporter(self.db, self.health, "operator", name)


def build(config: OperatorConfig, api: ObjectWriter, identity: str) -> Operator:
    """Everything but the edges, which the caller opens: the API server and the listeners."""
    db = DB("operator")
    health = new_health_table(db)
    registry = CollectorRegistry()
    observe(db, registry, "cilia_statedb")
    election = Election(
        api,
        config.k8s_namespace,
        config.leader_election_resource_name,
        identity,
        config.timing,
    )
    registry.register(ElectionMetrics(election))
    kinds = (*DEFINITIONS, *(POD_NETWORK_DEFINITIONS if config.pod_network else ()))
    # Objects in files need no kinds.
    no_kinds = config.skip_crd_creation or config.k8s_objects_dir is not None
    prepare = None if no_kinds else partial(register, api, kinds)
    operator = Operator(config, db, health, registry, election, prepare)
    if config.pod_network:
        metrics = CollectionMetrics(registry)
        operator.jobs["collect"] = partial(collect, config, operator.reporter, metrics)
    return operator
