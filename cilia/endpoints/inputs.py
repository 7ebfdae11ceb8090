# SPDX-License-Identifier: Apache-2.0
"""What a request needs of the cluster: the pod that it is for, and that all was read."""

from __future__ import annotations

from typing import Final

import anyio

from cilia.endpoints.cni.errors import CNIError, Code
from cilia.endpoints.cni.requests import Request
from cilia.endpoints.identity_of import pod_of
from cilia.identity.labels import container_labels
from statedb import DB, ReadTxn, Table
from tables.cluster.namespaces import Namespace
from tables.cluster.nodes import Node
from tables.cluster.pods import Pod
from tables.endpoints.endpoints import Endpoint
from tables.identity.identities import Identity

__all__ = ["Inputs"]

#: Keys of CNI_ARGS that container runtimes of Kubernetes set.
POD_NAMESPACE: Final = "K8S_POD_NAMESPACE"
POD_NAME: Final = "K8S_POD_NAME"
POD_UID: Final = "K8S_POD_UID"
OWN_ARGS: Final = ("IgnoreUnknown", "K8S_POD_INFRA_CONTAINER_ID", POD_NAMESPACE, POD_NAME, POD_UID)


class Inputs:
    """The tables of the cluster, and what a former run left."""

    def __init__(
        self,
        db: DB,
        pods: Table[Pod],
        namespaces: Table[Namespace],
        nodes: Table[Node],
        endpoints: Table[Endpoint],
        identities: Table[Identity],
    ) -> None:
        self._db = db
        self._nodes = nodes
        self._pods = pods
        self._namespaces = namespaces
        self._endpoints = endpoints
        self._identities = identities

    def require_synchronised(self) -> None:
        """Raises: CNIError as long as inputs are not read.

        Objects that cannot be read (a broken file) hold nobody up: a pod that is among them is
        waited for by itself.
        """
        missing = self._db.look(self._missing)
        if missing:
            raise CNIError(
                Code.TRY_AGAIN_LATER, f"the agent has not read all {', '.join(missing)} yet"
            )

    def _missing(self, txn: ReadTxn) -> list[str]:
        read = {
            "pods": self._pods.filled(txn),
            "namespaces": self._namespaces.filled(txn),
            "identities": self._identities.filled(txn),
            "nodes": self._nodes.filled(txn),
            "endpoints of the run before": self._endpoints.initialized(txn),
        }
        return [name for name, is_read in read.items() if not is_read]

    async def pod(self, request: Request, wait_s: float = 0.0) -> Pod | None:
        """Return the pod that a request is for; None: a container outside Kubernetes.

        Raises: CNIError for a pod that no object is known of after `wait_s`.
        """
        namespace, name = _pod_named(request)
        if not name:
            return None
        uid = request.args.get(POD_UID, "")
        with anyio.move_on_after(wait_s):
            while True:
                pod, changed = self._db.look(
                    lambda txn: self._pods.get_watch(txn, f"{namespace}/{name}")
                )
                if pod is not None and uid in ("", pod.uid, pod.runtime_uid):
                    return pod
                await changed.wait()
        raise CNIError(
            Code.TRY_AGAIN_LATER,
            f"pod {namespace}/{name} {f'with uid {uid} ' if uid else ''}is not known on this node"
            f" after {wait_s:.0f} s",
        )

    def has_pod(self, ep: Endpoint) -> bool:
        """Return True while the cluster has the pod of an endpoint."""
        return self._db.look(lambda txn: pod_of(self._pods, txn, ep)) is not None

    @staticmethod
    def container_labels(request: Request) -> tuple[str, ...]:
        """Return the labels of a container outside Kubernetes: the arguments that are not ours."""
        if _pod_named(request)[1]:
            return ()
        return container_labels({k: v for k, v in request.args.items() if k not in OWN_ARGS})


def _pod_named(request: Request) -> tuple[str, str]:
    """Return namespace and name of the pod that a request is for, empty if it is for none: podman
    gives the name of its container as that of a pod, without a namespace.
    """
    namespace, name = request.args.get(POD_NAMESPACE, ""), request.args.get(POD_NAME, "")
    return (namespace, name) if namespace else ("", "")
