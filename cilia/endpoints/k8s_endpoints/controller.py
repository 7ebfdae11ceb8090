# SPDX-License-Identifier: Apache-2.0
"""Endpoints of this node to what is to be said of them in CiliumEndpoint objects.

    endpoints, k8s-pods, k8s-endpoints, k8s-nodes -> desired-k8s-endpoints

A pod is said once its endpoint is ready for the first time, with its identity: that is one write.
States that last for moments are not said, so that the next write is the end of the pod. An object
is to be deleted when nothing is behind it, and that is known: endpoints of the run before are
restored, and objects and pods are read whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Final

import msgspec

from cilia.endpoints.identity_of import pod_of
from cilia.endpoints.k8s_endpoints.objects import content_of
from cilia.node.own_addresses import OwnAddresses
from statedb import DB, ReadTxn, RWTable, Table, WatchSet, WriteTxn
from tables.addressing import IP
from tables.cluster.pods import Pod
from tables.endpoints.desired_k8s_endpoints import DesiredK8sEndpoint, NamedPort
from tables.endpoints.endpoints import Endpoint, EndpointState
from tables.endpoints.k8s_endpoints import NODE, K8sEndpoint

__all__ = ["K8sEndpointsController", "desired_of", "leftovers"]

#: States of an endpoint that is not said yet, or not any more.
UNSAID: Final = (
    EndpointState.WAITING_FOR_IDENTITY,
    EndpointState.WAITING_TO_REGENERATE,
    EndpointState.DISCONNECTING,
)
#: Phases of a pod that has ended; collectors delete its object.
ENDED: Final = ("Succeeded", "Failed")

#: Changes that come together are looked at once.
SETTLE_S: Final = 0.01

#: By name of the pod.
Rows = Mapping[str, DesiredK8sEndpoint]
PodOf = Callable[[Endpoint], Pod | None]


def desired_of(
    endpoints: Iterable[Endpoint], pod: PodOf, node: IP | None
) -> dict[str, DesiredK8sEndpoint]:
    """Return what is to be said of the endpoints, by name of the pod.

    `pod`: the pod of an endpoint, None if the cluster does not have it.
    """
    by_pod: dict[str, list[Endpoint]] = {}
    for ep in endpoints:
        if ep.pod and ep.identity and ep.state not in UNSAID:
            by_pod.setdefault(ep.pod_name, []).append(ep)
    return {name: _row(_of_newest(found), pod, node) for name, found in by_pod.items()}


def _of_newest(endpoints: Iterable[Endpoint]) -> list[Endpoint]:
    """Return the endpoints of the newest container, the first one first: a new sandbox may come
    before the old one is deleted, and a container may have several interfaces.
    """
    *_, newest = ordered = sorted(endpoints, key=lambda ep: (ep.created_at, ep.id))
    container = newest.attachment.container_id
    if not container:
        return [newest]
    return [ep for ep in ordered if ep.attachment.container_id == container]


def _row(endpoints: list[Endpoint], pod: PodOf, node: IP | None) -> DesiredK8sEndpoint:
    first = endpoints[0]
    found = pod(first)
    is_cut_off = first.state is EndpointState.DISCONNECTED
    return DesiredK8sEndpoint(
        namespace=first.namespace,
        pod=first.pod,
        node=node,
        pod_uid=first.pod_uid,
        is_known=found is not None and found.phase not in ENDED,
        endpoint_id=first.id,
        container_id=first.attachment.container_id,
        ifname=first.attachment.ifname,
        identity=first.identity,
        labels=first.labels,
        addressing=tuple((ep.ipv4, ep.ipv6) for ep in endpoints),
        named_ports=tuple(sorted(_named_ports(found))) if found is not None else (),
        state=(EndpointState.DISCONNECTED if is_cut_off else EndpointState.READY).value,
    )


def _named_ports(pod: Pod) -> Iterator[NamedPort]:
    for container in pod.containers:
        for port in container.ports:
            if port.name:
                yield NamedPort(port.name, port.port, port.protocol)


def leftovers(
    objects: Iterable[K8sEndpoint], endpoints: Iterable[Endpoint], desired: Rows
) -> dict[str, DesiredK8sEndpoint]:
    """Return what is to be deleted of the objects of this node: nothing is behind them.

    An endpoint whose file was lost has no name until its pod is found by its address.
    """
    endpoints = list(endpoints)
    named = {ep.pod_name for ep in endpoints if ep.state is not EndpointState.DISCONNECTING}
    unnamed = {ip for ep in endpoints if not ep.pod for ip in ep.addresses}
    return {
        obj.pod_name: DesiredK8sEndpoint(
            namespace=obj.namespace,
            pod=obj.name,
            node=obj.node,
            gone_uid=obj.uid,
            pod_uid=obj.pod_uid,
            identity=obj.identity,
        )
        for obj in objects
        if obj.pod_name not in desired
        and obj.pod_name not in named
        and not unnamed.intersection(obj.addresses)
    }


class K8sEndpointsController:
    """One task calls `run`. Owns all of ``desired-k8s-endpoints``."""

    def __init__(
        self,
        db: DB,
        endpoints: Table[Endpoint],
        pods: Table[Pod],
        objects: Table[K8sEndpoint],
        desired: RWTable[DesiredK8sEndpoint],
        own: OwnAddresses,
        sole: OwnAddresses,
    ) -> None:
        """`own`: the addresses of this node's Node object; `sole`: those that no other node has."""
        self._db = db
        self._endpoints = endpoints
        self._pods = pods
        self._objects = objects
        self._desired = desired
        self._own = own
        self._sole = sole

    async def run(self) -> None:
        """Follow the tables for ever."""
        while True:
            await self.step().wait(SETTLE_S)

    def step(self) -> WatchSet:
        """Write what differs; return what to wait for."""
        with self._db.write_txn(self._desired) as wtxn:
            watches = WatchSet()
            rows = self._rows(wtxn, watches)
            if rows is not None:
                self._replace(wtxn, rows)
        return watches

    def _rows(self, txn: ReadTxn, watches: WatchSet) -> Rows | None:
        """Return all rows, None if too little is known; add what closes when there are others."""
        own = self._own(txn, watches)
        found, changed = self._endpoints.all_watch(txn)
        are_restored, restored = self._endpoints.initialized_watch(txn)
        watches.add(changed, restored, self._pods.all_watch(txn)[1])
        if own is None or not are_restored:
            return None
        endpoints = list(found)
        node = next(iter(own), None)
        rows = desired_of(endpoints, lambda ep: pod_of(self._pods, txn, ep), node)
        is_read = True
        for table in (self._objects, self._pods):
            initialized, became_initialized = table.initialized_watch(txn)
            watches.add(became_initialized)
            is_read = is_read and initialized
        # An object says by an address which node it is of.
        for ip in self._sole(txn, watches) or ():
            objects, changed = self._objects.list_watch(txn, ip, NODE)
            watches.add(changed)
            if is_read:
                rows |= leftovers(objects, endpoints, rows)
        return rows

    def _replace(self, wtxn: WriteTxn, rows: Rows) -> None:
        for held in list(self._desired.all(wtxn)):
            if held.pod_name not in rows:
                self._desired.delete(wtxn, held)
        for name, row in rows.items():
            before = self._desired.get(wtxn, name)
            if before is None or not _says(before, row):
                content = 0 if row.gone_uid else content_of(row)
                self._desired.insert(wtxn, msgspec.structs.replace(row, content=content))


def _says(held: DesiredK8sEndpoint, row: DesiredK8sEndpoint) -> bool:
    """Return True if a row that is held is the one that was just made."""
    return msgspec.structs.replace(row, content=held.content, status=held.status) == held
