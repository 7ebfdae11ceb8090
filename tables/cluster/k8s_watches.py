# SPDX-License-Identifier: Apache-2.0
"""``k8s-watches``: how well each resource of the API server is followed, and when that was last
proven."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from statedb import DB, Column, Index, RWTable, new_table
from tables.times import age, rfc3339

TABLE_NAME: Final = "k8s-watches"


class K8sWatch(msgspec.Struct, frozen=True, gc=False):
    """The reflector of the watches writes it. Times are seconds since the epoch, 0 for never."""

    resource: str
    # waiting, listing, watching, absent (the server has no such resource) or failed.
    state: str
    # Every object was sent once.
    listed: bool = False
    revision: int = 0
    objects: int = 0
    server: str = ""
    last_event_at: float = 0.0
    # When what was told was last equal to a list, how often that was so, and what it cost to know.
    proven_at: float = 0.0
    proofs: int = 0
    proof_bytes: int = 0
    proof_cpu_s: float = 0.0
    # What a list had to put right, by "cause/kind".
    repairs: Mapping[str, int] = {}
    # Duplicates, disorder, gaps, missed changes, expired revisions, garbage.
    anomalies: Mapping[str, int] = {}
    last_anomaly_at: float = 0.0
    errors: int = 0
    error: str = ""
    last_error_at: float = 0.0

    @property
    def well(self) -> bool:
        return self.state in ("watching", "listing", "absent")


def _resource(watch: K8sWatch) -> str:
    return watch.resource


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name}={count}" for name, count in sorted(counts.items()))


def _age(seconds: float) -> str:
    return age(seconds) if seconds else ""


def _moment(seconds: float) -> str:
    return rfc3339(seconds) if seconds else ""


def to_json(watch: K8sWatch) -> dict[str, Any]:
    return {
        "Resource": watch.resource,
        "State": watch.state,
        "Listed": watch.listed,
        "ResourceVersion": watch.revision,
        "Objects": watch.objects,
        "Server": watch.server,
        "LastEvent": _moment(watch.last_event_at),
        "Proven": _moment(watch.proven_at),
        "Proofs": watch.proofs,
        "ProofBytes": watch.proof_bytes,
        "ProofCPUSeconds": watch.proof_cpu_s,
        "Repairs": dict(watch.repairs),
        "Anomalies": dict(watch.anomalies),
        "LastAnomaly": _moment(watch.last_anomaly_at),
        "Errors": watch.errors,
        "Error": watch.error,
        "LastError": _moment(watch.last_error_at),
    }


RESOURCE: Final = Index("resource", key=_resource, parse=str)

COLUMNS: Final = (
    Column("Resource", _resource),
    Column("State", lambda watch: watch.state),
    Column("ResourceVersion", lambda watch: str(watch.revision)),
    Column("Objects", lambda watch: str(watch.objects)),
    Column("Proven", lambda watch: _age(watch.proven_at)),
    Column("LastEvent", lambda watch: _age(watch.last_event_at)),
    Column("Repairs", lambda watch: _counts(watch.repairs)),
    Column("Anomalies", lambda watch: _counts(watch.anomalies)),
    Column("Errors", lambda watch: str(watch.errors)),
    Column("Server", lambda watch: watch.server),
    Column("Error", lambda watch: watch.error),
)


def new_k8s_watches_table(db: DB) -> RWTable[K8sWatch]:
    """Registers ``k8s-watches`` with the database."""
    return new_table(db, TABLE_NAME, RESOURCE, columns=COLUMNS, row_type=K8sWatch, to_json=to_json)
