# SPDX-License-Identifier: Apache-2.0
"""Nodes that give pods identities, without a kernel: the agent's own tables and jobs.

Endpoints come and go as rows, as the CNI plugin writes them. What a node shares with others is a
directory of objects, or whatever `SharedObjects` a test gives it.
"""

from __future__ import annotations

import dataclasses
import json
import random
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio.abc import TaskGroup

from bpf.maps import ipcache as codec
from bpf.maps.fake import FakeMap
from cilia.endpoints.controller import OWNER, EndpointsController
from cilia.endpoints.k8s_endpoints import wiring as k8s_endpoints
from cilia.endpoints.known import Known
from cilia.endpoints.registry import Registry
from cilia.identity import wiring
from cilia.identity.allocation import IdentityAllocator
from cilia.identity.desired import Claim
from cilia.identity.ipcache.known import KnownAddresses
from cilia.ipam.allocator import Allocator
from cilia.ipam.options import IPAMOptions
from cilia.ipam.pools import NodePools
from cilia.k8s.crds import CiliumEndpoint, CiliumIdentity
from cilia.k8s.errors import ConnectionLost, Unreachable
from cilia.k8s.object_files import ObjectFiles, object_files_source
from cilia.k8s.object_writer import Form, ObjectWriter, SharedObjects
from cilia.k8s.objects import K8sObject
from cilia.k8s.watch import Event, Source
from cilia.linux.path_watch import PathWatch
from cilia.node.own_addresses import own_addresses
from reconcilers.reconciler import Reconciler
from statedb import DB, ReadTxn, RWTable, wait_any
from tables.addressing import IP
from tables.cluster.namespaces import new_namespaces_table
from tables.cluster.nodes import Node as ClusterNode
from tables.cluster.nodes import new_nodes_table
from tables.cluster.pods import Pod, new_pods_table
from tables.datapath.attachments import new_attachments_table
from tables.endpoints.endpoints import (
    Attachment,
    Endpoint,
    EndpointState,
    new_endpoints_table,
)
from tables.identity.ipcache import new_ipcache_table
from tables.ipam.ip_allocations import new_ip_allocations_table
from tables.node.desired_routes import new_desired_routes_table
from tables.node.devices import Device, new_devices_table
from tests.context import new_context
from tests.patience import PATIENCE

#: Conditions may be about nodes, too.
LOOK_AGAIN_S = 0.02

#: Endpoint number, labels and identity that are in force.
InForce = dict[str, tuple[tuple[str, ...], int]]


class Node:
    """One agent's part. `run` it in a task group; `stop` it as a kill does."""

    def __init__(self, shared: SharedObjects | None, address: str = "192.0.2.1") -> None:
        self.ctx = dataclasses.replace(new_context(), shared=shared)
        self.db: DB = self.ctx.db
        self.address = address
        self.identity = wiring.build(self.ctx)
        self.endpoints = new_endpoints_table(self.db)
        self.pods = new_pods_table(self.db)
        self.nodes = new_nodes_table(self.db)
        self.namespaces = new_namespaces_table(self.db)
        self.devices = new_devices_table(self.db)
        attachments, routes = new_attachments_table(self.db), new_desired_routes_table(self.db)
        allocations = new_ip_allocations_table(self.db)
        self.controller = EndpointsController(
            self.db,
            self.endpoints,
            self.identity.owned_by(OWNER),
            self.pods,
            self.namespaces,
            attachments,
            routes,
            self.devices,
            Path("/nowhere"),
        )
        self.registry = Registry(
            self.db,
            self.endpoints,
            allocations,
            Allocator(allocations),
            NodePools(IPAMOptions(), self.nodes, self.devices, frozenset(), frozenset()),
            self.controller,
            KnownAddresses(
                new_ipcache_table(self.db),
                FakeMap(codec.NAME, codec.KEY_BYTES, codec.VALUE_BYTES),
                frozenset(),
            ),
        )
        own = own_addresses(self.nodes, address)
        self.k8s = None
        if shared is not None:
            self.k8s = k8s_endpoints.build(self.ctx, shared, self.endpoints, self.pods, own, own)
        self._known = Known(self.db, OWNER, attachments, routes, self.identity.desired)
        self._restored = Known(self.db, "restore", self.endpoints)
        self._reconcilers: list[Reconciler[Any]] = [
            self.ctx.reconciler(self.endpoints, _KernelThatTakesAll()),
            self.ctx.reconciler(attachments, _KernelThatTakesAll()),
            self.ctx.reconciler(routes, _KernelThatTakesAll()),
        ]
        self.scope = anyio.CancelScope()
        self._numbers = 0
        with self.db.write_txn(self.nodes) as wtxn:
            self.nodes.insert(wtxn, ClusterNode(address, internal_ips=(IP.parse(address),)))

    async def run(self) -> None:
        """Run all jobs until cancelled."""
        async with anyio.create_task_group() as group:
            self._restored.say()
            self.controller.step()
            self._known.say()
            self.ctx.start(group, self.identity.jobs)
            self.ctx.start(group, {"endpoints": self.controller.run})
            self.ctx.start(group, {f"reconcile-{r.name}": r.run for r in self._reconcilers})
            if self.k8s is not None:
                self.ctx.start(group, self.k8s.jobs)

    def stop(self) -> None:
        self.scope.cancel()

    # -- pods --

    def add(self, name: str, app: str, uid: str = "") -> None:
        """Make a pod, and the endpoint that the runtime asks for."""
        self.label(name, app, uid)
        self._numbers += 1
        self.insert(name, self._numbers, uid=uid)

    def insert(
        self,
        name: str,
        number: int,
        in_force: Claim = ((), 0),
        uid: str = "",
        ifname: str = "eth0",
    ) -> None:
        """Make a row: a new one, or of the run before, with what its file and the kernel say."""
        device = f"lxc{number}"
        row = Endpoint(
            id=number,
            attachment=Attachment("cilia", f"{name}-{uid}", ifname),
            namespace="test",
            pod=name,
            pod_uid=uid,
            ipv4=IP.parse(f"10.{self.address.rpartition('.')[2]}.0.{number}"),
            device=device,
            index=number,
            node_mac=bytes(6),
            mac=bytes(6),
            created_at=time.time(),
            state=EndpointState.WAITING_FOR_IDENTITY,
            labels=in_force[0],
            identity=in_force[1],
        )
        with self.db.write_txn(self.endpoints, self.devices) as wtxn:
            self.devices.insert(wtxn, Device(number, device))
            self.endpoints.insert(wtxn, row)

    def label(self, name: str, app: str, uid: str = "") -> None:
        with self.db.write_txn(self.pods) as wtxn:
            held = self.pods.get(wtxn, f"test/{name}")
            uid = uid or (held.uid if held is not None else "")
            self.pods.insert(wtxn, Pod("test", name, uid=uid, labels={"app": app}))

    def remove(self, name: str) -> None:
        self.remove_pod(name)
        self.remove_endpoint(name)

    def remove_pod(self, name: str) -> None:
        """Take the object of a pod away."""
        with self.db.write_txn(self.pods) as wtxn:
            self.pods.delete_key(wtxn, f"test/{name}")

    def remove_endpoint(self, name: str, uid: str = "") -> None:
        """Take the endpoint of a pod away, as the runtime asks for."""
        with self.db.write_txn(self.endpoints) as wtxn:
            self.endpoints.delete(wtxn, self.endpoint(name, wtxn, uid))

    # -- what is in force --

    def endpoint(self, name: str, txn: ReadTxn | None = None, uid: str = "") -> Endpoint:
        rows = self.endpoints.all(txn or self.db.read_txn())
        (found,) = [ep for ep in rows if ep.pod == name and uid in ("", ep.pod_uid)]
        return found

    def identity_of(self, name: str) -> int:
        return self.endpoint(name).identity

    def used(self) -> set[int]:
        """Identities that are in force, also of pods of one name."""
        return {ep.identity for ep in self.endpoints.all(self.db.read_txn()) if ep.identity}

    def in_force(self) -> InForce:
        rows = self.endpoints.all(self.db.read_txn())
        return {ep.pod: (ep.labels, ep.identity) for ep in rows}

    def successor(self, shared: SharedObjects | None, *, has_files: bool = True) -> Node:
        """The next run: it knows the numbers from the kernel, and their labels from the files."""
        node = type(self)(shared, self.address)
        node._numbers = self._numbers
        for ep in self.endpoints.all(self.db.read_txn()):
            in_force = (ep.labels if has_files else (), ep.identity)
            node.insert(ep.pod, ep.id, in_force, ep.pod_uid)
        with node.db.write_txn(node.pods) as wtxn:
            node.pods.insert_many(wtxn, list(self.pods.all(self.db.read_txn())))
        return node

    async def until(self, condition: Callable[[], bool], wait_s: float = 8.0) -> None:
        """Wait until something is true, which follows from a table."""
        with anyio.fail_after(wait_s * PATIENCE):
            while True:
                txn = self.db.read_txn()
                tables: list[RWTable[Any]] = [
                    *(self.endpoints, self.identity.identities, self.identity.desired)
                ]
                if self.k8s is not None:
                    tables += [self.k8s.objects, self.k8s.desired]
                channels = [table.all_watch(txn)[1] for table in tables]
                if condition():
                    return
                await wait_any(channels)


class _KernelThatTakesAll:
    """Operations of a kernel in which everything is in force at once."""

    def update(self, txn: ReadTxn, revision: int, obj: Any) -> None:
        return None

    def delete(self, txn: ReadTxn, revision: int, obj: Any) -> None:
        return None

    def prune(self, txn: ReadTxn, objects: Iterable[Any]) -> None:
        return None


class Faulty:
    """A writer that is away, or whose answers get lost after the write: those that `loses` says."""

    def __init__(self, writer: ObjectWriter, loses: Callable[[], bool] = lambda: False) -> None:
        self.away = False
        #: Method and path of each write that was carried out.
        self.writes: list[tuple[str, str]] = []
        self._writer = writer
        self._loses = loses

    async def fetch(self, path: str) -> bytes:
        self._reach()
        return await self._writer.fetch(path)

    async def create(self, path: str, form: Form) -> Form:
        self._reach()
        return self._answer("create", path, await self._writer.create(path, form))

    async def replace(self, path: str, form: Form) -> Form:
        self._reach()
        return self._answer("replace", path, await self._writer.replace(path, form))

    async def delete(self, path: str, uid: str, options: Form, version: str = "") -> Form:
        self._reach()
        form = await self._writer.delete(path, uid, options, version)
        return self._answer("delete", path, form)

    def _reach(self) -> None:
        if self.away:
            raise Unreachable("the API server is away")

    def _answer(self, method: str, path: str, form: Form) -> Form:
        self.writes.append((method, path))
        if self._loses():
            raise ConnectionLost("the answer was lost")
        return form


def guess_alike(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """Have all nodes try the same numbers in the same order, so that they meet."""

    def allocator(*given: Any) -> IdentityAllocator:
        return IdentityAllocator(*given, rng=random.Random(seed), seen_wait_s=0.5)

    monkeypatch.setattr(wiring, "IdentityAllocator", allocator)


class _Late:
    """A source whose events are read late."""

    def __init__(self, source: Source, late_s: float) -> None:
        self._source, self._late_s = source, late_s

    async def watch(self, *kinds: type[K8sObject]) -> AsyncIterator[list[Event]]:
        async for events in self._source.watch(*kinds):
            await anyio.sleep(self._late_s)
            yield events


class Cluster:
    """Nodes that share a directory of objects; `node` starts another one."""

    def __init__(self, directory: Path, group: TaskGroup) -> None:
        self.files = ObjectFiles(directory)
        self._directory = directory
        self._group = group
        self._nodes = 0

    def node(
        self,
        writer: ObjectWriter | None = None,
        before: Node | None = None,
        *,
        has_files: bool = True,
        late_s: float = 0.0,
    ) -> Node:
        """A node; `before`: it is the next run of that one, which is killed.

        `late_s`: it sees what happens to objects so much later.
        """
        source = object_files_source(self._directory, CiliumIdentity, CiliumEndpoint)
        shared = SharedObjects(_Late(source, late_s), writer or self.files)
        if before is None:
            self._nodes += 1
            node = Node(shared, f"192.0.2.{self._nodes}")
        else:
            before.stop()
            node = before.successor(shared, has_files=has_files)
        self._group.start_soon(self._run, node, source.run)
        return node

    @staticmethod
    async def _run(node: Node, read: Callable[[], Coroutine[Any, Any, None]]) -> None:
        with node.scope:
            async with anyio.create_task_group() as group:
                group.start_soon(read)
                group.start_soon(node.run)

    async def until(self, condition: Callable[[], bool], wait_s: float = 8.0) -> None:
        """Wait until something is true of the objects."""
        with PathWatch([self._directory], [self._directory]) as watch:
            with anyio.fail_after(wait_s * PATIENCE):
                while not condition():
                    await watch.wait(LOOK_AGAIN_S)

    def objects(self) -> dict[int, Form]:
        """All identities, as they are on the disk."""
        return {int(name): form for name, form in self._forms(CiliumIdentity).items()}

    def endpoints(self) -> dict[str, Form]:
        """All CiliumEndpoints by their names, as they are on the disk."""
        return self._forms(CiliumEndpoint)

    def _forms(self, kind: type[K8sObject]) -> dict[str, Form]:
        paths = self._directory.glob(f"{kind.RESOURCE}.*.json")
        forms = [json.loads(path.read_text()) for path in paths]
        return {form["metadata"]["name"]: form for form in forms}


@asynccontextmanager
async def cluster(directory: Path) -> AsyncIterator[Cluster]:
    """Nodes end with the block."""
    async with anyio.create_task_group() as group:
        yield Cluster(directory, group)
        group.cancel_scope.cancel()
