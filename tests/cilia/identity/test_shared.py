# SPDX-License-Identifier: Apache-2.0
"""Nodes agree on the numbers of labels, by objects that they share."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import anyio
import pytest

from cilia.endpoints.controller import EndpointsController
from cilia.k8s.crds.identities import HEARTBEAT, CiliumIdentity, identity_form
from cilia.k8s.errors import StatusError
from cilia.k8s.object_writer import Form, object_path
from tests.cilia.identity.nodes import Cluster, Faulty, Node, cluster, guess_alike

pytestmark = [pytest.mark.timeout(30), pytest.mark.usefixtures("short_grace")]


def labels_of(app: str) -> tuple[str, ...]:
    return (
        f"k8s:app={app}",
        "k8s:io.cilium.k8s.policy.cluster=default",
        "k8s:io.cilium.k8s.policy.serviceaccount=default",
        "k8s:io.kubernetes.pod.namespace=test",
    )


def path_of(number: int) -> str:
    return object_path(CiliumIdentity, str(number))


async def make(c: Cluster, number: int, app: str, *, marked: bool = False) -> Form:
    form = identity_form(number, labels_of(app))
    if marked:
        form["metadata"]["annotations"] = {HEARTBEAT: "2026-11-30T12:00:00Z", "kept": "yes"}
    return await c.files.create(path_of(number), form)


async def delete(c: Cluster, number: int) -> None:
    """Delete an object, as a person does."""
    form = json.loads(await c.files.fetch(path_of(number)))
    await c.files.delete(path_of(number), form["metadata"]["uid"], {})


async def given(node: Node, name: str) -> int:
    """The number of an endpoint, once it has one."""
    await node.until(lambda: node.identity_of(name) != 0)
    return node.identity_of(name)


def knows(node: Node, number: int) -> bool:
    """The node has seen the object of an identity."""
    return node.db.look(lambda txn: node.identity.identities.get(txn, number)) is not None


def reason(node: Node, name: str) -> str:
    """Why an endpoint is not ready, as a request to add it is told."""
    controller: EndpointsController = node.controller
    return node.db.look(lambda txn: controller.waits_for(txn, node.endpoint(name)))


async def test_equal_labels_have_one_number_on_all_nodes(tmp_path: Path) -> None:
    async with cluster(tmp_path) as c:
        one, two = c.node(), c.node()
        one.add("a", "web")
        number = await given(one, "a")
        await two.until(lambda: knows(two, number))  # at the same moment each may make one
        two.add("b", "web")
        two.add("c", "db")
        assert await given(two, "b") == number
        assert await given(two, "c") != number
        objects = c.objects()
        assert sorted(objects) == sorted({number, two.identity_of("c")})
        assert objects[number]["security-labels"] == {
            "k8s:app": "web",
            "k8s:io.cilium.k8s.policy.cluster": "default",
            "k8s:io.cilium.k8s.policy.serviceaccount": "default",
            "k8s:io.kubernetes.pod.namespace": "test",
        }
        assert objects[number]["metadata"]["labels"] == {"io.kubernetes.pod.namespace": "test"}


async def test_without_the_server_known_labels_go_on_and_new_ones_wait(tmp_path: Path) -> None:
    async with cluster(tmp_path) as c:
        faulty = Faulty(c.files)
        node = c.node(faulty)
        node.add("a", "web")
        number = await given(node, "a")
        faulty.away = True
        node.add("b", "web")
        assert await given(node, "b") == number
        node.add("c", "db")
        await node.until(lambda: "the API server is away" in reason(node, "c"))
        assert reason(node, "c").startswith("its labels have no identity yet: ")
        (row,) = node.ctx.health.prefix(node.db.read_txn(), "identity.")
        assert "the API server is away" in row.error
        node.label("a", "cache")
        await node.until(lambda: len(list(node.identity.desired.all(node.db.read_txn()))) == 3)
        assert node.endpoint("a").labels == labels_of("web")
        faulty.away = False
        await given(node, "c")
        await node.until(lambda: node.endpoint("a").labels == labels_of("cache"))
        assert node.identity_of("a") != number
        assert node.identity_of("b") == number


async def test_a_request_to_add_is_told_why_it_cannot_be(tmp_path: Path) -> None:
    async with cluster(tmp_path) as c:
        faulty = Faulty(c.files)
        faulty.away = True
        node = c.node(faulty)
        node.add("a", "web")
        told = await node.registry.wait_ready(node.endpoint("a").id, 0.5)
        assert told == "its labels have no identity yet: the API server is away"


async def test_an_object_in_use_that_is_deleted_is_made_again(tmp_path: Path) -> None:
    async with cluster(tmp_path) as c:
        node = c.node()
        node.add("a", "web")
        number = await given(node, "a")
        with node.db.write_txn(node.identity.identities) as wtxn:
            changes = node.identity.identities.changes(wtxn)
        await delete(c, number)
        await c.until(lambda: number in c.objects())
        assert c.objects()[number]["security-labels"]["k8s:app"] == "web"
        found, _ = changes.next(node.db.read_txn())
        assert not [change for change in found if change.deleted], "it was known all the time"
        assert node.identity_of("a") == number


async def test_a_mark_is_taken_away_before_a_number_is_used(tmp_path: Path) -> None:
    async with cluster(tmp_path) as c:
        await make(c, 300, "web", marked=True)
        faulty = Faulty(c.files)
        faulty.away = True
        node = c.node(faulty)
        node.add("a", "web")
        await node.until(lambda: "away" in reason(node, "a"))
        assert node.identity_of("a") == 0
        faulty.away = False
        assert await given(node, "a") == 300
        assert c.objects()[300]["metadata"]["annotations"] == {"kept": "yes"}


async def test_of_two_numbers_the_older_one_is_taken(tmp_path: Path) -> None:
    async with cluster(tmp_path) as c:
        for number, second in ((400, 2), (300, 1), (500, 1)):
            form = await make(c, number, "web")
            path = tmp_path / f"ciliumidentities.cilium.io_{number}.json"
            form["metadata"]["creationTimestamp"] = f"2026-11-30T12:00:0{second}Z"
            path.write_text(json.dumps(form))
        node = c.node()
        node.add("a", "web")
        assert await given(node, "a") == 300


async def test_a_restart_keeps_numbers(tmp_path: Path) -> None:
    async with cluster(tmp_path) as c:
        first = c.node()
        first.add("a", "web")
        first.add("b", "db")
        numbers = [await given(first, name) for name in ("a", "b")]
        await delete(c, numbers[0])
        first.stop()
        second = c.node(before=first)
        await second.until(lambda: second.endpoint("a").labels == labels_of("web"))
        await c.until(lambda: numbers[0] in c.objects())
        assert [second.identity_of(name) for name in ("a", "b")] == numbers
        assert len(c.objects()) == 2


async def test_labels_that_changed_while_no_agent_ran_make_another_number(tmp_path: Path) -> None:
    async with cluster(tmp_path) as c:
        first = c.node()
        first.add("a", "web")
        number = await given(first, "a")
        first.stop()
        first.label("a", "db")
        second = c.node(before=first)
        await second.until(lambda: second.endpoint("a").labels == labels_of("db"))
        assert second.identity_of("a") != number
        assert c.objects()[number]["security-labels"]["k8s:app"] == "web"


async def test_a_number_of_nobody_knows_which_labels_is_no_ones(tmp_path: Path) -> None:
    """The object is gone, and so is the file: it may be in force for others on another node."""
    async with cluster(tmp_path) as c:
        first = c.node()
        first.add("a", "web")
        number = await given(first, "a")
        first.stop()
        await delete(c, number)
        second = c.node(before=first, has_files=False)
        await second.until(lambda: second.endpoint("a").labels == labels_of("web"))
        assert second.identity_of("a") != number
        assert number not in c.objects()


async def test_a_number_that_others_have_by_now_is_given_up(tmp_path: Path) -> None:
    async with cluster(tmp_path) as c:
        first = c.node()
        first.add("a", "web")
        number = await given(first, "a")
        first.stop()
        await delete(c, number)
        await make(c, number, "db")
        second = c.node(before=first)
        await second.until(lambda: second.identity_of("a") != number)
        assert c.objects()[second.identity_of("a")]["security-labels"]["k8s:app"] == "web"


async def test_numbers_that_others_were_quicker_to_take_are_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    guess_alike(monkeypatch, seed=7)
    async with cluster(tmp_path) as c:
        nodes = [c.node() for _ in range(3)]
        for number, node in enumerate(nodes):
            node.add("a", f"app{number}")
        numbers = [await given(node, "a") for node in nodes]
        assert len(set(numbers)) == 3


async def test_a_lost_answer_makes_no_second_object(tmp_path: Path) -> None:
    async with cluster(tmp_path) as c:
        lost = Counter[str]()

        def loses() -> bool:
            lost["answers"] += 1
            return lost["answers"] == 1

        node = c.node(Faulty(c.files, loses), late_s=0.3)
        node.add("a", "web")
        number = await given(node, "a")
        assert lost["answers"] == 1
        assert list(c.objects()) == [number]


async def test_a_server_without_the_kind_is_told(tmp_path: Path) -> None:
    class Without(Faulty):
        async def create(self, path: str, form: Form) -> Form:
            raise StatusError(404, "the server could not find the requested resource")

    async with cluster(tmp_path) as c:
        node = c.node(Without(c.files))
        node.add("a", "web")
        await node.until(lambda: "run `cilia operator --pod-network`" in reason(node, "a"))


async def test_a_name_that_is_no_number_is_a_problem(tmp_path: Path) -> None:
    async with cluster(tmp_path) as c:
        for name in ("web", "255", "65536", "0300"):
            form = identity_form(0, labels_of("web"))
            form["metadata"]["name"] = name
            await c.files.create(object_path(CiliumIdentity, name), form)
        node = c.node()
        problems = node.ctx.problems
        with anyio.fail_after(8):
            while True:
                rows, changed = node.db.look(problems.all_watch)
                if len(found := list(rows)) == 4:
                    break
                await changed.wait()
        assert all("is no number from 256 to 65535" in problem.message for problem in found)
        node.add("a", "web")
        assert await given(node, "a")
