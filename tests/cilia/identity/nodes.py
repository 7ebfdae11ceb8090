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
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio.abc import TaskGroup

from cilia.endpoints.controller import OWNER, EndpointsController
from cilia.endpoints.known import Known
from cilia.endpoints.registry import Registry
from cilia.identity import wiring
from cilia.identity.allocation import IdentityAllocator
from cilia.identity.desired import Claim
from cilia.ipam.allocator import Allocator
from cilia.ipam.options import IPAMOptions
from cilia.ipam.pools import NodePools
from cilia.k8s.crds.identities import CiliumIdentity
from cilia.k8s.errors import ConnectionLost, Unreachable
from cilia.k8s.object_files import ObjectFiles, object_files_source
from cilia.k8s.object_writer import Form, ObjectWriter, SharedObjects
from cilia.k8s.objects import K8sObject
from cilia.k8s.watch import Event, Source
from cilia.linux.path_watch import PathWatch
from statedb import DB, ReadTxn, wait_any
from tables.cluster.namespaces import new_namespaces_table
from tables.cluster.nodes import new_nodes_table
from tables.cluster.pods import Pod, new_pods_table
from tables.datapath.attachments import new_attachments_table
from tables.endpoints.endpoints import (
    Attachment,
    Endpoint,
    EndpointState,
    new_endpoints_table,
)
from tables.ipam.ip_allocations import new_ip_allocations_table
from tables.node.desired_routes import new_desired_routes_table
from tables.node.devices import new_devices_table
from tests.context import new_context
from tests.patience import PATIENCE

#: Conditions may be about nodes, too.
LOOK_AGAIN_S = 0.1

#: Endpoint number, labels and identity that are in force.
InForce = dict[str, tuple[tuple[str, ...], int]]


class Node:
    """One agent's part. `run` it in a task group; `stop` it as a kill does."""

    def __init__(self, shared: SharedObjects | None) -> None:
        self.ctx = dataclasses.replace(new_context(), shared=shared)
        self.db: DB = self.ctx.db
        self.identity = wiring.build(self.ctx)
        self.endpoints = new_endpoints_table(self.db)
        self.pods = new_pods_table(self.db)
        attachments, routes = new_attachments_table(self.db), new_desired_routes_table(self.db)
        devices, allocations = new_devices_table(self.db), new_ip_allocations_table(self.db)
        self.controller = EndpointsController(
            self.db,
            self.endpoints,
            self.identity.owned_by(OWNER),
            self.pods,
            new_namespaces_table(self.db),
            attachments,
            routes,
            devices,
            Path("/nowhere"),
        )
        self.registry = Registry(
            self.db,
            self.endpoints,
            allocations,
            Allocator(allocations),
            NodePools(IPAMOptions(), new_nodes_table(self.db), devices, frozenset(), frozenset()),
            self.controller,
        )
        self._known = Known(self.db, OWNER, attachments, routes, self.identity.desired)
        self.scope = anyio.CancelScope()
        self._numbers = 0

    async def run(self) -> None:
        """Run all jobs until cancelled."""
        async with anyio.create_task_group() as group:
            self.controller.step()
            self._known.say()
            self.ctx.start(group, self.identity.jobs)
            self.ctx.start(group, {"endpoints": self.controller.run})

    def stop(self) -> None:
        self.scope.cancel()

    # -- pods --

    def add(self, name: str, app: str) -> None:
        """Make a pod, and the endpoint that the runtime asks for."""
        self.label(name, app)
        self._numbers += 1
        self.insert(name, self._numbers)

    def insert(self, name: str, number: int, in_force: Claim = ((), 0)) -> None:
        """Make a row: a new one, or of the run before, with what its file and the kernel say."""
        row = Endpoint(
            id=number,
            attachment=Attachment("cilia", name, "eth0"),
            namespace="test",
            pod=name,
            device=f"lxc{name}",
            node_mac=bytes(6),
            mac=bytes(6),
            created_at=time.time(),
            state=EndpointState.WAITING_FOR_IDENTITY,
            labels=in_force[0],
            identity=in_force[1],
        )
        with self.db.write_txn(self.endpoints) as wtxn:
            self.endpoints.insert(wtxn, row)

    def label(self, name: str, app: str) -> None:
        with self.db.write_txn(self.pods) as wtxn:
            self.pods.insert(wtxn, Pod("test", name, labels={"app": app}))

    def remove(self, name: str) -> None:
        with self.db.write_txn(self.endpoints, self.pods) as wtxn:
            self.endpoints.delete(wtxn, self.endpoint(name, wtxn))
            self.pods.delete_key(wtxn, f"test/{name}")

    # -- what is in force --

    def endpoint(self, name: str, txn: ReadTxn | None = None) -> Endpoint:
        (found,) = [ep for ep in self.endpoints.all(txn or self.db.read_txn()) if ep.pod == name]
        return found

    def identity_of(self, name: str) -> int:
        return self.endpoint(name).identity

    def in_force(self) -> InForce:
        rows = self.endpoints.all(self.db.read_txn())
        return {ep.pod: (ep.labels, ep.identity) for ep in rows}

    def successor(self, shared: SharedObjects | None, *, has_files: bool = True) -> Node:
        """The next run: it knows the numbers from the kernel, and their labels from the files."""
        node = Node(shared)
        node._numbers = self._numbers
        for ep in self.endpoints.all(self.db.read_txn()):
            node.insert(ep.pod, ep.id, (ep.labels if has_files else (), ep.identity))
        with node.db.write_txn(node.pods) as wtxn:
            node.pods.insert_many(wtxn, list(self.pods.all(self.db.read_txn())))
        return node

    async def until(self, condition: Callable[[], bool], wait_s: float = 8.0) -> None:
        """Wait until something is true, which follows from a table."""
        with anyio.fail_after(wait_s * PATIENCE):
            while True:
                txn = self.db.read_txn()
                tables = (self.endpoints, self.identity.identities, self.identity.desired)
                channels = [table.all_watch(txn)[1] for table in tables]
                if condition():
                    return
                await wait_any(channels)


class Faulty:
    """A writer that is away, or whose answers get lost after the write: those that `loses` says."""

    def __init__(self, writer: ObjectWriter, loses: Callable[[], bool] = lambda: False) -> None:
        self.away = False
        self.writes = 0
        self._writer = writer
        self._loses = loses

    async def fetch(self, path: str) -> bytes:
        self._reach()
        return await self._writer.fetch(path)

    async def create(self, path: str, form: Form) -> Form:
        self._reach()
        return self._answer(await self._writer.create(path, form))

    async def replace(self, path: str, form: Form) -> Form:
        self._reach()
        return self._answer(await self._writer.replace(path, form))

    async def delete(self, path: str, uid: str, options: Form, version: str = "") -> Form:
        self._reach()
        return self._answer(await self._writer.delete(path, uid, options, version))

    def _reach(self) -> None:
        if self.away:
            raise Unreachable("the API server is away")

    def _answer(self, form: Form) -> Form:
        self.writes += 1
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
        source = object_files_source(self._directory, CiliumIdentity)
        shared = SharedObjects(_Late(source, late_s), writer or self.files)
        if before is None:
            node = Node(shared)
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
        """All that there are, as they are on the disk."""
        forms = [json.loads(path.read_text()) for path in self._directory.glob("[!.]*.json")]
        return {int(form["metadata"]["name"]): form for form in forms}


@asynccontextmanager
async def cluster(directory: Path) -> AsyncIterator[Cluster]:
    """Nodes end with the block."""
    async with anyio.create_task_group() as group:
        yield Cluster(directory, group)
        group.cancel_scope.cancel()
