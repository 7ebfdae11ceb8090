# SPDX-License-Identifier: Apache-2.0
"""Fixtures: a cluster for all tests, and a namespace of its own for each.

Tests run on a cluster whose pods have their network from Debian's bridge plugin, and again on one
where cilia is alone; a file that is about one of them says so (`ON_BRIDGE`, `ON_CILIA`). A test
leaves the cluster as it found it: two ready nodes, an agent on each, the names answered.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from typing import Any

import pytest

from . import leftovers
from .cluster import Cluster
from .networks import NETWORKS
from .shop import Shop
from .traffic import TOLD, Traffic

_numbers = itertools.count(1)


@pytest.fixture(scope="session", params=NETWORKS)
def cluster(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Cluster]:
    for record in leftovers.records():
        if record.abandoned():
            record.remove()
    name = f"cilia-test-{os.getpid()}"
    directory, alone = tmp_path_factory.mktemp("cluster"), request.param == "cilia"
    with Cluster(name, directory, pod_network=alone, say=print) as made:
        made.start_agents()
        made.start_dns()
        yield made


@pytest.fixture
def namespace(cluster: Cluster) -> Iterator[str]:
    name = f"test-{next(_numbers)}"
    cluster.make_namespace(name)
    yield name
    cluster.api.kubectl("delete", "namespace", name, "--wait=false")


@pytest.fixture(scope="session")
def shop(cluster: Cluster) -> Iterator[Shop]:
    """Servers and clients that tests share which only ask."""
    cluster.make_namespace(Shop.NAMESPACE)
    yield Shop(cluster)
    cluster.api.kubectl("delete", "namespace", Shop.NAMESPACE, "--wait=false")


@pytest.fixture(scope="session")
def traffic(cluster: Cluster) -> Iterator[Traffic]:
    """Ten servers and two clients; a test leaves ten servers."""
    namespace = "traffic"
    cluster.make_namespace(namespace)
    yield Traffic(cluster, namespace)
    cluster.api.kubectl("delete", "namespace", namespace, "--wait=false")


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """What became of the requests of each test, also of those that passed."""
    for report in terminalreporter.stats.get("passed", []):
        told = [line for line in report.capstdout.splitlines() if line.startswith(TOLD)]
        for line in [f"{report.nodeid.rpartition('::')[2]}:", *told] if told else []:
            terminalreporter.write_line(line.replace(TOLD, "  "))
