# SPDX-License-Identifier: Apache-2.0
"""Nodes agree on identities by the objects of a real API server: the code that runs over files."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from cilia.agent.config import AgentConfig
from cilia.agent.resources import resources, shared_kinds
from cilia.cluster.access_options import open_writing_client
from cilia.cluster.inputs import open_input
from cilia.k8s.crds import POD_NETWORK_DEFINITIONS
from cilia.k8s.crds.identities import HEARTBEAT
from cilia.operator.crds import register
from tests.cilia.identity.nodes import Node
from tests.cilia.identity.test_shared import given, labels_of, path_of

from .apiserver import ApiServer

pytestmark = pytest.mark.timeout(90)


@pytest.fixture
def config(api_server: ApiServer, tmp_path: Path) -> AgentConfig:
    return AgentConfig(
        k8s_kubeconfig_path=api_server.kubeconfig,
        node_name="node-1",
        state_dir=tmp_path,
        pod_network=True,
    )


@asynccontextmanager
async def nodes(config: AgentConfig, number: int) -> AsyncIterator[list[Node]]:
    """Nodes that read and write as agents do."""
    async with anyio.create_task_group() as group:
        made = []
        for place in range(1, number + 1):
            opened = open_input(config, resources(config), shared_kinds(config))
            node = Node(opened.shared, f"192.0.2.{place}")
            made.append(node)
            group.start_soon(_run, node, opened)
        yield made
        group.cancel_scope.cancel()


async def _run(node: Node, opened: Any) -> None:
    with node.scope:
        async with opened.writing, anyio.create_task_group() as group:
            node.ctx.start(group, opened.jobs)
            group.start_soon(node.run)


async def test_nodes_agree_by_an_api_server(api_server: ApiServer, config: AgentConfig) -> None:
    async with open_writing_client(config) as client:
        await register(client, POD_NETWORK_DEFINITIONS)
    async with nodes(config, 2) as (one, two):
        one.add("a", "kube-web")
        number = await given(one, "a")
        two.add("b", "kube-web")
        assert await given(two, "b") == number
        found = api_server.get(path_of(number))
        assert sorted(f"{key}={value}" for key, value in found["security-labels"].items()) == list(
            labels_of("kube-web")
        )
        assert found["metadata"]["labels"] == {"io.kubernetes.pod.namespace": "test"}
        table = api_server.kubectl("get", "ciliumid", str(number))
        assert table.split()[:3] == ["NAME", "NAMESPACE", "AGE"]

        # Marked while it is in use: the mark is taken away.
        mark = {"metadata": {"annotations": {HEARTBEAT: "2026-11-30T12:00:00Z", "kept": "yes"}}}
        marked = api_server.patch(path_of(number), mark)["metadata"]["resourceVersion"]

        def annotations() -> dict[str, str]:
            metadata = api_server.get(path_of(number))["metadata"]
            assert isinstance(metadata, dict)
            return {} if metadata["resourceVersion"] == marked else metadata["annotations"]

        await until(lambda: annotations() == {"kept": "yes"})

        # Deleted while it is in use: it is made again.
        uid = found["metadata"]["uid"]
        api_server.delete(path_of(number))

        def is_made_again() -> bool:
            status, _ = api_server.request("GET", path_of(number))
            return status == 200 and api_server.get(path_of(number))["metadata"]["uid"] != uid

        await until(is_made_again)
        assert [one.identity_of("a"), two.identity_of("b")] == [number, number]


async def until(condition: Any) -> None:
    with anyio.fail_after(20):
        while not await anyio.to_thread.run_sync(condition):
            await anyio.sleep(0.02)  # the server tells this test nothing
