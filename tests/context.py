# SPDX-License-Identifier: Apache-2.0
"""What every feature gets, for a test of one feature."""

from __future__ import annotations

from prometheus_client import CollectorRegistry

from cilia.k8s.store import ObjectStore
from cilia.program.parts import Context
from reconcilers.metrics import PrometheusMetrics
from reconcilers.verify import new_drift_table
from statedb import DB
from tables.health import new_health_table
from tables.problems import new_problems_table


def new_context() -> Context:
    """Return a context with empty tables and a source without objects."""
    db, registry = DB(), CollectorRegistry()
    return Context(
        db=db,
        objects=ObjectStore(),
        health=new_health_table(db),
        problems=new_problems_table(db),
        drift=new_drift_table(db),
        metrics=PrometheusMetrics(registry),
        registry=registry,
    )
