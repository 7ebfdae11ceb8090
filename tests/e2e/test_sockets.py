# SPDX-License-Identifier: Apache-2.0
"""Manifests change, and sockets that were translated before are closed; an agent refuses ports."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.bpf.world import fork_and_run
from tests.e2e.inside import bind
from tests.e2e.manifests import endpoint_slice, served, service
from tests.e2e.world import POD_V4, POD_V6, World, world

pytestmark = [pytest.mark.root, pytest.mark.timeout(60)]

V4, V6 = "10.203.0.10", "fd00:203::10"
CLOSED = "ECONNABORTED"

NODE_PORT = """\
apiVersion: v1
kind: Service
metadata: {name: node, namespace: test}
spec:
  type: NodePort
  clusterIP: "10.203.0.20"
  clusterIPs: ["10.203.0.20"]
  ports: [{name: tcp, protocol: TCP, port: 80, targetPort: 8080, nodePort: 30080}]
---
"""


@pytest.fixture
def w(tmp_path: Path) -> Iterator[World]:
    with world(tmp_path, "sockets") as made:
        for address in (*POD_V4[:2], *POD_V6[:2]):
            made.inside.serve(address, address, 8080)
        made.write("echo.yaml", served("echo", V4, POD_V4[:1]))
        made.write("echo6.yaml", served("echo6", V6, POD_V6[:1]))
        made.write("node.yaml", NODE_PORT + endpoint_slice("node", POD_V4[:1]))
        made.start_agent()
        made.eventually(made.ready)
        yield made


def lines(w: World, *options: str) -> list[dict[str, object]]:
    done = w.cilia("service", "connections", f"--bpf-root={w.bpf_root}", "-o", "json", *options)
    assert done.returncode == 0, done.stderr
    found: list[dict[str, object]] = json.loads(done.stdout)
    return found


def test_udp_sockets_follow_their_service_and_others_are_left_alone(w: World) -> None:
    """Also when the agent is dead while the backends go, and when none is left."""
    inside = w.inside
    first = [inside.hold(V4, 80, True), inside.hold(V6, 80, True)]
    stays = [inside.hold(V4, 80, False), inside.hold(POD_V4[0], 8080, True)]
    w.write("echo.yaml", served("echo", V4, POD_V4[1:2]))
    w.write("echo6.yaml", served("echo6", V6, POD_V6[1:2]))
    for number in first:
        w.eventually(lambda: inside.held(number) == CLOSED)  # noqa: B023
    second = inside.hold(V4, 80, True)
    w.kill_agent()
    w.write("echo.yaml", service("echo", V4))
    assert inside.held(second) == "open"
    w.start_agent()
    w.eventually(lambda: bool(inside.held(second) == CLOSED))
    assert [inside.held(number) for number in stays] == ["open", "open"]


def test_connections_are_listed_until_their_backend_is_empty(w: World) -> None:
    inside = w.inside
    for _ in range(2):
        inside.hold(V4, 80, False)
    inside.hold(V4, 80, True)
    inside.hold(POD_V4[0], 8080, False)
    expected = [
        {
            "frontend": f"{V4}:80/{protocol}",
            "service": "test/echo",
            "backend": f"{POD_V4[0]}:8080/{protocol}",
            "state": "active",
            "connections": connections,
        }
        for protocol, connections in (("TCP", 2), ("UDP", 1))
    ]
    assert lines(w) == expected
    assert lines(w, "--draining") == []
    terminating = endpoint_slice("echo", POD_V4[:2]).replace(
        f'"{POD_V4[0]}"]',
        f'"{POD_V4[0]}"]\n    conditions: {{ready: false, serving: true, terminating: true}}',
    )
    w.write("echo.yaml", service("echo", V4) + "---\n" + terminating)
    w.eventually(lambda: len(lines(w, "--draining")) == 2)
    assert lines(w, "--draining") == [line | {"state": "terminating"} for line in expected]
    w.kill_agent()
    # The maps have one state an address, and `node` still uses the one of TCP.
    states = [{"service": "", "state": state} for state in ("active", "terminating")]
    assert lines(w) == [line | state for line, state in zip(expected, states, strict=True)]


def test_a_listener_of_the_node_cannot_have_a_node_port(w: World) -> None:
    """The node is the namespace that the agent runs in: any other is a pod to it."""

    def bind_in_cgroup(address: str, port: int) -> str:
        (w.cgroup / "cgroup.procs").write_text(str(os.getpid()))
        return bind(address, port)

    def in_pod(address: str, port: int) -> str:
        return fork_and_run(lambda: bind_in_cgroup(address, port))

    assert w.inside.bind("0.0.0.0", 30080) == "EADDRINUSE"
    assert w.inside.bind("::", 30080) == "EADDRINUSE"
    assert w.inside.bind("127.0.0.1", 30081) == "ok"
    assert in_pod("0.0.0.0", 30080) == "ok"
    w.kill_agent()
    w.start_agent("--node-port-bind-protection=false")
    w.eventually(lambda: bool(w.inside.bind("127.0.0.1", 30080) == "ok"))


def test_the_answer_without_backends_is_chosen(w: World) -> None:
    w.write("echo.yaml", service("echo", V4))
    w.eventually(lambda: bool(w.inside.tcp(V4, 80).get("errno") == 111))
    w.kill_agent()
    w.start_agent("--service-no-backend-response=drop")
    w.eventually(lambda: bool(w.inside.tcp(V4, 80).get("errno") == 113))
