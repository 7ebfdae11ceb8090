# SPDX-License-Identifier: Apache-2.0
"""`cilia monitor` on a node with pods: what it shows of real packets, and when nobody listens."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Ether

from bpf.events import EventKind
from bpf.maps.listeners import NAME, Listeners
from bpf.maps.map import Map
from tests.e2e.nodes import Server, ask
from tests.e2e.pods import Pod, PodNode, pod_node
from tests.e2e.world import REPOSITORY, World
from tests.patience import PATIENCE

pytestmark = [pytest.mark.root, pytest.mark.timeout(120)]

PORT = 9100


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PodNode]:
    with pod_node(tmp_path_factory.mktemp("monitor"), "monitor") as made:
        made.start()
        for name in ("one", "two"):
            made.add(name)
        yield made


class Monitor:
    """The command as a process; its lines as they come."""

    def __init__(self, world: World, *arguments: str) -> None:
        command = [sys.executable, "-m", "cilia", f"--instance={world.namespace}"]
        command += [f"--socket={world.state_dir / 'cilia.sock'}", "monitor", *arguments]
        self.process = subprocess.Popen(
            command,
            cwd=REPOSITORY,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stderr is not None
        heard = self.process.stderr.readline()
        assert heard == "Listening for events; press Ctrl-C to end\n", heard

    def line(self, *texts: str) -> str:
        """The next line with these texts; others speak at the same time, by ARP for one."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if all(text in line for text in texts):
                return line.rstrip("\n")
        raise AssertionError(f"the output ended without {texts}")

    def end(self) -> tuple[int, str]:
        """As Ctrl-C does; the status, and what was left."""
        self.process.send_signal(signal.SIGINT)
        left, _ = self.process.communicate(timeout=10 * PATIENCE)
        return self.process.returncode, left


@contextmanager
def monitoring(node: PodNode, *arguments: str) -> Iterator[Monitor]:
    made = Monitor(node.world, *arguments)
    try:
        yield made
    finally:
        made.process.kill()
        made.process.communicate()


def endpoint(node: PodNode, name: str) -> dict[str, Any]:
    (row,) = [row for row in node.rows("endpoints") if row["Pod"] == name]
    return row


def forge(node: PodNode) -> None:
    """A datagram of pod one in another's name."""
    one, two = node.pods["one"], node.pods["two"]
    row = endpoint(node, "one")
    frame = Ether(src=row["MAC"], dst=row["NodeMAC"])
    packet = frame / IP(src="10.207.0.77", dst=two.address(4)) / UDP(sport=33, dport=80)
    with one.netns.socket(socket.AF_PACKET, socket.SOCK_RAW) as sender:
        sender.bind(("eth0", 0))
        sender.send(bytes(packet))


def test_drop_is_one_line_that_says_why_and_who(node: PodNode) -> None:
    one, two = endpoint(node, "one"), endpoint(node, "two")
    with monitoring(node, "--type", "drop") as monitor:
        forge(node)
        line = monitor.line("xx drop")
        status, left = monitor.end()
    expected = (
        r"xx drop \(Invalid source ip\) flow 0x[0-9a-f]+ to endpoint {to}, ifindex \d+,"
        r" file endpoint\.h:\d+, identity {source}->{destination}:"
        r" 10\.207\.0\.77:33 -> {address}:80 udp"
    ).format(
        to=two["ID"],
        source=one["Identity"],
        destination=two["Identity"],
        address=re.escape(node.pods["two"].address(4)),
    )
    assert re.fullmatch(expected, line)
    assert (status, left) == (0, "")


def connect(node: PodNode) -> tuple[Pod, Pod]:
    one, two = node.pods["one"], node.pods["two"]
    with ExitStack() as stack:
        stack.callback(Server(two, "two", two.address(4), PORT, socket.SOCK_STREAM).close)
        assert ask(one, two.address(4), PORT, socket.SOCK_STREAM)[0] == "two"
    return one, two


def test_connection_is_told_when_it_opens_is_answered_and_closes(node: PodNode) -> None:
    one, two = endpoint(node, "one"), endpoint(node, "two")
    with monitoring(node, "-t", "trace", "--related-to", str(one["ID"]), "-o", "json") as monitor:
        source, destination = connect(node)
        opened = json.loads(monitor.line('"new"'))
        answered = json.loads(monitor.line("SYN, ACK"))
        closed = json.loads(monitor.line("FIN"))
    assert opened["packet"].endswith(f" -> {destination.address(4)}:{PORT} tcp SYN")
    told = {name: opened[name] for name in ("type", "observationPoint", "state", "isReply")}
    assert told == {
        "type": "trace",
        "observationPoint": "to-endpoint",
        "state": "new",
        "isReply": False,
    }
    assert (opened["source"], opened["destination"]) == (one["ID"], two["ID"])
    assert (opened["srcLabel"], opened["dstLabel"]) == (one["Identity"], two["Identity"])
    assert (answered["state"], answered["isReply"]) == ("reply", True)
    assert answered["summary"]["l3"]["dst"] == source.address(4)
    assert closed["state"] in ("established", "reply")


def test_pods_are_chosen_by_name(node: PodNode) -> None:
    arguments = ["--from-pod", "test/one", "--to-pod", "test/two", "-v"]
    with monitoring(node, *arguments, "--hex") as monitor:
        forge(node)
        head = monitor.line("CPU")
        row = monitor.line("00000020")
    assert " DROP: " in head
    assert "reason Invalid source ip (invalid source: " in head
    assert row.startswith("00000020  ")
    done = node.world.cilia("monitor", "--to-pod", "test/nobody")
    assert done.returncode == 1
    assert "no endpoint of this node is pod test/nobody" in done.stderr


def listened(node: PodNode) -> frozenset[EventKind]:
    path = node.world.bpf_root / node.world.namespace / "maps" / NAME
    with Map.open_pinned(path) as raw:
        return Listeners(raw).kinds


def test_programs_report_only_what_somebody_listens_to(node: PodNode) -> None:
    node.world.eventually(lambda: not listened(node))
    with monitoring(node, "-t", "drop"), monitoring(node, "-t", "trace") as second:
        node.world.eventually(lambda: listened(node) == {EventKind.DROP, EventKind.TRACE})
        second.end()
        node.world.eventually(lambda: listened(node) == {EventKind.DROP})
    node.world.eventually(lambda: not listened(node))


def test_each_listener_has_its_own_kinds(node: PodNode) -> None:
    with monitoring(node, "-t", "drop") as drops, monitoring(node, "-t", "trace") as traces:
        connect(node)
        forge(node)
        assert drops.line("").startswith("xx drop")
        assert traces.line("").startswith("-> ")


def test_agent_that_ends_is_told_and_its_successor_wants_nothing(node: PodNode) -> None:
    with monitoring(node) as monitor:
        node.world.eventually(lambda: bool(listened(node)))
        node.world.kill_agent()
        assert monitor.process.stderr is not None
        error = monitor.process.stderr.read()
        assert monitor.process.wait(10 * PATIENCE) == 1
    assert "did the agent end?" in error
    assert listened(node)
    done = node.world.cilia("monitor")
    assert done.returncode == 1
    assert "is the agent running?" in done.stderr
    assert "cilia bpf metrics list" in done.stderr
    node.start("--monitor-aggregation=none")
    assert not listened(node)
    with monitoring(node) as again:
        forge(node)
        assert again.line("xx drop")
        connect(node)
        assert again.line("<- endpoint", "tcp SYN")
