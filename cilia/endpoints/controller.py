# SPDX-License-Identifier: Apache-2.0
"""Endpoints to what the kernel is to have for them: programs at their devices, routes to them.

    endpoints, k8s-pods, k8s-namespaces -> desired-identities, attachments, desired-routes
    their statuses, identities          -> state and identity of each endpoint

An endpoint is ready when its row is in the map, its programs are attached and its routes are there.
The rows that belong to one are told by its device, so a row without its endpoint goes. An endpoint
whose device is gone (its container may delete it) is disconnected: nothing is asked for it, so that
no reconciler fails by a tenant's doing.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Set
from itertools import chain
from pathlib import Path
from typing import Final

import msgspec

from cilia.datapath.packet_devices import POD_PROGRAMS
from cilia.endpoints.concerned import Concerned
from cilia.endpoints.identity_of import EndpointIdentities
from cilia.identity.desired import Claim, DesiredIdentities
from cilia.node.routes import DesiredRoutes
from statedb import DB, ReadTxn, RWTable, StatusKind, Table, WatchSet, WriteTxn
from statedb.status import pending
from tables.addressing import Prefix
from tables.cluster.namespaces import Namespace
from tables.cluster.pods import Pod
from tables.datapath.attachments import FIRST, LAST, Attachment, attachment_key
from tables.endpoints.endpoints import DEVICE, Endpoint, EndpointState
from tables.node.desired_routes import DesiredRoute, desired_route_key
from tables.node.devices import Device, device_by_name, mac_text
from tables.node.routes import RouteScope

__all__ = ["OWNER", "EndpointsController"]

#: Owner of the rows.
OWNER: Final = "endpoints"

#: Of an endpoint that was never ready: the kernel may not have told of its device yet.
NEW: Final = (EndpointState.WAITING_FOR_IDENTITY, EndpointState.WAITING_TO_REGENERATE)

#: Changes that come together are looked at once.
SETTLE_S: Final = 0.001


class EndpointsController:
    """One task calls `run`, when what a former run left is restored."""

    def __init__(
        self,
        db: DB,
        endpoints: RWTable[Endpoint],
        desired: DesiredIdentities,
        pods: RWTable[Pod],
        namespaces: RWTable[Namespace],
        attachments: RWTable[Attachment],
        routes: RWTable[DesiredRoute],
        devices: RWTable[Device],
        programs_dir: Path,
    ) -> None:
        self._db = db
        self._devices = devices
        self._endpoints = endpoints
        self._desired = desired
        self._attachments = attachments
        self._routes = routes
        self._route_writer = DesiredRoutes(routes)
        self._programs_dir = programs_dir
        self._identities_of = EndpointIdentities(pods, namespaces, desired)
        self._concerned = Concerned(
            db, endpoints, pods, namespaces, desired.identities, devices, attachments, routes
        )
        # By device, caches of ``desired-identities`` and of ``desired-routes``.
        self._claims: dict[str, list[Claim]] = {}
        self._routes_of: dict[str, tuple[DesiredRoute, ...]] = {}

    async def run(self) -> None:
        """Follow the tables for ever; may be called again after a failure."""
        with self._concerned.following():
            while True:
                devices, changed = self._db.look(self._next)
                self.step(devices)
                await changed.wait(SETTLE_S)

    def _next(self, txn: ReadTxn) -> tuple[set[str] | None, WatchSet]:
        return self._concerned.next(txn, self._claims)

    def step(self, devices: Set[str] | None = None) -> None:
        """Write what differs for the endpoints of some devices, by default for all."""
        tables = (self._endpoints, self._desired.table, self._attachments, self._routes)
        with self._db.write_txn(*tables) as wtxn:
            before = dict(self._claims)
            if devices is None:
                self._look_at_all(wtxn)
            else:
                for device in devices:
                    if not self._look_at(wtxn, device):
                        self._remove_rows(wtxn, device)
            if devices is None or self._claims != before:
                self._desired.replace(wtxn, set(chain.from_iterable(self._claims.values())))

    def _look_at_all(self, wtxn: WriteTxn) -> None:
        held = {ep.device for ep in self._endpoints.all(wtxn)}
        for device in self._claims.keys() - held:
            del self._claims[device]
        self._remove_others(wtxn, {device for device in held if self._look_at(wtxn, device)})

    def _look_at(self, wtxn: WriteTxn, device: str) -> bool:
        """Write what differs for one device; return True if it is there and an endpoint's."""
        is_there = False
        claims: list[Claim] = []
        for ep in self._endpoints.list(wtxn, device, DEVICE):
            named = self._identities_of.named(wtxn, ep)
            row = self._identities_of.annotated(wtxn, named)
            row, claimed = self._identities_of.assign(wtxn, row)
            claims += claimed
            if self._is_there(wtxn, row):
                is_there = True
                self._write_rows(wtxn, row)
            self._write_endpoint(wtxn, ep, row)
        if claims:
            self._claims[device] = claims
        else:
            self._claims.pop(device, None)
        return is_there

    def with_identity(self, txn: ReadTxn, ep: Endpoint) -> Endpoint:
        """Return a new endpoint with the identity of its labels, if there is one already."""
        return self._identities_of.assign(txn, ep)[0]

    def waits_for(self, txn: ReadTxn, ep: Endpoint) -> str:
        """Return what is not in force yet of an endpoint, in a sentence; or nothing."""
        if not ep.identity:
            return self._desired.lacks(txn, ep.labels)
        device = device_by_name(self._devices, txn, ep.device)
        if device is not None and device.hardware_address not in (b"", ep.node_mac):
            mac = mac_text(ep.node_mac)
            return (
                f"somebody gave its device the address {device.mac}, and the pod sends to {mac}:"
                f" `ip link set {ep.device} address {mac}`"
            )
        return _not_in_force(txn, ep, self._attachments, self._routes)

    # -- one endpoint --

    def _write_endpoint(self, wtxn: WriteTxn, old: Endpoint, row: Endpoint) -> None:
        if row.identity != old.identity:
            row = msgspec.structs.replace(row, status=pending())
        state = self._state(wtxn, row)
        if state is not row.state or not row.log:
            waits_for = "" if state is EndpointState.READY else self.waits_for(wtxn, row)
            row = row.moved(state, time.time(), waits_for)
        if row is not old:
            self._endpoints.insert(wtxn, row)

    def _is_there(self, txn: ReadTxn, ep: Endpoint) -> bool:
        """False if the kernel has told that the device is gone, or not yet that it came."""
        device = device_by_name(self._devices, txn, ep.device)
        if device is None:
            return not self._devices.initialized(txn)
        return device.index == ep.index

    def _state(self, wtxn: WriteTxn, ep: Endpoint) -> EndpointState:
        if ep.state is EndpointState.DISCONNECTING:
            return ep.state
        if ep.state not in NEW and not self._is_there(wtxn, ep):
            return EndpointState.DISCONNECTED
        if not ep.identity:
            return EndpointState.WAITING_FOR_IDENTITY
        if not self.waits_for(wtxn, ep):
            return EndpointState.READY
        if ep.state is EndpointState.RESTORING:
            return ep.state
        if ep.state in NEW:
            return EndpointState.WAITING_TO_REGENERATE
        return EndpointState.REGENERATING

    def _write_rows(self, wtxn: WriteTxn, ep: Endpoint) -> None:
        if ep.state is EndpointState.DISCONNECTING:
            return
        for row in self._wanted_attachments(ep):
            found = self._attachments.get(wtxn, attachment_key(row))
            if found is None or found.program != row.program:
                self._attachments.insert(wtxn, row)
        wanted = self._routes_of[ep.device] = tuple(_wanted_routes(ep))
        for route in wanted:
            self._route_writer.upsert(wtxn, route)

    def _wanted_attachments(self, ep: Endpoint) -> Iterator[Attachment]:
        for hook, program in POD_PROGRAMS.items():
            yield Attachment(
                target=ep.device,
                hook=hook,
                owner=OWNER,
                program=f"{self._programs_dir}/{program}",
                # Another plugin's device may have our program for pods of others still.
                order=FIRST if ep.is_chained else LAST,
            )

    def _remove_rows(self, wtxn: WriteTxn, device: str) -> None:
        for hook in POD_PROGRAMS:
            self._attachments.delete_key(wtxn, (device, hook, OWNER))
        for route in self._routes_of.pop(device, ()):
            self._route_writer.delete(wtxn, route)

    def _remove_others(self, wtxn: WriteTxn, devices: set[str]) -> None:
        for device in self._routes_of.keys() - devices:
            del self._routes_of[device]
        for row in list(self._attachments.all(wtxn)):
            if row.owner == OWNER and row.target not in devices:
                self._attachments.delete(wtxn, row)
        for route in list(self._routes.prefix(wtxn, (OWNER,))):
            if route.device not in devices:
                self._route_writer.delete(wtxn, route)


def _wanted_routes(ep: Endpoint) -> Iterator[DesiredRoute]:
    """Yield none for one whose routes are another plugin's."""
    for ip in () if ep.is_chained else ep.addresses:
        yield DesiredRoute(
            owner=OWNER,
            prefix=Prefix.of(ip, ip.bits),
            device=ep.device,
            scope=RouteScope.UNIVERSE if ip.is_ipv6 else RouteScope.LINK,
        )


def _not_in_force(
    txn: ReadTxn, ep: Endpoint, attachments: Table[Attachment], routes: Table[DesiredRoute]
) -> str:
    rows = [("its entry in the map", ep.status)]
    for hook in POD_PROGRAMS:
        found = attachments.get(txn, (ep.device, hook, OWNER))
        if found is None:
            return f"the program at {hook} is not asked for yet"
        rows.append((f"the program at {hook}", found.status))
    for route in _wanted_routes(ep):
        wanted = routes.get(txn, desired_route_key(route))
        if wanted is None:
            return f"the route to {route.prefix} is not asked for yet"
        rows.append((f"the route to {route.prefix}", wanted.status))
    for what, status in rows:
        if status.kind is not StatusKind.DONE:
            return f"{what} is {status}".replace("is Error:", "failed:")
    return ""
