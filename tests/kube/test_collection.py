# SPDX-License-Identifier: Apache-2.0
"""Agents say what their pods have in a real API server, and operators collect what nobody uses."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest

from cilia.agent.config import AgentConfig
from cilia.k8s.crds import POD_NETWORK_DEFINITIONS
from cilia.k8s.crds.identities import HEARTBEAT, identity_form
from tests.cilia.endpoints.k8s_endpoints.test_objects import path_of, written
from tests.cilia.identity.nodes import Node
from tests.cilia.identity.test_shared import given
from tests.cilia.identity.test_shared import path_of as identity_path
from tests.patience import PATIENCE

from .apiserver import ApiServer
from .operators import Replica
from .test_identities import nodes
from .test_operator import CRDS

pytestmark = pytest.mark.timeout(180)

#: Short enough for a test; longer than agents take to take a mark away.
FLAGS = (
    "--pod-network=true",
    "--cilium-endpoint-gc-interval=1s",
    "--identity-gc-interval=2s",
    "--identity-heartbeat-timeout=4s",
)


@pytest.fixture
def config(api_server: ApiServer, tmp_path: Path) -> AgentConfig:
    return AgentConfig(
        k8s_kubeconfig_path=api_server.kubeconfig,
        node_name="node-1",
        state_dir=tmp_path,
        pod_network=True,
    )


@pytest.fixture
def operators(
    tmp_path: Path, api_server: ApiServer, namespace: str
) -> Iterator[tuple[Replica, Replica]]:
    """Two replicas, of which the first leads."""
    flags = (f"--k8s-namespace={namespace}", *FLAGS)
    with (
        Replica(tmp_path, "first", api_server.kubeconfig, *flags) as first,
        Replica(tmp_path, "second", api_server.kubeconfig, *flags) as second,
    ):
        first.start()
        first.program.wait_until(lambda: first.leading, 30)
        second.start()
        yield first, second


class Pods:
    """Pods of namespace `test` in the API server, each with its endpoint on a node."""

    def __init__(self, server: ApiServer) -> None:
        self._server = server
        status, _ = server.request("GET", "/api/v1/namespaces/test")
        if status == 404:
            server.post("/api/v1/namespaces", {"metadata": {"name": "test"}})

    def add(self, node: Node, name: str, app: str) -> None:
        made = self._server.post(
            "/api/v1/namespaces/test/pods",
            {
                "metadata": {"name": name, "labels": {"app": app}},
                "spec": {"nodeName": "node-1", "containers": [{"name": "main", "image": "none"}]},
            },
        )
        node.add(name, app, made["metadata"]["uid"])

    def delete(self, name: str) -> None:
        self._server.request(
            "DELETE", f"/api/v1/namespaces/test/pods/{name}", {"gracePeriodSeconds": 0}
        )


async def test_what_a_dead_node_leaves_is_collected_and_what_lives_stays(
    api_server: ApiServer, operators: tuple[Replica, Replica], config: AgentConfig
) -> None:
    first, second = operators

    def is_there(path: str) -> bool:
        return api_server.request("GET", path)[0] == 200

    kinds = [f"{CRDS}/{definition.name}" for definition in POD_NETWORK_DEFINITIONS]
    await until(lambda: all(map(is_there, kinds)))
    pods = Pods(api_server)
    async with nodes(config, 2) as (one, two):
        pods.add(one, "kept", "kept-app")
        pods.add(two, "lost", "lost-app")
        kept, lost = await given(one, "kept"), await given(two, "lost")
        await written(one, "kept")
        await written(two, "lost")
        shown = api_server.kubectl("get", "cep", "--namespace=test", "kept")
        assert shown.split()[-5:-1] == ["kept", str(kept), "ready", "10.1.0.1"], shown
        paths = (path_of("kept"), identity_path(kept))
        uids = [api_server.get(path)["metadata"]["uid"] for path in paths]
        api_server.post(
            identity_path(300).rpartition("/")[0], identity_form(300, ["k8s:app=unused"])
        )

        two.stop()  # and its pod is deleted by the cluster
        pods.delete("lost")
        await until(lambda: not is_there(path_of("lost")))
        assert is_there(identity_path(lost)), "it goes later"
        first.program.kill()
        await until(lambda: second.leading)
        await until(lambda: not is_there(identity_path(lost)))
        await until(lambda: not is_there(identity_path(300)))

        found = [api_server.get(path) for path in paths]
        assert [form["metadata"]["uid"] for form in found] == uids
        assert HEARTBEAT not in (found[1]["metadata"].get("annotations") or {})
        metrics = second.get("/metrics", second.metrics)
        gone = 'cilia_operator_gc_objects_total{collector="identity-gc",outcome="deleted"} 2.0'
        assert gone in metrics

        one.remove("kept")
        pods.delete("kept")
        await until(lambda: not is_there(path_of("kept")))
        await until(lambda: not is_there(identity_path(kept)))


async def until(condition: Callable[[], Any]) -> None:
    with anyio.fail_after(40 * PATIENCE):
        while not await anyio.to_thread.run_sync(condition):
            await anyio.sleep(0.05)  # the server tells this test nothing
