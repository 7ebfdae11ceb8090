# SPDX-License-Identifier: Apache-2.0
"""A real agent's packet programs: everybody is served everything, also while backends go and agents
are killed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import partial

import pytest

from tests.e2e.nodeport import pass_programs
from tests.e2e.nodes import Connection
from tests.e2e.passes import (
    DROPPED,
    FAMILIES,
    KINDS,
    LOCAL,
    MOVING,
    REMOTE,
    Asked,
    Traffic,
    asked_world,
    backends,
    expectations,
    passes,
    table,
)

pytestmark = [pytest.mark.root, pytest.mark.timeout(90)]

#: As metrics call what a cluster address does not serve.
CLUSTER_ONLY = "is cluster ip"
#: Beyond what one pass of all targets takes, so that each of them is asked in each state.
ANSWERS = 60


@pytest.fixture(scope="module")
def w(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Asked]:
    with asked_world(tmp_path_factory.mktemp("passes"), "passes") as made:
        yield made


def drops(w: Asked, reason: str) -> int:
    """Packets that the node's programs refused for this reason."""
    done = w.cilia("bpf", "metrics", "list", f"--bpf-root={w.bpf_root}", "-o", "json")
    assert done.returncode == 0, done.stderr
    return sum(row["packets"] for row in json.loads(done.stdout) if row["reason"] == reason)


def test_everybody_is_served_and_cluster_ips_are_for_the_cluster(w: Asked) -> None:
    w.running()
    expected, before = expectations(), drops(w, CLUSTER_ONLY)
    found = passes(w, expected)
    print("\n" + table(found, expected))
    assert found == expected
    dropped = list(found.values()).count(DROPPED)
    assert dropped == 8 and drops(w, CLUSTER_ONLY) - before >= dropped


def answered_by(connection: Connection) -> str:
    """Name of the server, or of the error."""
    try:
        return connection.ask()[0]
    except OSError as error:
        return type(error).__name__


def test_connected_udp_clients_follow_the_backends_of_a_node_port_at_once(w: Asked) -> None:
    """Each question keeps the flow alive: without help it would have its old backend for ever."""
    w.running()
    targets = [MOVING.frontend("NodePort", family) for family in FAMILIES]
    clients = [
        Connection(kernel, *target, KINDS["udp"], timeout_s=0.3)
        for kernel in (w.nodes.client, w.client_pod)
        for target in targets
    ]
    states: list[tuple[Mapping[int, list[str]], str]] = [
        (backends(1), "local"),
        (backends(2), "remote"),
        ({family: [] for family in FAMILIES}, "ConnectionRefusedError"),
        (backends(1), "local"),
    ]
    for of_family, expected in states:
        w.write("moving.yaml", MOVING.manifest(of_family))
        for client in clients:
            w.eventually(lambda: answered_by(client) == expected, 3)  # noqa: B023
    for client in clients:
        client.close()


def test_nobody_outside_notices_agents_that_are_killed(w: Asked) -> None:
    w.running()
    targets = [s.frontend("NodePort", family) for s in (LOCAL, REMOTE) for family in FAMILIES]
    traffic = Traffic(w.nodes.client, targets)

    def more(wanted: int) -> bool:
        return traffic.answers >= wanted or bool(traffic.failures)

    for _ in range(3):
        w.kill_agent()
        w.eventually(partial(more, traffic.answers + ANSWERS))
        w.options = None
        w.running()
        w.eventually(partial(more, traffic.answers + ANSWERS))
    traffic.stop()
    print(f"\n{traffic.answers} answers, {len(traffic.failures)} failures")
    refused = w.cilia("bpf", "metrics", "list", f"--bpf-root={w.bpf_root}").stdout
    assert traffic.failures == [], refused


def test_cluster_ips_serve_outside_when_told_and_pods_do_without_their_sockets(w: Asked) -> None:
    w.running("--bpf-lb-external-clusterip", "--bpf-lb-sock-hostns-only")
    expected = expectations(external_cluster_ip=True)
    assert passes(w, expected) == expected


@pytest.mark.parametrize("how", ["testing-only", "best-effort"])
def test_everybody_is_served_with_xdp(w: Asked, how: str) -> None:
    """In the stack, and in the driver of a veth, until an agent is told to do without."""
    w.running(f"--bpf-lb-acceleration={how}")
    kind = {"testing-only": "xdpgeneric", "best-effort": "xdp"}[how]
    w.eventually(lambda: f" {kind} " in w.nodes.node[1].ip("link show eth0"))
    expected = expectations()
    with pass_programs(w.nodes):
        assert passes(w, expected) == expected
    w.running()
    w.eventually(lambda: "prog/xdp" not in w.nodes.node[1].ip("link show eth0"))
