# SPDX-License-Identifier: Apache-2.0
"""Deletes CiliumEndpoints whose pod is gone, if no agent did: its node is, or never comes back."""

from __future__ import annotations

import structlog

from cilia.cluster.collection import Collected, Unread
from cilia.endpoints.k8s_endpoints.controller import ENDED
from cilia.endpoints.k8s_endpoints.objects import EndpointObjects
from cilia.k8s.crds.endpoints import POD
from cilia.k8s.errors import StatusError
from cilia.k8s.object_writer import CONFLICT
from statedb import DB, ReadTxn, Table
from tables.cluster.pods import Pod
from tables.endpoints.k8s_endpoints import K8sEndpoint
from tables.problems import Problem

__all__ = ["EndpointCollector", "is_orphan"]

log = structlog.get_logger("endpoints")


def is_orphan(obj: K8sEndpoint, pod: Pod | None) -> bool:
    """Return True if the pod of an object is gone or has ended; `pod` has its name now."""
    if pod is None or pod.phase in ENDED:
        return True
    return obj.pod_uid not in ("", pod.uid)


class EndpointCollector:
    """Looks at all objects of the cluster. An object goes that is an orphan at two looks, and was
    not written between: the one list may be read before the other.
    """

    def __init__(
        self,
        db: DB,
        objects: Table[K8sEndpoint],
        pods: Table[Pod],
        problems: Table[Problem],
        unread: Unread,
        edge: EndpointObjects,
    ) -> None:
        """`problems`: among others, pods that are there and cannot be read."""
        self._problems = problems
        self._db = db
        self._objects = objects
        self._pods = pods
        self._unread = unread
        self._edge = edge
        # Versions of the orphans of the last look, by name.
        self._orphans: dict[str, str] = {}

    async def collect(self) -> Collected:
        """Look at all objects once. Raises: ApiError."""
        unread, orphans = self._db.look(self._look)
        if unread:
            return Collected(unread)
        before, self._orphans = self._orphans, {obj.pod_name: obj.version for obj in orphans}
        deleted = 0
        for obj in orphans:
            if before.get(obj.pod_name) == obj.version and await self._delete(obj):
                deleted += 1
        return Collected(outcomes={"deleted": deleted})

    def _look(self, txn: ReadTxn) -> tuple[list[str], list[K8sEndpoint]]:
        unread = self._unread(txn)
        if unread:
            return unread, []
        refused = {
            f"{row.namespace}/{row.name}" for row in self._problems.all(txn) if row.kind == POD
        }
        return [], [
            obj
            for obj in self._objects.all(txn)
            if obj.pod_name not in refused and is_orphan(obj, self._pods.get(txn, obj.pod_name))
        ]

    async def _delete(self, obj: K8sEndpoint) -> bool:
        """Return False if the object is gone, or written since. Raises: ApiError."""
        try:
            if not await self._edge.delete(obj):
                return False
        except StatusError as failure:
            if failure.code != CONFLICT:
                raise
            return False
        log.info("deleted a CiliumEndpoint without a pod", pod=obj.pod_name, node=str(obj.node))
        return True
