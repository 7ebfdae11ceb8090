# SPDX-License-Identifier: Apache-2.0
"""Two agents that share a directory of objects agree on the identities of their pods."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from cilia.api.client import ApiError
from tests.e2e.pods import PodNode, pod_node

pytestmark = [pytest.mark.root, pytest.mark.timeout(120)]

FILE = "ciliumidentities.cilium.io_{}.json"


class Shared:
    """Two nodes and what they share."""

    def __init__(self, directory: Path, nodes: list[PodNode]) -> None:
        self.directory, self.nodes = directory, nodes
        for node in nodes:
            node.start(f"--k8s-objects-dir={directory}")

    def objects(self) -> dict[int, dict[str, Any]]:
        return {int(form["metadata"]["name"]): form for form in self._forms("ciliumidentities")}

    def endpoints(self) -> dict[str, dict[str, Any]]:
        return {form["metadata"]["name"]: form for form in self._forms("ciliumendpoints")}

    def _forms(self, resource: str) -> list[dict[str, Any]]:
        paths = self.directory.glob(f"{resource}.cilium.io_*.json")
        return [json.loads(path.read_text()) for path in paths]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared]:
    objects = tmp_path_factory.mktemp("objects")
    with ExitStack() as stack:
        nodes = [
            stack.enter_context(pod_node(tmp_path_factory.mktemp(name), f"id-{name}", [pool], ip))
            for name, pool, ip in (
                ("one", "10.207.0.0/24", "192.0.2.11"),
                ("two", "10.208.0.0/24", "192.0.2.12"),
            )
        ]
        yield Shared(objects, nodes)


def identity(node: PodNode, name: str) -> int:
    (number,) = [row["Identity"] for row in node.rows("endpoints") if row["Pod"] == name]
    return int(number)


def test_pods_of_equal_labels_have_one_number_on_both_nodes(shared: Shared) -> None:
    one, two = shared.nodes
    one.add("a", app="web")
    two.add("b", app="web")
    two.add("c", app="db")
    number = identity(one, "a")
    assert identity(two, "b") == number != identity(two, "c")
    assert shared.objects()[number]["security-labels"]["k8s:app"] == "web"
    one.world.eventually(lambda: number in {row["ID"] for row in two.rows("identities")})
    done = two.world.cilia("identity", "list", "k8s:app=web")
    assert str(number) in done.stdout


def test_each_node_knows_the_pods_of_the_other_while_they_run(shared: Shared) -> None:
    one, two = shared.nodes
    pod = one.add("far", app="far")
    prefix = f"{pod.address(4)}/32"

    def row() -> dict[str, Any]:
        return next((row for row in two.rows("ipcache") if row["Prefix"] == prefix), {})

    two.world.eventually(lambda: row().get("Status") == "done")
    assert (row()["Identity"], row()["Source"]) == (identity(one, "far"), "custom-resource")
    assert (row()["HostIP"], row()["Pod"]) == ("192.0.2.11", "far")
    assert prefix in two.world.cilia("bpf", "ipcache", "list").stdout
    assert two.world.cilia("ip", "get", pod.address(4), "-o", "wide").stdout.count("test/far")
    assert "far" in shared.endpoints()
    one.delete("far")
    one.remove_pod("far")
    two.world.eventually(lambda: not row())
    assert "far" not in shared.endpoints()


def test_an_object_that_somebody_deletes_is_made_again_and_survives_a_kill(shared: Shared) -> None:
    one, _ = shared.nodes
    one.add("kept", app="kept")
    number = identity(one, "kept")
    saved = one.world.state_dir / "endpoints"
    one.world.eventually(
        # Not one that is being written: its name comes with the last step.
        lambda: any(f'"identity":{number}' in p.read_text() for p in saved.glob("[0-9]*.json"))
    )
    one.world.kill_agent()
    (shared.directory / FILE.format(number)).unlink()
    one.start(f"--k8s-objects-dir={shared.directory}")
    one.world.eventually(lambda: number in shared.objects())
    assert identity(one, "kept") == number
    assert shared.objects()[number]["security-labels"]["k8s:app"] == "kept"
    one.cni("CHECK", one.pods["kept"])


def test_labels_whose_object_cannot_be_made_wait_and_say_why(shared: Shared) -> None:
    _, node = shared.nodes
    away = shared.directory.with_name("away")
    node.add("known", app="known")
    shared.directory.rename(away)
    with ThreadPoolExecutor() as threads:
        try:
            node.add("known-too", app="known")
            assert identity(node, "known-too") == identity(node, "known")
            late = threads.submit(node.add, "late", app="late")
            node.world.eventually(lambda: "No such file or directory" in reason(node))
            (row,) = [row for row in node.rows("endpoints") if row["Pod"] == "late"]
            assert row["State"] == "waiting-for-identity"
            with pytest.raises(ApiError, match="No such file"):  # 503
                node.world.get("/healthz")
        finally:
            away.rename(shared.directory)
        late.result(30)
    assert identity(node, "late") != identity(node, "known")
    node.world.eventually(lambda: reason(node) == "")


def reason(node: PodNode) -> str:
    """Why labels have no number."""
    return "".join(row["Error"] for row in node.rows("desired-identities"))
