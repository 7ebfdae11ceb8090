# SPDX-License-Identifier: Apache-2.0
"""What every feature of an agent gets: database, objects, health, problems, drift, metrics."""

from __future__ import annotations

from cilia.agent.config import AgentConfig
from cilia.agent.metrics_samples import SelectiveRegistry
from cilia.k8s.object_writer import SharedObjects
from cilia.k8s.watch import Source
from cilia.program.parts import Context
from reconcilers.metrics import PrometheusMetrics
from reconcilers.verify import new_drift_table
from statedb import DB
from statedb.metrics import observe
from tables.health import new_health_table
from tables.problems import new_problems_table

__all__ = ["new_context"]


def new_context(
    config: AgentConfig, objects: Source, shared: SharedObjects | None = None
) -> Context:
    """Make the database of an instance and what all features write to."""
    db = DB(config.instance, history=config.statedb_history)
    registry = SelectiveRegistry(config.metrics)
    observe(db, registry, "cilia_statedb")
    return Context(
        db=db,
        objects=objects,
        health=new_health_table(db),
        problems=new_problems_table(db),
        drift=new_drift_table(db),
        metrics=PrometheusMetrics(registry),
        registry=registry,
        shared=shared,
    )
