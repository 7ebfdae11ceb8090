# SPDX-License-Identifier: Apache-2.0
"""Which endpoints a change is about, so that one pod more costs the same on a full node.

endpoints, devices, attachments, desired-routes   by the name of the device
k8s-pods                                          by the name of the pod
identities                                        by what endpoints claim
k8s-namespaces                                    all
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from cilia.identity.desired import Claim
from statedb import DB, Change, ChangeIterator, ReadTxn, RWTable, WatchSet
from tables.cluster.namespaces import Namespace
from tables.cluster.pods import Pod
from tables.datapath.attachments import Attachment
from tables.endpoints.endpoints import ADDRESS, POD, Endpoint
from tables.identity.identities import Identity
from tables.node.desired_routes import DesiredRoute
from tables.node.devices import Device
from tables.node.devices import names as names_of_device

__all__ = ["Concerned"]

#: By device.
Claims = Mapping[str, Iterable[Claim]]


class Concerned:
    """`next` returns names of endpoints' devices, inside of `following`."""

    def __init__(
        self,
        db: DB,
        endpoints: RWTable[Endpoint],
        pods: RWTable[Pod],
        namespaces: RWTable[Namespace],
        identities: RWTable[Identity],
        devices: RWTable[Device],
        attachments: RWTable[Attachment],
        routes: RWTable[DesiredRoute],
    ) -> None:
        self._db = db
        self._endpoints = endpoints
        self._namespaces = namespaces
        self._identities = identities
        self._devices = devices
        self._pods = pods
        # How a changed row leads to devices; what of other owners comes along concerns no endpoint.
        self._by_row: dict[RWTable[Any], Callable[[Any], Iterable[str]]] = {
            endpoints: lambda ep: (ep.device,),
            devices: names_of_device,
            attachments: lambda row: (row.target,),
            routes: lambda row: (row.device,),
        }
        self._iterators: dict[RWTable[Any], ChangeIterator[Any]] = {}
        self._read: tuple[bool, bool] | None = None

    @contextmanager
    def following(self) -> Iterator[None]:
        """Follow all tables; the first `next` is about all endpoints."""
        tables = (*self._by_row, self._pods, self._namespaces, self._identities)
        with ExitStack() as stack:
            with self._db.write_txn(*tables) as wtxn:
                self._iterators = {table: table.changes(wtxn) for table in tables}
            for iterator in self._iterators.values():
                stack.callback(iterator.close)
            self._read = None
            yield

    def next(self, txn: ReadTxn, claims: Claims) -> tuple[set[str] | None, WatchSet]:
        """Return the devices whose endpoints have to be looked at, None for all, and what closes
        with further changes. `claims`: those that endpoints make now.
        """
        watches = WatchSet(
            self._devices.initialized_watch(txn)[1], self._identities.filled_watch(txn)[1]
        )
        read = (self._devices.initialized(txn), self._identities.filled(txn))
        is_about_all = read != self._read or bool(self._changes(txn, self._namespaces, watches))
        self._read = read
        devices: set[str] = set()
        for table, names in self._by_row.items():
            for change in self._changes(txn, table, watches):
                devices.update(names(change.obj))
        for change in self._changes(txn, self._pods, watches):
            devices.update(self._of_pod(txn, change.obj))
        identities = [change.obj for change in self._changes(txn, self._identities, watches)]
        if identities:
            devices.update(_claiming(claims, identities))
        return None if is_about_all else devices, watches

    def _changes(self, txn: ReadTxn, table: RWTable[Any], watches: WatchSet) -> list[Change[Any]]:
        found, changed = self._iterators[table].next(txn)
        watches.add(changed)
        return list(found)

    def _of_pod(self, txn: ReadTxn, pod: Pod) -> Iterator[str]:
        """Devices of a pod's endpoints, and of those that have its address and no name yet."""
        for ep in self._endpoints.list(txn, f"{pod.namespace}/{pod.name}", POD):
            yield ep.device
        if not pod.host_network:
            for ip in pod.ips:
                for ep in self._endpoints.list(txn, ip, ADDRESS):
                    yield ep.device


def _claiming(claims: Claims, identities: Iterable[Identity]) -> Iterator[str]:
    labels = {row.labels for row in identities}
    numbers = {row.id for row in identities}
    for device, made in claims.items():
        if any(claim[0] in labels or claim[1] in numbers for claim in made):
            yield device
