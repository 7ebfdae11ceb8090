# SPDX-License-Identifier: Apache-2.0
"""The controller looks at the endpoints that a change is about: then all are as if it had looked at
each of them.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest

from cilia.endpoints.controller import OWNER, EndpointsController
from cilia.identity import wiring
from statedb import RWTable
from statedb.status import done, error
from tables.addressing import IP
from tables.cluster.namespaces import Namespace, new_namespaces_table
from tables.cluster.pods import Pod, new_pods_table
from tables.datapath.attachments import new_attachments_table
from tables.endpoints.endpoints import Attachment, Endpoint, EndpointState, new_endpoints_table
from tables.identity.identities import Identity
from tables.node.desired_routes import new_desired_routes_table
from tables.node.devices import Device, new_devices_table
from tests.context import new_context

PODS: Final = 6
NUMBERS: Final = range(1, 9)


ENDPOINT: Final = Endpoint(
    id=1,
    attachment=Attachment("cilia", "c1", "eth0"),
    namespace="test",
    pod="pod-0",
    ipv4=IP.parse("10.0.0.1"),
    device="lxc1",
    index=1,
    node_mac=bytes(6),
    mac=bytes(6),
    created_at=1.0,
    state=EndpointState.READY,
)


class World:
    """The tables of an agent without a kernel, and random things that happen to them."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        ctx = new_context()
        self.db = db = ctx.db
        self.identity = wiring.build(ctx)
        self.endpoints = new_endpoints_table(db)
        self.pods, self.namespaces = new_pods_table(db), new_namespaces_table(db)
        self.devices = new_devices_table(db)
        self.attachments, self.routes = new_attachments_table(db), new_desired_routes_table(db)
        with db.write_txn(self.devices) as wtxn:
            self._devices_read = self.devices.register_initializer(wtxn, "netlink")
        self.controller = EndpointsController(
            db,
            self.endpoints,
            self.identity.owned_by(OWNER),
            self.pods,
            self.namespaces,
            self.attachments,
            self.routes,
            self.devices,
            Path("/nowhere"),
        )

    # -- what happens --

    def happen(self) -> None:
        often = (
            self.status_changes,
            self.identity_comes,
            self.device_changes,
            self.pod_changes,
            self.endpoint_comes,
        )
        seldom = (
            self.endpoint_is_deleted,
            self.endpoint_goes,
            self.pod_goes,
            self.namespace_changes,
            self.device_goes,
            self.devices_are_read,
            self.identity_goes,
        )
        what = self.random.choice(often if self.random.random() < 0.8 else seldom)
        what()

    def put(self, table: RWTable[Any], row: Any) -> None:
        with self.db.write_txn(table) as wtxn:
            table.insert(wtxn, row)

    def any_of(self, table: RWTable[Any]) -> Any:
        """A row, None if there is none."""
        rows = list(table.all(self.db.read_txn()))
        return self.random.choice(rows) if rows else None

    def drop(self, table: RWTable[Any]) -> None:
        row = self.any_of(table)
        if row is not None:
            with self.db.write_txn(table) as wtxn:
                table.delete(wtxn, row)

    def endpoint_comes(self) -> None:
        number = self.random.choice(NUMBERS)
        is_nameless = self.random.random() < 0.2
        self.put(
            self.endpoints,
            Endpoint(
                id=number,
                attachment=Attachment("cilia", "" if is_nameless else f"c{number}", "eth0"),
                namespace="" if is_nameless else "test",
                pod="" if is_nameless else self.pod_name(),
                ipv4=IP.parse(f"10.0.0.{number}"),
                device=f"lxc{number}",
                index=number,
                node_mac=bytes(6),
                mac=bytes(6),
                created_at=1.0,
                state=self.random.choice(
                    (EndpointState.WAITING_FOR_IDENTITY, EndpointState.RESTORING)
                ),
            ),
        )

    def endpoint_is_deleted(self) -> None:
        ep = self.any_of(self.endpoints)
        if ep is not None:
            self.put(self.endpoints, ep.moved(EndpointState.DISCONNECTING, 1.0))

    def endpoint_goes(self) -> None:
        self.drop(self.endpoints)

    def pod_name(self) -> str:
        return f"pod-{self.random.randrange(PODS)}"

    def pod_changes(self) -> None:
        labels = {"app": self.random.choice("abc")}
        ips = (IP.parse(f"10.0.0.{self.random.choice(NUMBERS)}"),)
        self.put(self.pods, Pod("test", self.pod_name(), labels=labels, ips=ips))

    def pod_goes(self) -> None:
        self.drop(self.pods)

    def namespace_changes(self) -> None:
        self.put(self.namespaces, Namespace("test", {"team": self.random.choice("xy")}))

    def device_changes(self) -> None:
        number = self.random.choice(NUMBERS)
        index = number if self.random.random() < 0.8 else number + 100
        self.put(self.devices, Device(index, f"lxc{number}"))

    def device_goes(self) -> None:
        self.drop(self.devices)

    def devices_are_read(self) -> None:
        with self.db.write_txn(self.devices) as wtxn:
            self._devices_read(wtxn)

    def identity_comes(self) -> None:
        row = self.any_of(self.identity.desired)
        if row is not None and row.labels:
            number = row.number or self.random.randrange(300, 330)
            self.put(self.identity.identities, Identity(number, row.labels, created_at=1.0))

    def identity_goes(self) -> None:
        self.drop(self.identity.identities)

    def status_changes(self) -> None:
        """The kernel takes what was asked for, mostly."""
        table = self.random.choice((self.endpoints, self.attachments, self.routes))
        for row in list(table.all(self.db.read_txn())):
            status = done() if self.random.random() < 0.9 else error("no room")
            self.put(table, msgspec.structs.replace(row, status=status))

    # -- the controller --

    def settle(self) -> None:
        """Let the controller look at what changed until nothing changes."""
        while True:
            devices, _ = self.db.look(self.controller._next)
            if devices is not None and not devices:
                return
            self.controller.step(devices)

    def revisions(self) -> list[int]:
        txn = self.db.read_txn()
        tables = (self.endpoints, self.identity.desired, self.attachments, self.routes)
        return [table.revision(txn) for table in tables]


@pytest.mark.parametrize("seed", range(40))
def test_no_endpoint_is_overlooked(seed: int) -> None:
    w = World(seed)
    w.controller.step()
    with w.controller._concerned.following():
        for step in range(60):
            for _ in range(w.random.choice((1, 1, 3))):
                w.happen()
            w.settle()
            before = w.revisions()
            w.controller.step()
            assert w.revisions() == before, f"step {step}: a look at all endpoints changes rows"


def test_one_more_pod_is_looked_at_alone() -> None:
    """Its cost does not grow with the pods that are there."""
    w = World(0)
    w.devices_are_read()
    w.put(w.pods, Pod("test", "pod-0", labels={"app": "a"}))
    for number in NUMBERS:
        w.put(w.devices, Device(number, f"lxc{number}"))
    with w.controller._concerned.following():
        for number in NUMBERS:
            w.random.seed(number)
            w.endpoint_comes()
        w.settle()
        ep = w.any_of(w.endpoints)
        w.put(w.endpoints, msgspec.structs.replace(ep, phases={"link": 0.1}))
        devices, _ = w.db.look(w.controller._next)
        assert devices == {ep.device}


def test_a_device_with_another_address_is_told_until_it_is_back() -> None:
    """Its pod is cut off: what it sends is for nobody."""
    w = World(0)
    w.devices_are_read()
    w.put(w.pods, Pod("test", "pod-0", labels={"app": "a"}))
    w.put(w.devices, Device(1, "lxc1", hardware_address=bytes(6)))
    w.put(w.endpoints, msgspec.structs.replace(ENDPOINT, state=EndpointState.WAITING_FOR_IDENTITY))

    def shown() -> Endpoint:
        w.settle()
        ep = w.any_of(w.endpoints)
        assert isinstance(ep, Endpoint)
        return ep

    with w.controller._concerned.following():
        w.settle()
        w.put(w.identity.identities, Identity(300, w.any_of(w.identity.desired).labels))
        w.settle()
        for table in (w.endpoints, w.attachments, w.routes):
            for row in list(table.all(w.db.read_txn())):
                w.put(table, msgspec.structs.replace(row, status=done()))
        assert shown().health == "OK"
        other = bytes.fromhex("020000000077")
        w.put(w.devices, Device(1, "lxc1", hardware_address=other))
        ep = shown()
        assert ep.health == "Pending"
        assert "`ip link set lxc1 address 00:00:00:00:00:00`" in ep.log[-1].message
        w.put(w.devices, Device(1, "lxc1", hardware_address=bytes(6)))
        assert shown().health == "OK"
