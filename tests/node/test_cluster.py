# SPDX-License-Identifier: Apache-2.0
"""The nodes are real ones: their probes, `kubectl exec`, `logs` and `port-forward`."""

from __future__ import annotations

import json
import urllib.request
from pathlib import Path

from tests.kube.apiserver import free_port
from tests.kube.assets import asset
from tests.kube.programs import Program

from .account import USER
from .cluster import Cluster
from .machine import KUBELET_WANTS
from .shop import Shop
from .workloads import PORT, server_pod, service


def test_nodes_and_pods_have_both_families(cluster: Cluster, shop: Shop) -> None:
    for name, node in cluster.nodes.items():
        addresses = {
            entry["address"]
            for entry in cluster.get("", "node", name)["status"]["addresses"]
            if entry["type"] == "InternalIP"
        }
        assert addresses == {node.member.v4, node.member.v6}
        pod = cluster.get(shop.NAMESPACE, "pod", f"client-{name}")
        assert len(pod["status"]["podIPs"]) == 2


def test_what_kubelet_would_set_in_the_kernel_is_not_set(cluster: Cluster) -> None:
    seen = {path: cluster.nodes["n1"].run("cat", f"/proc/sys/{path}") for path in KUBELET_WANTS}
    assert {path: int(value) for path, value in seen.items()} == KUBELET_WANTS
    machine = {path: int(Path("/proc/sys", path).read_text()) for path in KUBELET_WANTS}
    assert machine != KUBELET_WANTS


def test_agents_have_the_rights_of_their_service_account_alone(cluster: Cluster) -> None:
    """Each runs with this kubeconfig since the start of the cluster."""
    node, agent = cluster.nodes["n1"], cluster.agents["n1"]
    (flag,) = (word for word in agent.program.command if "k8s-kubeconfig-path" in word)
    kubectl = (asset("kubectl"), f"--kubeconfig={flag.partition('=')[2]}")
    assert USER in node.run(*kubectl, "auth", "whoami")

    def may(*words: str) -> str:
        return cluster.on_node("n1").run(*map(str, kubectl), "auth", "can-i", *words).strip()

    assert may("watch", "endpointslices.discovery.k8s.io") == "yes"
    for refused in (("*", "*"), ("get", "secrets"), ("create", "pods"), ("patch", "nodes/status")):
        assert may(*refused) == "no", refused


def test_commands_run_in_a_pod_and_its_log_is_read(shop: Shop) -> None:
    (name, *_) = shop.servers
    echo = ("exec", name, "--", "/bin/sh", "-c", "echo here is $HOSTNAME")
    assert shop.cluster.kubectl(shop.NAMESPACE, *echo) == f"here is {name}\n"
    assert f"serving {name}" in shop.cluster.kubectl(shop.NAMESPACE, "logs", name)


def test_a_port_is_forwarded_to_a_pod(shop: Shop, tmp_path: Path) -> None:
    (name, *_) = shop.servers
    port = free_port()
    forward = Program(
        "port-forward",
        [
            *(asset("kubectl"), f"--kubeconfig={shop.cluster.api.kubeconfig}", "port-forward"),
            *(f"--namespace={shop.NAMESPACE}", name, f"{port}:{PORT}"),
        ],
        tmp_path / "port-forward.log",
    )
    forward.start()
    try:
        forward.wait_until(lambda: "Forwarding" in forward.tail(), 60)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5) as answer:
            assert json.load(answer)["pod"] == name
    finally:
        forward.stop()


def test_a_pod_that_is_not_ready_gets_no_requests_until_it_is(
    cluster: Cluster, shop: Shop, namespace: str
) -> None:
    pods = [server_pod("one", "n1"), server_pod("two", "n2")]
    for pod in pods:
        pod["metadata"]["labels"] = {"app": "pair"}
    cluster.create(namespace, *pods, service("pair"))
    cluster.wait_ready(namespace, "one", "two")
    cluster.in_force(namespace, "pair", dict.fromkeys(cluster.nodes, 2))
    address = cluster.get(namespace, "service", "pair")["spec"]["clusterIP"]
    caller = shop.clients["n1"]
    assert caller.pods(f"http://{address}/", times=60) == {"one", "two"}
    inside = cluster.pod(namespace, "one")
    inside.switch("readyz/fail")
    cluster.kubectl(namespace, "wait", "pod/one", "--for=condition=Ready=False", "--timeout=20s")
    only = {"two"}
    cluster.eventually(lambda: caller.pods(f"http://{address}/", times=20) == only, "one's end")
    inside.switch("readyz/recover")
    cluster.wait_ready(namespace, "one")
    cluster.eventually(
        lambda: caller.pods(f"http://{address}/", times=20) == {"one", "two"}, "one's return", 10
    )


def test_a_pod_that_is_not_alive_is_started_again(cluster: Cluster, namespace: str) -> None:
    cluster.create(namespace, server_pod("ill", "n2"))
    cluster.wait_ready(namespace, "ill")
    cluster.pod(namespace, "ill").switch("healthz/fail")

    def started_again() -> bool:
        (container,) = cluster.get(namespace, "pod", "ill")["status"]["containerStatuses"]
        return bool(container["restartCount"] == 1 and container["ready"])

    cluster.eventually(started_again, "its new start")
