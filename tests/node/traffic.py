# SPDX-License-Identifier: Apache-2.0
"""Ten servers behind a cluster address and a node port, and a client on each node that never rests.

What the servers owe to a client that notices nothing they do: a new one is ready before an old one
goes, and an old one serves on for a while after it was told to stop. Everything else is ours.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .callers import Caller
from .cluster import Cluster
from .workloads import client_pod, deployment, service

RATE = 200  # requests a second, of both clients together
REPLICAS = 10


class Traffic:
    """A Deployment of ten behind a cluster address and a node port, and clients of both."""

    def __init__(self, cluster: Cluster, namespace: str) -> None:
        self.cluster, self.namespace = cluster, namespace
        self.deployment = deployment("rolled", REPLICAS)
        # A client pod of its own, which no test restarts.
        clients = [client_pod(f"client-{node}", node) for node in cluster.nodes]
        front = service("rolled", type="NodePort")
        cluster.create(namespace, self.deployment, front, *clients)
        self.rolled_out()
        cluster.wait_ready(namespace, *(pod["metadata"]["name"] for pod in clients))
        cluster.in_force(namespace, "rolled", dict.fromkeys(cluster.nodes, REPLICAS))
        spec = cluster.get(namespace, "service", "rolled")["spec"]
        self.addresses = spec["clusterIPs"]
        self.node_port = spec["ports"][0]["nodePort"]

    def urls(self, node: str) -> list[str]:
        """The cluster addresses, and the node port at both addresses of a node."""
        member = self.cluster.nodes[node].member
        (v4, v6), port = self.addresses, self.node_port
        at_node = [f"http://{member.v4}:{port}/", f"http://[{member.v6}]:{port}/"]
        return [f"http://{v4}/", f"http://[{v6}]/", *at_node]

    def callers(self) -> dict[str, Caller]:
        return {
            node: self.cluster.pod(self.namespace, f"client-{node}") for node in self.cluster.nodes
        }

    def rolled_out(self) -> None:
        asked = ("rollout", "status", "deployment/rolled", "--timeout=300s")
        self.cluster.kubectl(self.namespace, *asked)

    def roll(self) -> None:
        """Replace every server; returns when the last old one is gone."""
        old = self.servers()
        self.cluster.kubectl(self.namespace, "rollout", "restart", "deployment/rolled")
        self.rolled_out()
        self.cluster.eventually(lambda: not (self.servers() & old), "the old servers' end")

    def servers(self) -> set[str]:
        named = ("get", "pods", "-l=app=rolled", "-o=name")
        return set(self.cluster.kubectl(self.namespace, *named).split())

    def during(self, act: Callable[[], object]) -> Any:
        """What became of the requests of a client on each node while something was done."""
        loads = [
            caller.load(*self.urls(node), rate=RATE // 2) for node, caller in self.callers().items()
        ]
        try:
            act()
        finally:
            results = [load.stop() for load in loads]
        for result in results:
            print(
                f"sent {result['sent']}, failed {result['failed']}, in {result['seconds']:.1f} s, "
                f"slowest {result['slowest_ms']:.0f} ms, servers {len(result['pods'])}"
            )
        return results


def nothing_failed(results: Any, least_sent: int) -> None:
    for result in results:
        assert result["failed"] == 0, result["errors"]
        assert result["sent"] >= least_sent, "the load was not what the test is about"
