# SPDX-License-Identifier: Apache-2.0
"""Host ports by the plugin `portmap`, behind ours in the runtime's list."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import pytest

from cilia.linux.netns import NetNS
from tests.e2e.network_lists import Runtime
from tests.e2e.nodes import Connection, Server, ask, forward, pair, run
from tests.e2e.pods import FAMILIES, PodNode, pod_node
from tests.kernel import Kernel
from tests.kube.assets import asset

pytestmark = [pytest.mark.root, pytest.mark.timeout(120)]

TCP, UDP = socket.SOCK_STREAM, socket.SOCK_DGRAM
NODE = {4: "192.0.2.1", 6: "fd00:2::1"}
CLIENT = {4: "192.0.2.7", 6: "fd00:2::7"}
BITS = {4: 24, 6: 64}
HOST_PORT = 8089
PORTS = [
    {"hostPort": HOST_PORT, "containerPort": 8080, "protocol": protocol}
    for protocol in ("tcp", "udp")
]
OPTIONS = ("--cni-chaining-mode=portmap", "--kube-proxy-replacement=false")


class Stage(NamedTuple):
    node: PodNode
    client: Kernel
    runtime: Runtime

    def start(self) -> None:
        lists = self.runtime.path.parent
        self.node.start(*OPTIONS, f"--cni-conf-path={lists}", f"--cni-bin-path={lists.parent}/bin")
        self.node.world.eventually(self.runtime.path.exists)


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    lists, programs = tmp_path / "net.d", tmp_path / "bin"
    lists.mkdir()
    programs.mkdir()
    with ExitStack() as stack:
        node = stack.enter_context(pod_node(tmp_path, "portmap"))
        client = Kernel(stack.enter_context(NetNS.new()))
        pair(node.node, "eth0", client, "eth0")
        forward(node.node)
        for family in FAMILIES:
            nodad = " nodad" if family == 6 else ""
            for kernel, address in ((node.node, NODE), (client, CLIENT)):
                kernel.ip(f"addr add {address[family]}/{BITS[family]} dev eth0{nodad}")
            node.node.ip(f"-{family} route add default via {CLIENT[family]}")
        yield Stage(node, client, Runtime(node, lists / "05-cilia.conflist"))


def install_portmap(stage: Stage) -> None:
    (stage.runtime.path.parent.parent / "bin" / "portmap").symlink_to(asset("cni") / "portmap")


def test_the_list_waits_for_the_plugin_that_it_names(stage: Stage) -> None:
    lists = stage.runtime.path.parent
    stage.node.start(*OPTIONS, f"--cni-conf-path={lists}", f"--cni-bin-path={lists.parent}/bin")
    stage.node.world.eventually(
        lambda: "has no plugin portmap" in str(stage.node.world.get("/status")["degraded"])
    )
    assert not stage.runtime.path.exists()
    install_portmap(stage)
    stage.node.world.eventually(stage.runtime.path.exists)
    form = json.loads(stage.runtime.path.read_text())
    assert [plugin["type"] for plugin in form["plugins"]] == ["cilia-cni", "portmap"]
    assert "cniVersions" not in form


def test_a_host_port_leads_to_its_pod_until_the_pod_goes(stage: Stage) -> None:
    install_portmap(stage)
    stage.start()
    pod, other = stage.runtime.add("one", PORTS), stage.runtime.add("two")
    # Not the whole list: portmap 1.1 looks for the rules of IPv4 among those of IPv6.
    stage.node.cni("CHECK", pod)
    with ExitStack() as stack:
        for family in FAMILIES:
            for kind in (TCP, UDP):
                stack.callback(Server(pod, "one", pod.address(family), 8080, kind).close)
                for client, address in (
                    (stage.client, CLIENT[family]),
                    (other, other.address(family)),
                ):
                    found = ask(client, NODE[family], HOST_PORT, kind)
                    assert found[:2] == ["one", address]
        with Connection(stage.client, NODE[4], HOST_PORT, TCP) as open_one:
            open_one.ask()
            stage.node.world.kill_agent()
            assert open_one.ask()[0] == "one"
            stage.start()
            assert open_one.ask()[0] == "one"
    for _ in range(2):
        stage.runtime.delete(pod)
    rules = run(stage.node.node, "iptables-save", "-t", "nat")
    assert pod.address(4) not in rules
    assert [row["Pod"] for row in stage.node.rows("endpoints")] == ["two"]


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["--cni-chaining-mode=portmap", "--pod-network"], "serves host ports itself"),
        (["--cni-chaining-mode=portmap", "--kube-proxy-replacement=false"], "needs --pod-network"),
        (["--cni-chaining-mode=calico"], "is no mode"),
        (["--cni-chaining-target=x", "--pod-network"], "needs --cni-chaining-mode"),
        (
            ["--cni-chaining-mode=generic-veth", "--pod-network", "--cni-conf-path=/nowhere"],
            "needs the name of the other plugin's network",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(options: list[str], why: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "cilia", "agent", "--dry-run", *options],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode and why in " ".join(done.stderr.split())
