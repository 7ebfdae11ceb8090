# SPDX-License-Identifier: Apache-2.0
"""CiliumEndpoint objects of this node, made, changed and deleted.

    what is desired      what there is                       what is done
    a pod's endpoint     no object                           one is made, if the cluster has the pod
                         the object of this pod              it is written, if it differs
                         the object of another pod           it is taken over, if the cluster has
                                                             this pod, else it is another node's
    nothing              the object that this node wrote     it is deleted
                         another one by now                  nothing

Objects are changed and deleted by uid and version, so nothing that another node wrote is lost: a
pod of a StatefulSet has the same name on each node that it comes to.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from cilia.cluster.object_reconciler import Work
from cilia.k8s.crds.endpoints import POD, CiliumEndpoint
from cilia.k8s.errors import ApiError, StatusError
from cilia.k8s.object_writer import (
    CONFLICT,
    NOT_FOUND,
    Form,
    ObjectWriter,
    object_path,
    read_object,
    unregistered,
)
from reconcilers.operations import Refusal
from statedb import Channel, ReadTxn, Table
from tables.endpoints.desired_k8s_endpoints import DesiredK8sEndpoint
from tables.endpoints.k8s_endpoints import K8sEndpoint

__all__ = ["EndpointObjects", "content_of", "endpoint_form"]


class NoAddress(ApiError):
    """This node has no address to say."""


class EndpointObjects:
    """The work for rows of ``desired-k8s-endpoints``; see `cilia.cluster.object_reconciler`."""

    def __init__(self, objects: Table[K8sEndpoint], writer: ObjectWriter) -> None:
        self._objects = objects
        self._writer = writer

    def watch(self, txn: ReadTxn, row: DesiredK8sEndpoint) -> Channel:
        return self._objects.get_watch(txn, row.pod_name)[1]

    def work(self, txn: ReadTxn, row: DesiredK8sEndpoint) -> Work | None:
        """Return what is to be done for a row. Raises: Refusal."""
        found = self._objects.get(txn, row.pod_name)
        if row.gone_uid:
            is_there = found is not None and (found.uid, found.node) == (row.gone_uid, row.node)
            return partial(self.delete, found) if found is not None and is_there else None
        if found is not None and found.content == row.content:
            return None
        if not row.is_known:
            if found is not None and _is_own(found, row):
                return None
            raise Refusal(
                "the cluster does not have its pod, or says that it has ended: nothing is written"
            )
        if row.node is None:
            return _no_address
        return partial(self._create, row) if found is None else partial(self._replace, row, found)

    async def _create(self, row: DesiredK8sEndpoint) -> None:
        """Raises: ApiError."""
        try:
            await self._writer.create(_path(row.namespace, row.pod), endpoint_form(row))
        except StatusError as failure:
            if failure.code != NOT_FOUND or "namespaces" in str(failure):
                raise
        else:
            return
        raise unregistered(CiliumEndpoint)

    async def _replace(self, row: DesiredK8sEndpoint, found: K8sEndpoint) -> None:
        """Write over what was found; what others wrote beside it (labels, annotations) stays.

        Raises: ApiError.
        """
        path = _path(row.namespace, row.pod)
        form = await read_object(self._writer, path)
        metadata = form["metadata"]
        if (metadata.get("uid"), metadata.get("resourceVersion")) != (found.uid, found.version):
            raise StatusError(
                CONFLICT, "the object has changed, and its watch does not show it yet"
            )
        wanted = endpoint_form(row)
        metadata["ownerReferences"] = wanted["metadata"].get("ownerReferences", [])
        await self._writer.replace(path, {**form, "status": wanted["status"]})

    async def delete(self, found: K8sEndpoint) -> bool:
        """Delete an object if it is as it was found; return False if it is gone already.

        Raises: ApiError.
        """
        path = _path(found.namespace, found.name)
        try:
            await self._writer.delete(path, found.uid, {}, found.version)
        except StatusError as failure:
            if failure.code != NOT_FOUND:
                raise
            return False
        return True


async def _no_address() -> None:
    raise NoAddress("the Node object of this node names no address: nothing can be written")


def _is_own(found: K8sEndpoint, row: DesiredK8sEndpoint) -> bool:
    """Return True if an object is that of the row's pod, not of one that has its name since."""
    if found.pod_uid or row.pod_uid:
        return found.pod_uid == row.pod_uid
    return found.node == row.node


def _path(namespace: str, name: str) -> str:
    return object_path(CiliumEndpoint, name, namespace)


def content_of(row: DesiredK8sEndpoint) -> int:
    """Return what `K8sEndpoint.content` is once the row is written."""
    return CiliumEndpoint.model_validate(endpoint_form(row)).content()


def endpoint_form(row: DesiredK8sEndpoint) -> Form:
    """Return the object of a pod's endpoint, as it is created."""
    owner = {"apiVersion": "v1", "kind": POD, "name": row.pod, "uid": row.pod_uid}
    return {
        "apiVersion": CiliumEndpoint.API_VERSION,
        "kind": CiliumEndpoint.KIND,
        "metadata": {
            "name": row.pod,
            "namespace": row.namespace,
            **({"ownerReferences": [owner]} if row.pod_uid else {}),
        },
        "status": dict(_status(row)),
    }


def _status(row: DesiredK8sEndpoint) -> Iterator[tuple[str, Any]]:
    yield "id", row.endpoint_id
    yield "state", row.state
    yield "identity", {"id": row.identity, "labels": list(row.labels)}
    pairs = [
        {name: str(ip) for name, ip in zip(("ipv4", "ipv6"), pair, strict=True) if ip is not None}
        for pair in row.addressing
    ]
    yield "networking", {"addressing": pairs, "node": str(row.node or "")}
    yield "external-identifiers", dict(_identifiers(row))
    if row.named_ports:
        yield (
            "named-ports",
            [
                {"name": port.name, "port": port.port, "protocol": port.protocol}
                for port in row.named_ports
            ],
        )


def _identifiers(row: DesiredK8sEndpoint) -> Iterator[tuple[str, str]]:
    if row.container_id:  # not known if the file of the endpoint was lost
        yield "cni-attachment-id", f"{row.container_id}:{row.ifname}"
        yield "container-id", row.container_id
    yield "k8s-namespace", row.namespace
    yield "k8s-pod-name", row.pod
    yield "pod-name", row.pod_name
