# SPDX-License-Identifier: Apache-2.0
"""`cilia install`, `cilia status` and `cilia uninstall` on two nodes, the agents in pods of our own
images: in the order of the tests, under traffic.

`make test-images` builds the images and runs this.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cilia.k8s.crds import DEFINITIONS, CiliumNodeConfig
from tests.install.images import archive, tag

from .agent import Agent
from .cluster import KUBE_PROXY, Cluster
from .kube_proxy import KubeProxy
from .machine import REPOSITORY, Machine
from .plan import API_PORT, BRIDGE_V4
from .traffic import Traffic, nothing_failed

pytestmark = pytest.mark.timeout(600)

NAMESPACE = "kube-system"
API_SERVER = f"https://{BRIDGE_V4}:{API_PORT}"
IMAGES = (f"--image={tag('agent')}", f"--operator-image={tag('operator')}")
WAIT = ("--wait", "--wait-duration=120")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Two nodes that have the images; nobody serves Services yet."""
    directory = tmp_path_factory.mktemp("installed")
    with Cluster(f"cilia-installed-{os.getpid()}", directory, say=print) as made:
        for node in made.nodes.values():
            for target in ("agent", "operator"):
                node.import_image(archive(target))
        made.register(*DEFINITIONS)
        made.create(NAMESPACE, *(options_of(node) for node in made.nodes.values()))
        yield made


def options_of(node: Machine) -> dict[str, Any]:
    """Two nodes share the hierarchy of control groups here, so that each has its part of it."""
    below = node.group.relative_to("/sys/fs/cgroup")
    return {
        "apiVersion": CiliumNodeConfig.API_VERSION,
        "kind": CiliumNodeConfig.KIND,
        "metadata": {"name": node.name},
        "spec": {
            "nodeSelector": {"matchLabels": {"kubernetes.io/hostname": node.name}},
            "defaults": {"cgroup-root": f"/run/cilia-cgroup/{below}"},
        },
    }


def cilia(cluster: Cluster, command: str, *arguments: str) -> str:
    """What our command line says, against the cluster. Raises: CalledProcessError."""
    where = f"--kubeconfig={cluster.api.kubeconfig}"
    words = [sys.executable, "-m", "cilia", command, where, *arguments]
    done = subprocess.run(words, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    print(f"$ cilia {command} {' '.join(arguments)}\n{done.stdout}{done.stderr}")
    done.check_returncode()
    return done.stdout


@pytest.fixture(scope="module")
def agents(cluster: Cluster) -> Cluster:
    """Installed; each pod's agent answers at the socket of its node."""
    cilia(cluster, "install", f"--api-server={API_SERVER}", *IMAGES, *WAIT)
    for node in cluster.nodes.values():
        cluster.agents[node.name] = Agent(node, Path("in-a-pod"))
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


def pods_on(cluster: Cluster, node: str) -> list[str]:
    chosen = ("-l=k8s-app=cilia", f"--field-selector=spec.nodeName={node}", "-o=name")
    return cluster.kubectl(NAMESPACE, "get", "pods", *chosen).split()


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
