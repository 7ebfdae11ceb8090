# SPDX-License-Identifier: Apache-2.0
"""What the reconciler counts, as Prometheus sees it; and the engine without it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from prometheus_client import CollectorRegistry

from reconcilers import PrometheusMetrics, Reconciler, new_drift_table
from statedb import DB
from tests.reconcilers.targets import (
    FAST,
    VerifiableTarget,
    new_rows,
    put,
    remove,
)


def test_rounds_prunes_and_retries_are_counted_under_the_name() -> None:
    db = DB()
    table = new_rows(db)
    target = VerifiableTarget()
    registry = CollectorRegistry()
    reconciler = Reconciler(
        db,
        table,
        target,
        config=FAST,
        name="test",
        metrics=PrometheusMetrics(registry),
        drift=new_drift_table(db),
    )
    target.poison = {3}
    target.fail_prunes = 1
    put(db, table, (1, "a"), (2, "b"), (3, "c"))
    reconciler._cycle()
    remove(db, table, 1)
    target.held[9] = "foreign"
    reconciler.verify_now()
    reconciler._cycle()

    def value(name: str, **labels: str) -> float | None:
        return registry.get_sample_value(
            f"cilia_reconciler_{name}", labels | {"reconciler": "test"}
        )

    assert value("operations_total", operation="update", outcome="done") == 2
    assert value("operations_total", operation="delete", outcome="done") == 1
    assert (value("operations_total", operation="any", outcome="error") or 0) >= 1
    assert value("retries") == 1
    assert value("round_seconds_count") == 2
    assert value("prune_seconds_count") == 2
    assert value("prune_errors_total") == 1
    assert value("drift") == 1


ALONE = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"cilia", "tables", "bpf", "prometheus_client"}:
            raise ImportError(name)
sys.meta_path.insert(0, Refuse())
import reconcilers, statedb
"""


def test_engine_needs_nothing_but_statedb() -> None:
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", ALONE], check=True, cwd=root)
