# SPDX-License-Identifier: Apache-2.0
"""Our plugin behind another one, which makes devices, gives addresses and has the routes."""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Ether
from scapy.packet import Raw

from tests.e2e.manifests import endpoint_slice, service
from tests.e2e.network_lists import Runtime
from tests.e2e.nodes import Connection, Server, ask, forward, run
from tests.e2e.pods import FAMILIES, CNIFailed, Pod, PodNode, pod_node

pytestmark = [pytest.mark.root, pytest.mark.timeout(120)]

TCP, UDP_KIND = socket.SOCK_STREAM, socket.SOCK_DGRAM
KINDS = (TCP, UDP_KIND)
SERVICE = {4: "10.203.0.70", 6: "fd00:203::70"}
MAKERS: dict[str, dict[str, Any]] = {
    "bridge": {"type": "bridge", "bridge": "other0", "isGateway": True},
    "ptp": {"type": "ptp"},
}


class Stage(NamedTuple):
    node: PodNode
    runtime: Runtime
    addresses: Path

    @property
    def lists(self) -> Path:
        return self.runtime.path.parent

    def start(self) -> None:
        """Start an agent, and wait for its list."""
        chaining = ("--cni-chaining-mode=generic-veth", "--cni-chaining-target=other")
        self.node.start(*chaining, f"--cni-conf-path={self.lists}")
        self.node.world.eventually(self.runtime.path.exists)

    def programs(self, device: str) -> list[str]:
        rows = [row for row in self.node.rows("attachments") if row["target"] == device]
        return sorted(Path(row["program"]).name for row in rows)


def other_list(maker: str, addresses: Path) -> str:
    ipam = {
        "type": "host-local",
        "dataDir": str(addresses),
        "ranges": [[{"subnet": "10.212.0.0/24"}], [{"subnet": "fd00:212::/64"}]],
        "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
    }
    plugin = {**MAKERS[maker], "ipam": ipam}
    return json.dumps({"cniVersion": "1.0.0", "name": "other", "plugins": [plugin]})


@pytest.fixture(params=MAKERS)
def stage(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Stage]:
    lists, addresses = tmp_path / "net.d", tmp_path / "addresses"
    lists.mkdir()
    (lists / "10-other.conflist").write_text(other_list(request.param, addresses))
    with pod_node(tmp_path, f"chain-{request.param}") as node:
        forward(node.node)
        yield Stage(node, Runtime(node, lists / "05-cilia.conflist"), addresses)


def serve(stage: Stage, stack: ExitStack, pod: Pod) -> None:
    """Let a pod be the backend of a Service of each family."""
    for family in FAMILIES:
        name, address = f"web{family}", pod.address(family)
        text = service(name, SERVICE[family]) + "---\n"
        stage.node.world.write(f"{name}.yaml", text + endpoint_slice(name, [address]))
        for kind in KINDS:
            stack.callback(Server(pod, pod.name, address, 8080, kind).close)


def test_pods_of_another_plugin_are_endpoints(stage: Stage) -> None:
    stage.start()
    assert {path.name for path in stage.lists.iterdir()} == {
        "05-cilia.conflist",
        "10-other.conflist.cilium_bak",
    }
    one, two = stage.runtime.add("one"), stage.runtime.add("two")
    rows = {row["Pod"]: row for row in stage.node.rows("endpoints")}
    for pod in (one, two):
        row = rows[pod.name]
        assert (row["Chained"], row["State"]) == (True, "ready")
        assert (row["IPv4"], row["IPv6"]) == (pod.address(4), pod.address(6))
        assert row["MAC"] in pod.ip("link show eth0")
        stage.node.world.eventually(
            lambda device=row["Device"]: stage.programs(device) == ["from_pod", "to_pod"]  # type: ignore[misc]
        )
        stage.node.cni("CHECK", pod, name="other")
    assert {row["State"] for row in stage.node.rows("ip-allocations")} == {"external"}
    told = stage.node.world.cilia("status").stdout
    assert "2 ready, routing by another plugin" in told
    assert "external, by the plugin of network other" in told
    assert "cilia_host" not in stage.node.node.ip("link")
    with ExitStack() as stack:
        serve(stage, stack, two)
        reached(stage, one, two)
        survives_a_kill(stage, stack, one)
    in_nobody_elses_name(stage, one, two)
    goes_twice(stage, one)


def reached(stage: Stage, one: Pod, two: Pod) -> None:
    for family in FAMILIES:
        for kind in KINDS:
            seen = ask(one, two.address(family), 8080, kind)
            assert seen[:2] == ["two", one.address(family)]
            stage.node.world.eventually(
                lambda f=family, k=kind: served(one, f, k) == ["two", one.address(f)]  # type: ignore[misc]
            )
            assert ask(stage.node.node, two.address(family), 8080, kind)[0] == "two"


def served(client: Pod, family: int, kind: int) -> list[str]:
    try:
        return ask(client, SERVICE[family], 80, kind)[:2]
    except OSError as error:
        return [str(error)]


def survives_a_kill(stage: Stage, stack: ExitStack, client: Pod) -> None:
    opened = [Connection(client, SERVICE[f], 80, kind) for f in FAMILIES for kind in KINDS]
    for connection in opened:
        stack.callback(connection.close)
    before = [connection.ask()[0] for connection in opened]
    stage.node.world.kill_agent()
    assert [connection.ask()[0] for connection in opened] == before == ["two"] * 4
    numbers = {row["Pod"]: row["ID"] for row in rows_of_files(stage)}
    stage.start()
    assert [connection.ask()[0] for connection in opened] == before
    stage.node.world.eventually(
        lambda: {row["State"] for row in stage.node.rows("endpoints")} == {"ready"}
    )
    assert {row["Pod"]: row["ID"] for row in stage.node.rows("endpoints")} == numbers


def rows_of_files(stage: Stage) -> list[dict[str, Any]]:
    files = (stage.node.world.state_dir / "endpoints").glob("*.json")
    forms = [json.loads(path.read_text()) for path in files]
    return [{"Pod": form["pod"], "ID": form["id"]} for form in forms]


def in_nobody_elses_name(stage: Stage, one: Pod, two: Pod) -> None:
    """What a pod sends with an address that the other plugin did not give it goes nowhere."""
    receiver = two.netns.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sender = one.netns.socket(socket.AF_PACKET, socket.SOCK_RAW)
    gateway = next(ip["gateway"] for ip in one.result["ips"] if "." in ip["address"])
    one._run("ping", "-c1", "-W1", gateway, check=False)
    with receiver, sender:
        receiver.bind((two.address(4), 0))
        receiver.settimeout(3)
        sender.bind(("eth0", 0))
        mac = sender.getsockname()[4].hex(":")
        (router,) = {
            entry["lladdr"]
            for entry in json.loads(one.ip("-4 -j neigh show dev eth0"))
            if entry["dst"] == gateway
        }
        for source, content in (("10.212.0.99", b"forged"), (one.address(4), b"honest")):
            frame = Ether(src=mac, dst=router) / IP(src=source, dst=two.address(4))
            datagram = UDP(sport=1, dport=receiver.getsockname()[1]) / Raw(content)
            sender.send(bytes(frame / datagram))
        assert receiver.recvfrom(10) == (b"honest", (one.address(4), 1))


def goes_twice(stage: Stage, pod: Pod) -> None:
    taken = stage.addresses / "other"
    assert (taken / pod.address(4)).exists()
    for _ in range(2):
        stage.runtime.delete(pod)
    assert [row["Pod"] for row in stage.node.rows("endpoints")] == ["two"]
    assert not (taken / pod.address(4)).exists()
    again = stage.runtime.add("three")
    assert ask_back(stage, again)


def ask_back(stage: Stage, pod: Pod) -> bool:
    with ExitStack() as stack:
        stack.callback(Server(pod, "three", pod.address(4), 8080, TCP).close)
        return ask(stage.node.node, pod.address(4), 8080, TCP)[0] == "three"


def test_what_is_not_ours_stays_when_we_go(stage: Stage) -> None:
    """Also a device that a killed agent marked before it wrote anything else about it."""
    stage.start()
    stage.node.write_pod("early")
    early = stage.node.namespace("early")
    with pytest.raises(CNIFailed, match="must stand behind"):
        stage.node.cni("ADD", early, name="other")
    one = stage.runtime.add("one")
    (row,) = stage.node.rows("endpoints")
    stage.node.world.kill_agent()
    stage.node.node.ip("link add stray type veth peer name stray-peer")
    stage.node.node.ip(f"link set stray group {0x434946}")
    stage.start()
    assert "group default" in stage.node.node.ip("link show stray")
    w = stage.node.world
    w.agents[-1].terminate()
    w.agents[-1].wait(20)
    where = (f"--state-dir={w.state_dir}", f"--bpf-root={w.bpf_root}")
    cilia = (sys.executable, "-m", "cilia", f"--instance={w.namespace}")
    run(stage.node.node, *cilia, "cleanup", *where)
    assert [path.name for path in stage.lists.iterdir()] == ["10-other.conflist"]
    assert "group default" in stage.node.node.ip(f"link show {row['Device']}")
    with ExitStack() as stack:
        stack.callback(Server(one, "one", one.address(4), 8080, TCP).close)
        assert ask(stage.node.node, one.address(4), 8080, TCP)[0] == "one"
