# SPDX-License-Identifier: Apache-2.0
"""Pods into their table, and with them the reflector of one kind into one table."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

import cilia.cluster.pods
from cilia.cluster.objects import ObjectReflector
from cilia.cluster.pods import convert_pod, pod_reflector
from cilia.k8s import objects as k8s
from cilia.k8s.store import ObjectStore
from cilia.k8s.watch import Delete, Event, Listed, Listing, Upsert
from statedb import DB, RWTable
from tables.addressing import IP
from tables.cluster.pods import Container, ContainerPort, Pod, new_pods_table
from tables.problems import Problem, new_problems_table

FORM: dict[str, Any] = {
    "apiVersion": "v1",
    "kind": "Pod",
    "metadata": {
        "name": "web",
        "namespace": "test",
        "uid": "u1",
        "labels": {"app": "web"},
        "creationTimestamp": "1970-01-01T00:00:10Z",
    },
    "spec": {
        "nodeName": "here",
        "initContainers": [{"name": "init"}],
        "containers": [
            {
                "name": "nginx",
                "ports": [
                    {"containerPort": 80, "name": "http"},
                    {"containerPort": 53, "protocol": "UDP", "hostPort": 5, "hostIP": "127.0.0.1"},
                ],
            }
        ],
    },
    "status": {
        "phase": "Running",
        "podIPs": [{"ip": "10.1.0.1"}, {"ip": "fd00::1"}],
        "conditions": [{"type": "Ready", "status": "True"}],
    },
}


def decoded(name: str = "web", node: str = "here", **parts: Any) -> k8s.Pod:
    form = {**FORM, **parts, "metadata": {**FORM["metadata"], "name": name}}
    form["spec"] = {**FORM["spec"], "nodeName": node}
    obj = k8s.decode(form)
    assert isinstance(obj, k8s.Pod)
    return obj


def test_conversion() -> None:
    assert convert_pod(decoded()) == Pod(
        "test",
        "web",
        "u1",
        ips=(IP.parse("10.1.0.1"), IP.parse("fd00::1")),
        containers=(
            Container("init"),
            Container(
                "nginx",
                (
                    ContainerPort(80, name="http"),
                    ContainerPort(53, "UDP", host_port=5, host_ip=IP.parse("127.0.0.1")),
                ),
            ),
        ),
        phase="Running",
        ready=True,
        labels={"app": "web"},
        created_at=10.0,
    )
    bare = convert_pod(decoded(status={"podIP": "10.1.0.9"}))
    assert (bare.ips, bare.ready, bare.phase) == ((IP.parse("10.1.0.9"),), False, "")


def test_row_as_printed() -> None:
    table = new_pods_table(DB())
    cells = {column.name: column.cell(convert_pod(decoded())) for column in table.columns}
    assert cells.pop("Age")
    assert cells == {
        "Name": "test/web",
        "HostNetwork": "false",
        "PodIPs": "10.1.0.1, fd00::1",
        "Containers": "init, nginx (80/TCP, 53/UDP)",
        "Phase": "Running",
    }


Pods = tuple[DB, RWTable[Pod], ObjectReflector[k8s.Pod, Pod], ObjectStore]


@pytest.fixture
def pods() -> Pods:
    db, store = DB(), ObjectStore()
    table = new_pods_table(db)
    return db, table, pod_reflector(store, db, table, "here", new_problems_table(db)), store


def names(db: DB, table: RWTable[Pod]) -> list[str]:
    return [pod.name for pod in table.all(db.read_txn())]


def test_pods_of_this_node_come_and_go(pods: Pods) -> None:
    db, table, reflector, _ = pods
    reflector.apply([Upsert(decoded("a")), Upsert(decoded("b", "there"))])
    assert names(db, table) == ["a"]
    reflector.apply([Upsert(decoded("b")), Delete(("Pod", "test", "a"))])
    assert names(db, table) == ["b"]
    reflector.apply([Upsert(decoded("b", "there"))])
    assert names(db, table) == []


def test_what_did_not_change_is_not_written(pods: Pods) -> None:
    db, table, reflector, _ = pods
    reflector.apply([Upsert(decoded("a"))])
    before = table.revision(db.read_txn())
    reflector.apply([Upsert(decoded("a"))])
    assert table.revision(db.read_txn()) == before


def test_a_new_list_deletes_what_it_has_not(pods: Pods) -> None:
    db, table, reflector, _ = pods
    listing: list[Event] = [Listing("Pod"), Upsert(decoded("a")), Upsert(decoded("b"))]
    reflector.apply(listing)
    assert not table.initialized(db.read_txn())
    reflector.apply([Listed("Pod")])
    assert table.initialized(db.read_txn())
    reflector.apply([Upsert(decoded("c")), Listing("Pod"), Upsert(decoded("b")), Listed("Pod")])
    assert names(db, table) == ["b"]


def test_a_pod_that_cannot_be_converted_keeps_its_row(
    pods: Pods, monkeypatch: pytest.MonkeyPatch
) -> None:
    db, table, reflector, _ = pods
    problems = cast("RWTable[Problem]", db.table("problems"))
    reflector.apply([Upsert(decoded("a"))])

    def fail(obj: k8s.Pod) -> Pod:
        raise ValueError(f"broken {obj.metadata.name}")

    monkeypatch.setattr(cilia.cluster.pods, "convert_pod", fail)
    reflector.apply([Upsert(decoded("a")), Upsert(decoded("b"))])
    assert names(db, table) == ["a"]
    assert [problem.name for problem in problems.all(db.read_txn())] == ["a", "b"]
    monkeypatch.undo()
    reflector.apply([Upsert(decoded("a")), Upsert(decoded("b"))])
    assert names(db, table) == ["a", "b"]
    assert not problems.num_objects(db.read_txn())


@pytest.mark.parametrize("text", ["soon", "0001-01-01T00:00:00", "9" * 5000, "0001-01-01T00:00Z"])
def test_a_strange_time_is_no_reason_to_refuse_a_pod(pods: Pods, text: str) -> None:
    db, table, reflector, _ = pods
    pod = decoded("a")
    pod.metadata.creation_timestamp = text
    reflector.apply([Upsert(pod)])
    assert names(db, table) == ["a"]


async def test_run_follows_the_source(pods: Pods) -> None:
    db, table, reflector, store = pods
    task = asyncio.create_task(reflector.run())
    store.publish([Upsert(decoded("a"))])
    store.set_complete()
    async with asyncio.timeout(5):
        while not (state := table.initialized_watch(db.read_txn()))[0]:
            await state[1].wait()
    assert names(db, table) == ["a"]
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
