# SPDX-License-Identifier: Apache-2.0
"""Problem rows of Services and EndpointSlices, for as long as the objects are as they are.

The origins that have rows are remembered, so that an object without a problem costs no look-up.
"""

from __future__ import annotations

import time

from cilia.k8s.objects import EndpointSlice, ObjectKey, Service, unexpected
from cilia.loadbalancer.services.batch import Batch
from cilia.loadbalancer.services.conversion import Warnings
from statedb import RWTable, WriteTxn
from tables.addressing import ServiceName
from tables.problems import Problem, replace_problems
from tables.sources import Source as Origin

SERVICE_LABEL = f"metadata.labels[{EndpointSlice.SERVICE_LABEL}]"


class Complaints:
    """Those of one reflector. They are noted in a batch, and count once it is written. `with_rows`
    is shared by those whose batches may have each other's.
    """

    def __init__(self, table: RWTable[Problem], origin: Origin, with_rows: set[str]) -> None:
        self._table = table
        self._origin = origin
        self._with_rows = with_rows

    def note(self, key: ObjectKey, warnings: Warnings, batch: Batch) -> None:
        """Note what is wrong with an object now, if it or its last reading has anything."""
        if not (warnings or batch.problems or self._with_rows):
            return
        kind, namespace, name = key
        origin = self._origin_of(f"{kind}:{namespace}/{name}")
        if warnings or origin in self._with_rows or origin in batch.problems:
            batch.problems[origin] = [
                Problem(origin, message, "", 0, kind, namespace, name, path)
                for path, message in warnings
            ]

    def note_orphans(
        self, service: ServiceName, slices: tuple[ObjectKey, ...], batch: Batch
    ) -> None:
        """Note slices that name a service which is not there; none, if it is."""
        if not (slices or self._with_rows):
            return
        origin = self._origin_of(f"EndpointSlice:for {service}")
        if slices or origin in self._with_rows:
            message = f"there is no Service {service}"
            batch.problems[origin] = [
                Problem(origin, message, "", 0, *key, SERVICE_LABEL) for key in slices
            ]

    def note_unwritable(self, service: ServiceName, error: Exception, batch: Batch) -> None:
        """Note that the tables refuse what was made of a service."""
        origin = self._origin_of(f"Service:{service}")
        batch.problems[origin] = [
            Problem(origin, unexpected(error), "", 0, Service.KIND, service.namespace, service.name)
        ]

    def write(self, wtxn: WriteTxn, batch: Batch) -> None:
        """Replace the rows of each origin of the batch."""
        for origin, rows in batch.problems.items():
            if rows:
                self._with_rows.add(origin)
            else:
                self._with_rows.discard(origin)
            replace_problems(self._table, wtxn, origin, rows, time.time())

    def _origin_of(self, name: str) -> str:
        """Two sources may each have an object of one name."""
        return name if self._origin is Origin.K8S else f"{self._origin}:{name}"
