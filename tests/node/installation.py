# SPDX-License-Identifier: Apache-2.0
"""Two nodes that have our images, and our command line against them: agents run in pods."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from cilia.k8s.crds import DEFINITIONS, CiliumNodeConfig
from tests.install.images import archive

from .agent import Agent
from .cluster import Cluster
from .machine import REPOSITORY, Machine

NAMESPACE: Final = "kube-system"


@contextmanager
def nodes_with_images(
    name: str, directory: Path, *, pod_network: bool = False
) -> Iterator[Cluster]:
    """Two nodes on which nothing of ours runs yet; nobody serves Services."""
    with Cluster(name, directory, pod_network=pod_network, say=print) as made:
        for node in made.nodes.values():
            for target in ("agent", "operator"):
                node.import_image(archive(target))
        made.register(*DEFINITIONS)
        made.create(NAMESPACE, *(_options_of(node) for node in made.nodes.values()))
        yield made


def _options_of(node: Machine) -> dict[str, Any]:
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


def find_agents(cluster: Cluster) -> None:
    """Each pod's agent answers at the socket of its node."""
    for node in cluster.nodes.values():
        cluster.agents[node.name] = Agent(node, Path("in-a-pod"))


def cilia(cluster: Cluster, command: str, *arguments: str) -> str:
    """Return what our command line says, against the cluster. Raises: CalledProcessError."""
    where = f"--kubeconfig={cluster.api.kubeconfig}"
    words = [sys.executable, "-m", "cilia", command, where, *arguments]
    done = subprocess.run(words, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    print(f"$ cilia {command} {' '.join(arguments)}\n{done.stdout}{done.stderr}")
    done.check_returncode()
    return done.stdout


def pods_on(cluster: Cluster, node: str) -> list[str]:
    """Return the agents' pods of a node."""
    chosen = ("-l=k8s-app=cilia", f"--field-selector=spec.nodeName={node}", "-o=name")
    return cluster.kubectl(NAMESPACE, "get", "pods", *chosen).split()
