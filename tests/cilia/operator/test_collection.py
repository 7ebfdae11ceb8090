# SPDX-License-Identifier: Apache-2.0
"""An operator collects what agents do not use any more, and nothing else, whatever happens."""

from __future__ import annotations

import itertools
import random
from collections.abc import Awaitable, Callable
from pathlib import Path

import anyio
import pytest
from anyio.abc import TaskGroup

from cilia.k8s import directory_files
from cilia.k8s.crds.identities import HEARTBEAT
from cilia.k8s.object_writer import Form, ObjectWriter
from statedb import wait_any
from tests.cilia.endpoints.k8s_endpoints.test_objects import written
from tests.cilia.identity.nodes import Cluster, Faulty, Node, cluster
from tests.cilia.identity.test_shared import given, labels_of, make
from tests.cilia.operator.collecting import MINUTE, ApiPods, Operator
from tests.patience import PATIENCE

pytestmark = pytest.mark.timeout(90)

APPS = [f"app{number}" for number in range(6)]


@pytest.fixture(autouse=True)
def deletions_are_seen_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of objects that goes may come back, which is waited for a second."""
    monkeypatch.setattr(directory_files, "GRACE_S", 0.05)


class World:
    """Nodes, their pods as the API server has them, an operator, and the time."""

    def __init__(self, c: Cluster, directory: Path, group: TaskGroup, writer: ObjectWriter) -> None:
        self.cluster = c
        self.pods = ApiPods()
        self.now = 0.0
        self._directory, self._group, self._writer = directory, group, writer
        self.operator = self._lead()

    def _lead(self) -> Operator:
        return Operator(self._directory, self.pods, self._writer, lambda: self.now, self._group)

    def fail_over(self) -> None:
        self.operator.stop()
        self.operator = self._lead()

    async def later(self, minutes: float) -> dict[str, int]:
        """Look after some time, once the operator knows the objects that there are."""
        self.now += minutes * MINUTE
        await self.caught_up()
        return await self.operator.look()

    async def caught_up(self) -> None:
        """Wait until the operator knows what is on the disk, and the pods."""
        collection = self.operator.collection
        with anyio.fail_after(10 * PATIENCE):
            while True:
                txn = collection.db.read_txn()
                identities, changed = collection.identities.all_watch(txn)
                endpoints, also_changed = collection.endpoints.all_watch(txn)
                pods, pods_changed = collection.pods.all_watch(txn)
                known = {row.id: row.is_marked for row in identities}
                uids = {row.name: row.uid for row in endpoints}
                there = {row.name: (row.labels["app"], row.uid) for row in pods}
                if (known, uids, there) == (self.marks(), self.uids(), self.pods.there):
                    return
                with anyio.move_on_after(0.05):  # the disk may change too
                    await wait_any([changed, also_changed, pods_changed])

    def marks(self) -> dict[int, bool]:
        """Identities on the disk, and which of them are marked."""
        return {
            number: HEARTBEAT in (form["metadata"].get("annotations") or {})
            for number, form in self.cluster.objects().items()
        }

    def uids(self) -> dict[str, str]:
        return {name: form["metadata"]["uid"] for name, form in self.cluster.endpoints().items()}


async def test_an_identity_goes_once_nobody_uses_it(tmp_path: Path) -> None:
    async with cluster(tmp_path) as c, anyio.create_task_group() as group:
        w = World(c, tmp_path, group, c.files)
        node = c.node()
        w.pods.put("a", "web", "u1")
        node.add("a", "web", "u1")
        number = await given(node, "a")
        await written(node, "a")
        for _ in range(4):
            assert (await w.later(30))["identity-gc/alive"] == 1
        w.pods.put("a", "changed", "u1")  # which its agent reads late
        for _ in range(4):
            assert (await w.later(30))["identity-gc/alive"] == 1
        node.remove("a")
        w.pods.remove("a")
        await c.until(lambda: "a" not in c.endpoints())
        assert (await w.later(15))["identity-gc/marked"] == 0
        assert (await w.later(15))["identity-gc/marked"] == 1
        assert w.marks() == {number: True}
        assert (await w.later(15))["identity-gc/deleted"] == 1
        assert w.marks() == {}
        group.cancel_scope.cancel()


async def test_a_mark_on_an_identity_in_use_is_taken_away_in_time(tmp_path: Path) -> None:
    """The agent takes an identity that it knows without a word, when nothing tells of it."""
    async with cluster(tmp_path) as c, anyio.create_task_group() as group:
        w = World(c, tmp_path, group, c.files)
        await make(c, 300, "web")
        await w.later(0)
        assert (await w.later(30))["identity-gc/marked"] == 1
        node = c.node()
        node.add("a", "web", "u1")
        assert await given(node, "a") == 300
        uid = c.objects()[300]["metadata"]["uid"]
        for _ in range(5):
            # The interval between mark and deletion is the agent's time.
            await c.until(lambda: w.marks() == {300: False})
            assert (await w.later(15)).get("identity-gc/deleted") == 0
        assert c.objects()[300]["metadata"]["uid"] == uid
        group.cancel_scope.cancel()


async def test_the_labels_of_a_pod_keep_an_identity_that_its_agent_cannot_speak_for(
    tmp_path: Path,
) -> None:
    async with cluster(tmp_path) as c, anyio.create_task_group() as group:
        w = World(c, tmp_path, group, c.files)
        await make(c, 300, "web")
        away = Faulty(c.files)
        away.away = True
        node = c.node(away)
        w.pods.put("a", "web", "u1")
        node.add("a", "web", "u1")
        assert await given(node, "a") == 300
        for _ in range(10):
            assert (await w.later(15))["identity-gc/alive"] == 1
        assert w.marks() == {300: False}
        group.cancel_scope.cancel()


async def test_of_two_numbers_for_one_set_the_unused_one_goes(tmp_path: Path) -> None:
    """Two nodes made them at the same time; pods go on to have the labels."""
    async with cluster(tmp_path) as c, anyio.create_task_group() as group:
        w = World(c, tmp_path, group, c.files)
        for number in (300, 301):
            await make(c, number, "web")
        w.pods.put("a", "web", "u1")
        await w.later(0)
        for _ in range(3):
            await w.later(15)
        assert list(w.marks()) == [300]
        group.cancel_scope.cancel()


async def test_a_new_leader_starts_the_clock_anew(tmp_path: Path) -> None:
    async with cluster(tmp_path) as c, anyio.create_task_group() as group:
        w = World(c, tmp_path, group, c.files)
        await make(c, 300, "web")
        await w.later(0)
        assert (await w.later(30))["identity-gc/marked"] == 1
        w.fail_over()
        for minutes in (15, 15, 0):
            assert (await w.later(minutes))["identity-gc/deleted"] == 0
        await w.later(15)
        await w.later(15)
        assert w.marks() == {}
        group.cancel_scope.cancel()


class Careful:
    """A writer of an operator that deletes no identity which a node uses. Answers get lost."""

    def __init__(self, writer: ObjectWriter, model: Model) -> None:
        self._writer, self._model = Faulty(writer, model.loses), model

    async def fetch(self, path: str) -> bytes:
        return await self._writer.fetch(path)

    async def create(self, path: str, form: Form) -> Form:
        raise AssertionError("an operator makes no object here")

    async def replace(self, path: str, form: Form) -> Form:
        return await self._writer.replace(path, form)

    async def delete(self, path: str, uid: str, options: Form, version: str = "") -> Form:
        assert version, "every deletion names a version"
        kind, name = path.split("/")[-2:]
        if kind == "ciliumidentities":
            self._model.check_unused(int(name))
        return await self._writer.delete(path, uid, options, version)


class Model:
    """Three nodes whose pods come, go, move and change, and what there is to be at the end."""

    def __init__(self, c: Cluster, directory: Path, group: TaskGroup, rng: random.Random) -> None:
        self.rng = rng
        self.is_rough = True
        self.writers = [Faulty(c.files, self.loses) for _ in range(3)]
        self.nodes: list[Node] = [c.node(writer) for writer in self.writers]
        self.w = World(c, directory, group, Careful(c.files, self))
        # Node, labels and uid of the pods that the API server has, by name.
        self.pods: dict[str, tuple[int, str, str]] = {}
        # Name, node and uid of endpoints whose pod the API server does not have any more.
        self.late: list[tuple[str, int, str]] = []
        self._names, self._uids = itertools.count(), itertools.count()

    def loses(self) -> bool:
        return self.is_rough and self.rng.random() < 0.2

    def check_unused(self, number: int) -> None:
        for node, writer in zip(self.nodes, self.writers, strict=True):
            if not writer.away:
                assert number not in node.used()

    # -- steps --

    def _add(self, name: str, at: int) -> None:
        app, uid = self.rng.choice(APPS), f"u{next(self._uids)}"
        self.pods[name] = (at, app, uid)
        self.w.pods.put(name, app, uid)
        self.nodes[at].add(name, app, uid)

    async def add(self) -> None:
        self._add(f"pod{next(self._names)}", self.rng.randrange(3))

    def _end(self, name: str) -> int:
        """The API server has a pod no more; its container runs on for a while."""
        at, _, uid = self.pods.pop(name)
        self.w.pods.remove(name)
        self.nodes[at].remove_pod(name)
        self.late.append((name, at, uid))
        return at

    async def remove(self) -> None:
        if self.pods:
            self._end(self.rng.choice(sorted(self.pods)))

    async def move(self) -> None:
        """A pod of a StatefulSet comes to another node."""
        if self.pods:
            name = self.rng.choice(sorted(self.pods))
            at = self._end(name)
            self._add(name, (at + 1) % 3)

    async def finish(self) -> None:
        """The runtime deletes a container of a pod that is gone."""
        if self.late:
            name, at, uid = self.late.pop(self.rng.randrange(len(self.late)))
            self.nodes[at].remove_endpoint(name, uid)

    async def relabel(self) -> None:
        if self.pods:
            name, app = self.rng.choice(sorted(self.pods)), self.rng.choice(APPS)
            at, _, uid = self.pods[name]
            self.pods[name] = (at, app, uid)
            self.w.pods.put(name, app, uid)
            self.nodes[at].label(name, app)

    async def outage(self) -> None:
        writer = self.rng.choice(self.writers)
        writer.away = not writer.away

    async def kill(self) -> None:
        at = self.rng.randrange(3)
        self.nodes[at] = self.w.cluster.node(self.writers[at], before=self.nodes[at])

    async def look(self) -> None:
        await self.protected()
        await self.w.later(self.rng.choice((5, 15, 30)))

    async def fail_over(self) -> None:
        self.w.fail_over()

    def steps(self) -> list[Callable[[], Awaitable[None]]]:
        often = [self.add, self.add, self.move, self.remove, self.finish, self.relabel, self.look]
        return [*often, *often, self.outage, self.kill, self.fail_over]

    # -- what is so in the end --

    async def protected(self) -> None:
        """Wait until agents that can write have taken marks away: an interval is long for them."""
        for node, writer in zip(self.nodes, self.writers, strict=True):
            if not writer.away:
                await node.until(lambda node=node: not self._marked_in_use(node), 15)  # type: ignore[misc]

    def _marked_in_use(self, node: Node) -> set[int]:
        marks = self.w.marks()
        return {number for number in node.used() if marks.get(number, True)}

    async def settle(self) -> None:
        self.is_rough = False
        for writer in self.writers:
            writer.away = False
        while self.late:
            await self.finish()
        for name, (at, app, _) in self.pods.items():
            node = self.nodes[at]
            await node.until(lambda: node.endpoint(name).labels == labels_of(app), 15)  # noqa: B023
            await written(node, name)
        await self.w.cluster.until(lambda: set(self.w.uids()) == set(self.pods), 15)

    def used(self) -> set[int]:
        return {number for node in self.nodes for number in node.used()}

    def for_new_pods(self) -> set[int]:
        """The number for each set of labels that new pods get: the oldest."""
        numbers: dict[str, tuple[str, int]] = {}
        for number, form in self.w.cluster.objects().items():
            age = (form["metadata"]["creationTimestamp"], number)
            app = form["security-labels"]["k8s:app"]
            numbers[app] = min(numbers.get(app, age), age)
        return {number for _, number in numbers.values()}


@pytest.mark.parametrize("seed", [1, 2])
async def test_what_is_used_stays_and_what_is_not_goes(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    async with cluster(tmp_path) as c, anyio.create_task_group() as group:
        model = Model(c, tmp_path, group, rng)
        for _ in range(30):
            await rng.choice(model.steps())()
            await anyio.sleep(rng.uniform(0, 0.02))  # the moment of the next step
        await model.settle()
        uids = {name: form["metadata"]["uid"] for name, form in c.endpoints().items()}
        for _ in range(4):  # two timeouts
            await model.protected()
            await model.w.later(15)
        assert set(c.objects()) == model.used() | model.for_new_pods()
        labels = {form["security-labels"]["k8s:app"] for form in c.objects().values()}
        assert labels == {app for _, app, _ in model.pods.values()}
        assert {name: f["metadata"]["uid"] for name, f in c.endpoints().items()} == uids
        group.cancel_scope.cancel()
