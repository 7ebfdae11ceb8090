# SPDX-License-Identifier: Apache-2.0
"""The states of the API server's watches into ``k8s-watches``."""

from __future__ import annotations

from collections.abc import Callable

from cilia.k8s.watch_state import WatchState
from statedb import DB, RWTable
from tables.cluster.k8s_watches import K8sWatch


class K8sWatchReflector:
    """Is told the state of a watch each time it changes; writes the row and tells its health."""

    def __init__(
        self, db: DB, watches: RWTable[K8sWatch], health: Callable[[str, bool, str], None]
    ) -> None:
        self._db = db
        self._watches = watches
        self._health = health

    def report(self, state: WatchState) -> None:
        row = convert_watch(state)
        if self._watches.get(self._db.read_txn(), row.resource) != row:
            with self._db.write_txn(self._watches) as wtxn:
                self._watches.insert(wtxn, row)
            self._health(f"watch-{row.resource}", row.well, row.error or row.state)


def convert_watch(state: WatchState) -> K8sWatch:
    return K8sWatch(
        resource=state.resource,
        state=state.state.value,
        listed=state.listed,
        revision=state.revision,
        objects=state.objects,
        server=state.server,
        last_event_at=state.last_event_at,
        proven_at=state.proven_at,
        proofs=state.proofs,
        proof_bytes=state.proof_bytes,
        proof_cpu_s=state.proof_cpu_s,
        repairs={f"{cause}/{what}": count for (cause, what), count in state.repairs.items()},
        anomalies={what.value: count for what, count in state.anomalies.items()},
        last_anomaly_at=state.last_anomaly_at,
        errors=state.errors,
        # What went wrong last is of interest until all is well again.
        error=state.error if state.state.value == "failed" or not state.listed else "",
        last_error_at=state.last_error_at,
    )
