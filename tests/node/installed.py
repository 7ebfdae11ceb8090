# SPDX-License-Identifier: Apache-2.0
"""`cilia install`, `cilia status` and `cilia uninstall` on two nodes, the agents in pods of our own
images: in the order of the tests, under traffic.

`make test-images` builds the images and runs this.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator

import pytest

from tests.install.images import tag

from .cluster import KUBE_PROXY, Cluster
from .installation import NAMESPACE, cilia, find_agents, nodes_with_images, pods_on
from .kube_proxy import KubeProxy
from .plan import API_PORT, BRIDGE_V4
from .traffic import Traffic, nothing_failed

pytestmark = pytest.mark.timeout(600)

API_SERVER = f"https://{BRIDGE_V4}:{API_PORT}"
IMAGES = (f"--image={tag('agent')}", f"--operator-image={tag('operator')}")
WAIT = ("--wait", "--wait-duration=120")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    directory = tmp_path_factory.mktemp("installed")
    with nodes_with_images(f"cilia-installed-{os.getpid()}", directory) as made:
        yield made


@pytest.fixture(scope="module")
def agents(cluster: Cluster) -> Cluster:
    """Installed; each pod's agent answers at the socket of its node."""
    cilia(cluster, "install", f"--api-server={API_SERVER}", *IMAGES, *WAIT)
    find_agents(cluster)
    return cluster


@pytest.fixture(scope="module")
def traffic(agents: Cluster) -> Traffic:
    agents.start_dns()
    agents.make_namespace("traffic")
    return Traffic(agents, "traffic")


def test_both_parts_are_complete(agents: Cluster) -> None:
    said = cilia(agents, "status", "--cluster", "--wait", "-o", "json")
    parts = {part["name"]: part for part in json.loads(said)["parts"]}
    assert set(parts) == {"cilia", "cilia-operator"}
    for part in parts.values():
        assert part["complete"] and part["ready"] == part["wanted"] == len(agents.nodes)


def test_an_agent_in_its_pod_says_that_all_is_well(agents: Cluster) -> None:
    for node in agents.nodes:
        (pod,) = pods_on(agents, node)
        status = agents.kubectl(NAMESPACE, "exec", pod, "-c=cilia-agent", "--", "cilia", "status")
        assert "OK" in status and "synchronised" in status


def test_no_request_fails_while_ten_servers_are_replaced(traffic: Traffic) -> None:
    nothing_failed(traffic.during(traffic.roll), 1000)


def test_no_request_fails_while_options_change_and_agents_are_replaced(traffic: Traffic) -> None:
    cluster = traffic.cluster
    before = {node: pods_on(cluster, node) for node in cluster.nodes}

    def act() -> None:
        changed = (f"--api-server={API_SERVER}", *IMAGES, "--config=log-level=debug", *WAIT)
        assert "configmap/cilia-config changed" in cilia(cluster, "install", *changed).lower()
        traffic.change()

    nothing_failed(traffic.during(act), 200)
    after = {node: pods_on(cluster, node) for node in cluster.nodes}
    assert all(before[node] != after[node] for node in cluster.nodes)


def test_no_request_fails_while_kube_proxy_takes_over_and_all_is_removed(traffic: Traffic) -> None:
    cluster = traffic.cluster
    kubeconfig = cluster.kubeconfig_inside(KUBE_PROXY)
    proxies = [KubeProxy(node, kubeconfig) for node in cluster.nodes.values()]

    def act() -> None:
        for proxy in proxies:
            proxy.start(*traffic.addresses)
        cilia(cluster, "uninstall")

    nothing_failed(traffic.during(act), 200)
    nothing_failed(traffic.during(traffic.roll), 500)  # kube-proxy alone
    for agent in cluster.agents.values():
        assert agent.pins() == []
    left = cluster.kubectl(
        NAMESPACE,
        *("get", "ds,deploy,sa,cm,role,rolebinding,clusterrole,clusterrolebinding,lease"),
        *("-l=app.kubernetes.io/part-of=cilia", "-o=name"),
    )
    assert left == ""
    assert "is not installed" in cilia_status(cluster)


def cilia_status(cluster: Cluster) -> str:
    """Ends with 1 where nothing is installed."""
    with pytest.raises(subprocess.CalledProcessError) as failed:
        cilia(cluster, "status", "--cluster")
    return str(failed.value.output)
