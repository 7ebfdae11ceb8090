# SPDX-License-Identifier: Apache-2.0
"""podman's containers on a node whose pod network is ours: a runtime that knows no Kubernetes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from tests.e2e.pods import PodNode, pod_node
from tests.kube.assets import asset

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]

#: Rights that a container may ask for where the machine gives no more.
ULIMITS = ("--ulimit=nofile=1024:1024", "--ulimit=nproc=1024:1024")
CONFIG = """\
[network]
network_backend = "cni"
cni_plugin_dirs = ["{plugins}"]
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
runtime = "runc"
"""


class Podman:
    """podman in the node's network, with storage of its own."""

    def __init__(self, node: PodNode, directory: Path) -> None:
        self.node = node
        self.directory = directory
        self.lists, self.plugins = directory / "net.d", directory / "plugins"
        for path in (self.lists, self.plugins):
            path.mkdir()
        (directory / "containers.conf").write_text(CONFIG.format(plugins=self.plugins))
        self._options = (f"--cni-conf-path={self.lists}", f"--cni-bin-path={self.plugins}")

    def start_agent(self) -> None:
        self.node.start(*self._options)
        self.node.world.eventually((self.lists / "05-cilia.conflist").exists, 30.0)

    def __call__(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        command = [
            "nsenter",
            f"--net=/run/netns/{self.node.world.namespace}",
            "podman",
            f"--root={self.directory / 'storage'}",
            f"--runroot={self.directory / 'run'}",
            f"--network-config-dir={self.lists}",
            *arguments,
        ]
        environment = {**os.environ, "CONTAINERS_CONF": str(self.directory / "containers.conf")}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert not check or done.returncode == 0, done.stderr
        return done

    def run(self, name: str, *command: str, detach: bool = False) -> str:
        """Run the workload program in a container; what it prints, or the container's id."""
        root = self.directory / f"root-{name}"
        for place in ("proc", "dev", "sys", "etc", "run", "tmp"):
            (root / place).mkdir(parents=True, exist_ok=True)
        shutil.copy(asset("workload"), root / "workload")
        how = ["-d"] if detach else ["--rm"]
        asked = ["run", *how, f"--name={name}", "--network=cilia", *ULIMITS, "--rootfs", str(root)]
        return self(*asked, "/workload", *command).stdout.strip()

    def endpoints(self) -> dict[str, dict[str, Any]]:
        """Rows of endpoints by container."""
        return {row["ContainerID"]: row for row in self.node.rows("endpoints")}


@pytest.fixture
def podman(tmp_path: Path) -> Iterator[Podman]:
    with ExitStack() as stack:
        node = stack.enter_context(pod_node(tmp_path, "podman"))
        # podman takes no long names for what it keeps while it runs.
        directory = stack.enter_context(TemporaryDirectory(prefix="podman-"))
        made = Podman(node, Path(directory))
        stack.callback(made, "rm", "--all", "--force", "--time=0", check=False)
        made.start_agent()
        yield made


def test_containers_talk_and_leave_nothing(podman: Podman) -> None:
    """Their names are no pods': podman names a container as it would a pod, without a namespace."""
    server = podman.run("server", "serve", detach=True)
    row = podman.endpoints()[server]
    assert (row["Pod"], row["State"], row["Health"]) == ("", "ready", "OK")
    assert row["Identity"]
    for address in (row["IPv4"], f"[{row['IPv6']}]"):
        answer = json.loads(podman.run("client", "ask", f"http://{address}:8080/"))
        assert answer["pod"] == server[:12]
    assert list(podman.endpoints()) == [server], "the client's is gone with it"
    podman("rm", "--force", "--time=0", "server")
    assert podman.endpoints() == {}
    assert podman.node.node.ip("-o link").count("lxc") == 0


def test_a_storm_of_containers_and_kills_leaves_nothing(podman: Podman) -> None:
    """The agent is killed while some are made and others go: what podman could not delete waits in
    the queue, and what it could not make is undone.
    """
    names = [f"c{number}" for number in range(12)]

    def live(name: str) -> None:
        for _ in range(2):
            podman("rm", "--force", "--time=0", name, check=False)
            try:
                podman.run(name, "serve", detach=True)
            except AssertionError:
                continue  # no agent at that moment: podman's user tries again
        podman("rm", "--force", "--time=0", name, check=False)

    with ThreadPoolExecutor(4) as threads:
        lives = [threads.submit(live, name) for name in names]
        for done in lives[:3]:
            done.result()
            podman.node.world.kill_agent()
            podman.start_agent()
        for done in lives:
            done.result()

    def is_empty() -> bool:
        in_use = [r for r in podman.node.rows("ip-allocations") if r["State"] == "in-use"]
        return not podman.endpoints() and {row["Owner"] for row in in_use} == {"router"}

    podman.node.world.eventually(is_empty, 150.0)
    assert podman.node.node.ip("-o link").count("lxc") == 0
    assert list((podman.node.world.state_dir / "endpoints").iterdir()) == []
