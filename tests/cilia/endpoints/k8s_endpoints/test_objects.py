# SPDX-License-Identifier: Apache-2.0
"""Agents that write CiliumEndpoints of their pods into objects that they share."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cilia.k8s.crds import CiliumEndpoint
from cilia.k8s.object_writer import Form, object_path
from statedb import StatusKind
from tables.endpoints.desired_k8s_endpoints import DesiredK8sEndpoint
from tests.cilia.identity.nodes import Cluster, Faulty, Node, cluster

pytestmark = [pytest.mark.timeout(30), pytest.mark.usefixtures("short_grace")]


def path_of(name: str) -> str:
    return object_path(CiliumEndpoint, name, "test")


def writes(faulty: Faulty) -> list[str]:
    """What was done to CiliumEndpoints."""
    return [method for method, path in faulty.writes if "/ciliumendpoints/" in path]


def row_of(node: Node, name: str) -> DesiredK8sEndpoint | None:
    assert node.k8s is not None
    return node.k8s.desired.get(node.db.read_txn(), f"test/{name}")


def reason(node: Node, name: str) -> str:
    row = row_of(node, name)
    return row.status.error if row is not None else ""


async def written(node: Node, name: str) -> None:
    """Wait until all is written that is to be said of a pod."""

    def is_done() -> bool:
        row = row_of(node, name)
        return row is not None and row.status.kind is StatusKind.DONE

    await node.until(is_done)


async def gone(c: Cluster, node: Node, name: str) -> None:
    """Wait until an object is gone, and the node knows."""
    await c.until(lambda: name not in c.endpoints())
    await node.until(lambda: row_of(node, name) is None)


async def edit(c: Cluster, name: str, change: Form) -> None:
    """Change an object, as a person does."""
    form = json.loads(await c.files.fetch(path_of(name)))
    form["metadata"] |= change.get("metadata", {})
    form["status"] |= change.get("status", {})
    await c.files.replace(path_of(name), form)


async def test_a_pod_s_life_is_two_writes_and_a_restart_none(tmp_path: Path) -> None:
    async with cluster(tmp_path) as c:
        faulty = Faulty(c.files)
        node = c.node(faulty)
        node.add("a", "web", "u1")
        await written(node, "a")
        (form,) = c.endpoints().values()
        assert form["status"]["identity"]["id"] == node.identity_of("a")
        assert form["status"]["state"] == "ready"
        assert form["status"]["networking"] == {
            "addressing": [{"ipv4": "10.1.0.1"}],
            "node": "192.0.2.1",
        }
        assert form["metadata"]["ownerReferences"][0]["uid"] == "u1"
        node = c.node(faulty, before=node)
        await written(node, "a")
        assert writes(faulty) == ["create"]
        node.remove("a")
        await gone(c, node, "a")
        assert writes(faulty) == ["create", "delete"]


async def test_another_identity_is_written_once(tmp_path: Path) -> None:
    async with cluster(tmp_path) as c:
        faulty = Faulty(c.files)
        node = c.node(faulty)
        node.add("a", "web", "u1")
        await written(node, "a")
        before = node.identity_of("a")
        node.label("a", "db")
        await c.until(lambda: c.endpoints()["a"]["status"]["identity"]["id"] != before)
        await written(node, "a")
        assert c.endpoints()["a"]["status"]["identity"]["id"] == node.identity_of("a")
        assert writes(faulty) == ["create", "replace"]


async def test_a_pod_that_comes_to_another_node_has_its_object_taken_over(tmp_path: Path) -> None:
    """The former node is late: it neither writes nor deletes what is another's by now."""
    async with cluster(tmp_path) as c:
        faulty = Faulty(c.files)
        one, two = c.node(faulty), c.node()
        one.add("a", "web", "u1")
        await written(one, "a")
        one.remove_pod("a")  # its container runs on for a while
        two.add("a", "web", "u2")
        await written(two, "a")
        assert c.endpoints()["a"]["status"]["networking"]["node"] == "192.0.2.2"
        await one.until(lambda: reason(one, "a").startswith("the cluster does not have its pod"))
        one.remove_endpoint("a")
        await one.until(lambda: row_of(one, "a") is None)
        one = c.node(faulty, before=one)
        one.add("b", "web", "u3")
        await written(one, "b")
        assert c.endpoints()["a"]["metadata"]["ownerReferences"][0]["uid"] == "u2"
        assert writes(faulty) == ["create", "create"]


async def test_an_object_that_another_node_wrote_since_is_not_deleted(tmp_path: Path) -> None:
    """The node that lost the pod reads late: it does not know yet who has it."""
    async with cluster(tmp_path) as c:
        faulty = Faulty(c.files)
        one, two = c.node(faulty, late_s=0.5), c.node()
        one.add("a", "web", "u1")
        await written(one, "a")
        two.add("a", "web", "u2")
        await written(two, "a")
        assert row_of(one, "a") is not None and one.k8s is not None
        held = one.k8s.objects.get(one.db.read_txn(), "test/a")
        assert held is not None and str(held.node) == "192.0.2.1", "it has not read it yet"
        one.remove("a")
        await one.until(lambda: row_of(one, "a") is None)
        assert c.endpoints()["a"]["status"]["networking"]["node"] == "192.0.2.2"
        assert writes(faulty) == ["create"]


async def test_a_pod_that_is_made_anew_on_its_node_has_one_object(tmp_path: Path) -> None:
    async with cluster(tmp_path) as c:
        node = c.node()
        node.add("a", "web", "u1")
        await written(node, "a")
        node.remove("a")
        node.add("a", "web", "u2")
        await c.until(
            lambda: (
                "a" in c.endpoints()
                and c.endpoints()["a"]["metadata"]["ownerReferences"][0]["uid"] == "u2"
            )
        )
        await written(node, "a")


async def test_what_people_change_is_put_right_and_what_they_add_stays(tmp_path: Path) -> None:
    async with cluster(tmp_path) as c:
        node = c.node()
        node.add("a", "web", "u1")
        await written(node, "a")
        number = node.identity_of("a")
        mark = {"annotations": {"note": "kept"}}
        await edit(c, "a", {"metadata": mark, "status": {"identity": {"id": 999, "labels": []}}})
        await c.until(lambda: c.endpoints()["a"]["status"]["identity"]["id"] == number)
        assert c.endpoints()["a"]["metadata"]["annotations"] == {"note": "kept"}
        uid = c.endpoints()["a"]["metadata"]["uid"]
        await c.files.delete(path_of("a"), uid, {})
        await c.until(lambda: "a" in c.endpoints() and c.endpoints()["a"]["metadata"]["uid"] != uid)
        await written(node, "a")


async def test_nothing_is_made_for_a_pod_that_the_cluster_does_not_have(tmp_path: Path) -> None:
    """Kubernetes would delete it again, since its owner is gone."""
    async with cluster(tmp_path) as c:
        faulty = Faulty(c.files)
        node = c.node(faulty)
        node.add("a", "web", "u1")
        await written(node, "a")
        node.remove_pod("a")
        await c.files.delete(path_of("a"), c.endpoints()["a"]["metadata"]["uid"], {})
        await node.until(lambda: "nothing is written" in reason(node, "a"))
        assert writes(faulty) == ["create"]
        (health,) = node.ctx.health.prefix(node.db.read_txn(), "endpoints.k8s-endpoints")
        assert health.error == ""


async def test_a_server_that_is_away_is_told_and_all_is_written_once_it_is_back(
    tmp_path: Path,
) -> None:
    async with cluster(tmp_path) as c:
        faulty = Faulty(c.files)
        node = c.node(faulty)
        node.add("a", "web", "u1")
        await written(node, "a")
        faulty.away = True
        node.add("b", "web", "u2")
        await node.until(lambda: reason(node, "b") == "the API server is away")
        node.remove("a")
        await node.until(lambda: reason(node, "a") == "the API server is away")
        (health,) = node.ctx.health.prefix(node.db.read_txn(), "endpoints.k8s-endpoints")
        assert health.error == "the API server is away"
        assert sorted(c.endpoints()) == ["a"]
        faulty.away = False
        await gone(c, node, "a")
        await written(node, "b")
        assert sorted(c.endpoints()) == ["b"]


async def test_an_end_that_a_kill_left_undone_is_done_by_the_next_run(tmp_path: Path) -> None:
    async with cluster(tmp_path) as c:
        faulty = Faulty(c.files)
        node = c.node(faulty)
        node.add("a", "web", "u1")
        await written(node, "a")
        faulty.away = True
        node.remove("a")
        await node.until(lambda: reason(node, "a") == "the API server is away")
        node.stop()
        faulty.away = False
        await gone(c, c.node(faulty, before=node), "a")


async def test_nothing_is_deleted_before_pods_are_read_whole(tmp_path: Path) -> None:
    """An endpoint whose file was lost may have no name before."""
    async with cluster(tmp_path) as c:
        node = c.node()
        node.add("a", "web", "u1")
        await written(node, "a")
        node.stop()
        node.remove("a")
        after = c.node(before=node)
        with after.db.write_txn(after.pods) as wtxn:
            read = after.pods.register_initializer(wtxn, "test")
        after.add("b", "web", "u2")
        await written(after, "b")
        assert row_of(after, "a") is None
        assert sorted(c.endpoints()) == ["a", "b"]
        with after.db.write_txn(after.pods) as wtxn:
            read(wtxn)
        await gone(c, after, "a")


async def test_a_node_without_an_address_says_so(tmp_path: Path) -> None:
    async with cluster(tmp_path) as c:
        faulty = Faulty(c.files)
        node = c.node(faulty)
        with node.db.write_txn(node.nodes) as wtxn:
            node.nodes.delete_all(wtxn)
        node.add("a", "web", "u1")
        await node.until(lambda: "names no address" in reason(node, "a"))
        assert writes(faulty) == []


async def test_lost_answers_make_no_second_write(tmp_path: Path) -> None:
    async with cluster(tmp_path) as c:
        faulty = Faulty(c.files, lambda: True)
        node = c.node(faulty, late_s=0.1)
        node.add("a", "web", "u1")
        await written(node, "a")
        node.remove("a")
        await gone(c, node, "a")
        assert writes(faulty) == ["create", "delete"]
