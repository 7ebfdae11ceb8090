# SPDX-License-Identifier: Apache-2.0
"""CiliumEndpoints whose pod is gone are deleted at the second look."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from cilia.endpoints.k8s_endpoints.collection import EndpointCollector, is_orphan
from cilia.endpoints.k8s_endpoints.objects import EndpointObjects
from cilia.endpoints.k8s_endpoints.reflector import convert_endpoint
from cilia.k8s.crds import CiliumEndpoint
from cilia.k8s.object_files import ObjectFiles
from cilia.k8s.object_writer import Form, object_path
from cilia.k8s.objects import decode
from statedb import DB
from tables.cluster.pods import Pod, new_pods_table
from tables.endpoints.k8s_endpoints import IDENTITY, K8sEndpoint, new_k8s_endpoints_table
from tables.problems import Problem, new_problems_table
from tests.cilia.identity.ipcache.world import remote

POD = Pod("test", "web", uid="u-web", phase="Running")


@pytest.mark.parametrize(
    ("pod", "orphan"),
    [
        (POD, False),
        (None, True),
        (msgspec.structs.replace(POD, uid="another"), True),
        (msgspec.structs.replace(POD, phase="Succeeded"), True),
        (msgspec.structs.replace(POD, phase="Failed"), True),
        (msgspec.structs.replace(POD, phase="Pending"), False),
    ],
)
def test_an_object_is_an_orphan_without_its_pod(pod: Pod | None, *, orphan: bool) -> None:
    assert is_orphan(remote("web", "10.2.0.7", at="192.0.2.2"), pod) is orphan


def test_an_object_that_names_no_owner_goes_by_the_name() -> None:
    obj = msgspec.structs.replace(remote("web", "10.2.0.7", at="192.0.2.2"), pod_uid="")
    assert not is_orphan(obj, POD)


class World:
    """A collector over files; the tables are what its reflectors would make of them."""

    def __init__(self, directory: Path) -> None:
        self.db = DB()
        self.files = ObjectFiles(directory)
        self.objects = new_k8s_endpoints_table(self.db, IDENTITY)
        self.pods = new_pods_table(self.db)
        self.problems = new_problems_table(self.db)
        self.unread: list[str] = []
        edge = EndpointObjects(self.objects, self.files)
        self.collector = EndpointCollector(
            self.db, self.objects, self.pods, self.problems, lambda txn: self.unread, edge
        )

    async def make(self) -> K8sEndpoint:
        form: Form = {
            "apiVersion": "cilium.io/v2",
            "kind": "CiliumEndpoint",
            "metadata": {"name": "web", "namespace": "test"},
            "status": {"networking": {"addressing": []}},
        }
        return self._read(await self.files.create(self.path, form))

    async def rewrite(self, *, is_seen: bool) -> None:
        """Somebody writes the object, which is read at once or late."""
        form = msgspec.json.decode(await self.files.fetch(self.path))
        form["status"]["id"] = 8
        form = await self.files.replace(self.path, form)
        if is_seen:
            self._read(form)

    def _read(self, form: Form) -> K8sEndpoint:
        obj = decode(form)
        assert isinstance(obj, CiliumEndpoint)
        row = convert_endpoint(obj)
        with self.db.write_txn(self.objects) as wtxn:
            self.objects.insert(wtxn, row)
        return row

    @property
    def path(self) -> str:
        return object_path(CiliumEndpoint, "web", "test")

    @property
    def is_there(self) -> bool:
        return any(self.files.directory.iterdir())

    async def deleted(self) -> int:
        return (await self.collector.collect()).outcomes.get("deleted", 0)


async def test_an_orphan_goes_at_the_second_look(tmp_path: Path) -> None:
    world = World(tmp_path)
    await world.make()
    assert await world.deleted() == 0 and world.is_there
    assert await world.deleted() == 1 and not world.is_there


async def test_an_object_that_is_written_between_two_looks_is_looked_at_again(
    tmp_path: Path,
) -> None:
    world = World(tmp_path)
    await world.make()
    for _ in range(3):
        assert await world.deleted() == 0
        await world.rewrite(is_seen=True)
    assert await world.deleted() == 0
    await world.rewrite(is_seen=False)
    assert await world.deleted() == 0 and world.is_there, "it was written, and that is not read yet"


async def test_a_pod_that_is_read_late_keeps_its_object(tmp_path: Path) -> None:
    world = World(tmp_path)
    await world.make()
    assert await world.deleted() == 0
    with world.db.write_txn(world.pods) as wtxn:
        world.pods.insert(wtxn, POD)
    assert await world.deleted() == 0 and world.is_there


async def test_the_object_of_a_pod_that_cannot_be_read_stays(tmp_path: Path) -> None:
    world = World(tmp_path)
    await world.make()
    problem = Problem("api:Pod:test/web", "is wrong", "", 0, "Pod", "test", "web", "spec")
    with world.db.write_txn(world.problems) as wtxn:
        world.problems.insert(wtxn, problem)
    for _ in range(3):
        assert await world.deleted() == 0
    with world.db.write_txn(world.problems) as wtxn:
        world.problems.delete(wtxn, problem)
    assert await world.deleted() == 0
    assert await world.deleted() == 1


async def test_nothing_goes_while_something_is_not_read_whole(tmp_path: Path) -> None:
    world = World(tmp_path)
    await world.make()
    await world.deleted()
    world.unread = ["k8s-pods"]
    assert (await world.collector.collect()).unread == ["k8s-pods"] and world.is_there
    world.unread = []
    assert await world.deleted() == 1
