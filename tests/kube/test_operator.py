# SPDX-License-Identifier: Apache-2.0
"""The operator against a real API server: kinds, and who leads when a replica is killed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cilia.k8s.crds import DEFINITIONS
from cilia.k8s.crds.definitions import SCHEMA_NUMBER

from .apiserver import ApiServer
from .operators import Replica

pytestmark = pytest.mark.timeout(90)

CRDS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"


def eventually(what: Callable[[], bool], timeout_s: float = 15) -> float:
    """Seconds until it was so."""
    began = time.monotonic()
    while not what():
        assert time.monotonic() - began < timeout_s, f"not within {timeout_s} s"
        time.sleep(0.01)
    return time.monotonic() - began


@pytest.fixture
def pair(
    tmp_path: Path, api_server: ApiServer, namespace: str
) -> Iterator[tuple[Replica, Replica]]:
    """Two replicas, of which the first leads."""
    flag = f"--k8s-namespace={namespace}"
    with (
        Replica(tmp_path, "first", api_server.kubeconfig, flag) as first,
        Replica(tmp_path, "second", api_server.kubeconfig, flag) as second,
    ):
        first.start()
        eventually(lambda: first.leading)
        second.start()
        yield first, second


def test_a_killed_leader_is_replaced_within_ten_seconds(pair: tuple[Replica, Replica]) -> None:
    first, second = pair
    assert second.status == {"leader": first.status["leader"], "leading": False}
    first.program.kill()
    took_s = eventually(lambda: second.leading)
    print(f"failover after kill -9: {took_s:.1f} s")
    assert took_s < 10


def test_a_leader_that_ends_in_order_is_replaced_at_once(pair: tuple[Replica, Replica]) -> None:
    first, second = pair
    first.program.stop()
    took_s = eventually(lambda: second.leading)
    print(f"failover after SIGTERM: {took_s:.1f} s")
    assert took_s < 2.5


def test_kinds_are_registered_and_their_objects_can_be_written(
    pair: tuple[Replica, Replica], api_server: ApiServer, namespace: str
) -> None:
    first, _ = pair
    eventually(lambda: '"status":"ok"' in first.get("/healthz"))
    for definition in DEFINITIONS:
        path = f"{CRDS}/{definition.name}"
        eventually(lambda path=path: api_server.request("GET", path)[0] == 200)  # type: ignore[misc]
    listed = api_server.kubectl("get", "ciliumlrp", f"--namespace={namespace}")
    assert listed == ""
    metrics = first.get("/metrics", first.metrics)
    assert "cilia_operator_leading 1.0" in metrics


def test_a_newer_schema_is_not_lowered(
    tmp_path: Path, api_server: ApiServer, namespace: str
) -> None:
    with Replica(tmp_path, "old", api_server.kubeconfig, f"--k8s-namespace={namespace}") as old:
        old.start()
        path = f"{CRDS}/{DEFINITIONS[0].name}"
        eventually(lambda: api_server.request("GET", path)[0] == 200)
        old.program.stop()
        label = {"metadata": {"labels": {"cilia.io/crd-schema": "999", "kept": "yes"}}}
        version = api_server.patch(path, label)["metadata"]["resourceVersion"]
        try:
            old.start()
            eventually(lambda: "left as it is" in old.program.tail())
            assert api_server.get(path)["metadata"]["resourceVersion"] == version
            old.program.stop()
            api_server.patch(path, {"metadata": {"labels": {"cilia.io/crd-schema": "0"}}})
            old.start()
            eventually(lambda: api_server.get(path)["metadata"]["labels"] != {"kept": "yes"})
            eventually(
                lambda: (
                    api_server.get(path)["metadata"]["labels"]
                    == {"cilia.io/crd-schema": str(SCHEMA_NUMBER), "kept": "yes"}
                )
            )
        finally:
            own = {"cilia.io/crd-schema": str(SCHEMA_NUMBER)}
            api_server.patch(path, {"metadata": {"labels": own}})
