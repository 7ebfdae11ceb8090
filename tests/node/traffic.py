# SPDX-License-Identifier: Apache-2.0
"""Ten servers behind a cluster address and a node port, and a client on each node that never rests.

What the servers owe to a client that notices nothing they do: a new one is ready before an old one
goes, and an old one serves on for a while after it was told to stop. Everything else is ours.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

from .callers import Caller, Load
from .cluster import Cluster
from .workloads import client_pod, deployment, server_pod, service

RATE = 200  # requests a second through the cluster addresses, and as many through the node port
REPLICAS = 10
TOLD = "requests: "  # what begins so is shown in the summary of the tests


class Traffic:
    """A Deployment of ten behind a cluster address and a node port, and clients of both."""

    def __init__(self, cluster: Cluster, namespace: str) -> None:
        self.cluster, self.namespace = cluster, namespace
        self._numbers = itertools.count(1)
        # A client pod of its own, which no test restarts.
        clients = [client_pod(f"client-{node}", node) for node in cluster.nodes]
        fronts = [service("rolled", type="NodePort"), service("changed", app="rolled")]
        cluster.create(namespace, deployment("rolled", REPLICAS), *fronts, *clients)
        self.rolled_out()
        cluster.wait_ready(namespace, *(pod["metadata"]["name"] for pod in clients))
        for name in ("rolled", "changed"):
            cluster.in_force(namespace, name, dict.fromkeys(cluster.nodes, REPLICAS))
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

    def scale(self, replicas: int) -> None:
        """Returns when there are so many servers, ready, and no others."""
        self.order(replicas)
        self.scaled(replicas)

    def order(self, replicas: int) -> None:
        """Ask for so many servers, and wait for none."""
        asked = ("scale", "deployment/rolled", f"--replicas={replicas}")
        self.cluster.kubectl(self.namespace, *asked)

    def scaled(self, replicas: int) -> None:
        self.rolled_out()
        self.cluster.eventually(lambda: len(self.servers()) == replicas, f"{replicas} servers")

    def servers(self) -> set[str]:
        named = ("get", "pods", "-l=app=rolled", "-o=name")
        return set(self.cluster.kubectl(self.namespace, *named).split())

    def change(self) -> None:
        """The cluster works: a new pod starts on each node, a Service that selected others is
        changed to select these, and soon every client is answered by them alone."""
        cluster, name = self.cluster, f"new-{next(self._numbers)}"
        pods = [server_pod(f"{name}-{node}", node) for node in cluster.nodes]
        for pod in pods:
            pod["metadata"]["labels"] = {"app": name}
        names = {str(pod["metadata"]["name"]) for pod in pods}
        cluster.create(self.namespace, *pods, service("changed", app=name))
        cluster.wait_ready(self.namespace, *names)
        (address, _) = cluster.get(self.namespace, "service", "changed")["spec"]["clusterIPs"]
        for caller in self.callers().values():
            reached = partial(caller.reaches, f"http://{address}/", names)
            cluster.eventually(reached, f"the changed Service from {caller.name}", 30)
        cluster.create(self.namespace, service("changed", app="rolled"))
        gone = ("delete", "pod", "--wait=false", *names)
        cluster.kubectl(self.namespace, *gone)

    def during(self, act: Callable[[], object]) -> Any:
        """What became of the requests of a client on each node while something was done."""
        loads = {
            caller.name: caller.load(*self.urls(node), rate=RATE)
            for node, caller in self.callers().items()
        }
        return what_became_of(loads, act)


def what_became_of(loads: dict[str, Load], act: Callable[[], object]) -> list[Any]:
    """Do something while these clients ask; what became of the requests of each."""
    try:
        act()
    finally:
        results = {name: load.stop() for name, load in loads.items()}
        for name, result in results.items():
            print(
                f"{TOLD}{name}: {result['sent']} sent in {result['seconds']:.1f} s,"
                f" {result['failed']} failed, longest gap {result['gap_ms']:.0f} ms,"
                f" slowest answer {result['slowest_ms']:.0f} ms, {len(result['pods'])} servers"
            )
    return list(results.values())


def nothing_failed(results: list[Any], least_sent: int) -> None:
    for result in results:
        assert result["failed"] == 0, result["errors"]
        assert result["sent"] >= least_sent, "the load was not what the test is about"
