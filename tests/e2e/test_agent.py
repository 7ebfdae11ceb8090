# SPDX-License-Identifier: Apache-2.0
"""A Service manifest becomes a connected socket, through kills, edits and mistakes."""

from __future__ import annotations

import errno
import json
import os
import re
import resource
import shutil
import signal
import socket
import stat
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from cilia.linux.netns import NetNS
from tests.e2e.manifests import endpoint_slice, served, service
from tests.e2e.world import POD_V4, POD_V6, World, world

pytestmark = [pytest.mark.root, pytest.mark.timeout(60)]

V4, OTHER_V4, V6 = "10.203.0.10", "10.203.0.11", "fd00:203::10"
NAMES = {*POD_V4}


@pytest.fixture
def w(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[World]:
    number = abs(hash(request.node.name)) % 10_000
    with world(tmp_path, str(number)) as made:
        for address in (*POD_V4[:2], *POD_V6[:2]):
            made.inside.serve(address, address, 8080)
        yield made


@pytest.fixture
def echo(w: World) -> World:
    """A world whose agent serves `echo` on a v4 and a v6 address with two backends each."""
    w.write("echo.yaml", served("echo", V4, POD_V4[:2]))
    w.write("echo6.yaml", served("echo6", V6, POD_V6[:2]))
    w.start_agent()
    w.eventually(w.ready)
    return w


def counted(w: World, loop: int, wanted: int) -> bool:
    """Whether a loop of connections has had so many answers."""
    return bool(w.inside.loop_count(loop) >= wanted)


def maps_of(w: World) -> str:
    """The load-balancer maps as the kernel has them."""
    return w.cilia("bpf", "lb", "list").stdout


def cpu_of_children_s() -> float:
    """CPU time of ended children: what a command costs, however busy the machine is."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def test_both_backends_answer_through_the_cluster_ip(echo: World) -> None:
    for address, backends in ((V4, POD_V4[:2]), (V6, POD_V6[:2])):
        results = [echo.inside.tcp(address, 80) for _ in range(40)]
        assert {result["answer"] for result in results} == set(backends)
        assert all(result["peer"] == [address, 80] for result in results), "the service's address"


def test_an_ipv6_socket_reaches_an_ipv4_service(echo: World) -> None:
    result = echo.inside.mapped(V4, 80)
    assert result["answer"] in POD_V4
    assert result["peer"] == [f"::ffff:{V4}", 80]


@pytest.mark.parametrize("address", [V4, V6])
def test_udp_works_connected_and_unconnected(echo: World, address: str) -> None:
    backends = set(POD_V4[:2] if address == V4 else POD_V6[:2])
    connected = echo.inside.udp_connected(address, 80)
    assert connected["answer"] in backends
    assert connected["peer"] == connected["from"] == [address, 80]
    unconnected = echo.inside.udp_unconnected(address, 80, 40)
    assert set(unconnected["answers"]) == backends
    assert unconnected["from"] == [[address, 80]], "replies come from the service's address"


def test_a_service_without_backends_refuses(w: World) -> None:
    w.write("lonely.yaml", service("lonely", OTHER_V4) + "---\n" + endpoint_slice("lonely", []))
    w.start_agent()
    w.eventually(w.ready)
    assert w.inside.tcp(OTHER_V4, 80)["errno"] == errno.ECONNREFUSED


def test_saving_a_file_changes_what_answers_within_a_second(echo: World) -> None:
    started = time.monotonic()
    echo.write("echo.yaml", served("echo", V4, POD_V4[1:2]))
    echo.eventually(
        lambda: {echo.inside.tcp(V4, 80)["answer"] for _ in range(12)} == {POD_V4[1]}, 5
    )
    assert time.monotonic() - started < 1.0
    echo.write("more.yaml", served("more", OTHER_V4, POD_V4[:1], port=8000))
    echo.eventually(lambda: echo.inside.tcp(OTHER_V4, 8000).get("answer") == POD_V4[0])
    (echo.manifests / "more.yaml").unlink()
    echo.eventually(lambda: "errno" in echo.inside.tcp(OTHER_V4, 8000))


def test_no_connection_fails_while_the_agent_is_killed_and_started(echo: World) -> None:
    loop = echo.inside.loop_start(V4, 80, 50.0)
    stream = echo.inside.stream_open(V4, 80)
    for _ in range(3):
        echo.kill_agent()
        wanted = echo.inside.loop_count(loop) + 25
        echo.eventually(partial(counted, echo, loop, wanted))
        echo.start_agent()
        echo.eventually(echo.ready)
        assert echo.inside.stream_ask(stream) in NAMES
    result = echo.inside.loop_stop(loop)
    assert result["failures"] == []
    assert sum(result["answers"].values()) > 100


def test_a_service_deleted_while_the_agent_was_down_is_gone_after_the_start(echo: World) -> None:
    echo.write("gone.yaml", served("gone", OTHER_V4, POD_V4[:1]))
    echo.eventually(lambda: echo.inside.tcp(OTHER_V4, 80).get("answer") == POD_V4[0])
    echo.kill_agent()
    (echo.manifests / "gone.yaml").unlink()
    assert OTHER_V4 in maps_of(echo)
    echo.start_agent()
    echo.eventually(lambda: OTHER_V4 not in maps_of(echo))
    assert "errno" in echo.inside.tcp(OTHER_V4, 80)
    assert V4 in maps_of(echo)


def test_a_broken_file_of_which_nothing_is_known_holds_up_no_other_at_a_start(w: World) -> None:
    """What it had stays; the good files' additions and changes come into force; then it is read."""
    w.write("echo.yaml", served("echo", V4, POD_V4[:1]))
    w.write("broken.yaml", served("other", OTHER_V4, POD_V4[:1]))
    w.start_agent()
    w.eventually(w.ready)
    w.kill_agent()
    shutil.rmtree(w.state_dir / "manifests")
    w.write("broken.yaml", "kind: [unclosed\n")
    w.write("echo.yaml", served("echo", V4, POD_V4[1:2]))
    w.write("new.yaml", served("new", "10.203.0.12", POD_V4[1:2]))
    w.write("empty.yaml", served("empty", "10.203.0.13", []))
    w.start_agent()
    w.eventually(lambda: w.inside.tcp("10.203.0.12", 80).get("answer") == POD_V4[1])
    both = {w.inside.tcp(V4, 80)["answer"] for _ in range(40)}
    assert both == set(POD_V4[:2]), "the broken file may have a slice with the backend of before"
    assert w.inside.tcp(OTHER_V4, 80)["answer"] == POD_V4[0], "nothing is removed"
    (degraded,) = [row for row in w.get("/status")["degraded"] if "manifests" in row["component"]]
    assert degraded["message"].startswith("broken.yaml is not read, and nothing tells")
    (w.manifests / "broken.yaml").unlink()
    w.eventually(w.ready)
    w.eventually(lambda: "errno" in w.inside.tcp(OTHER_V4, 80))
    assert w.inside.tcp("10.203.0.13", 80)["errno"] == errno.ECONNREFUSED
    assert {w.inside.tcp(V4, 80)["answer"] for _ in range(12)} == {POD_V4[1]}


def test_sigterm_leaves_traffic_and_cleanup_ends_it(echo: World) -> None:
    process = echo.agents[-1]
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 0
    assert echo.inside.tcp(V4, 80)["answer"] in NAMES
    paths = (f"--state-dir={echo.state_dir}", f"--bpf-root={echo.bpf_root}")
    cleaned = echo.cilia("cleanup", *paths)
    assert cleaned.returncode == 0, cleaned.stderr
    assert "errno" in echo.inside.tcp(V4, 80)
    assert not echo.state_dir.exists()
    assert not any(echo.bpf_root.iterdir()), "unmounted, and empty below"


@pytest.mark.parametrize("shared", ["state-dir", "bpf-root", "cgroup-root"])
def test_a_second_agent_is_refused_with_the_pid_of_the_first(
    echo: World, tmp_path: Path, shared: str
) -> None:
    first = echo.agents[-1].pid
    own = {name: tmp_path / f"{name}2" for name in ("state-dir", "bpf-root", "cgroup-root")}
    own["cgroup-root"] = echo.cgroup / "second"
    for path in own.values():
        path.mkdir()
    paths = [f"--{name}={path}" for name, path in own.items() if name != shared]
    try:
        assert echo.start_agent(*paths).wait(20) == 1
    finally:
        own["cgroup-root"].rmdir()
        if shared == "cgroup-root":  # the last to be locked: the second mounted its bpffs before
            places = (f"--state-dir={own['state-dir']}", f"--bpf-root={own['bpf-root']}")
            assert echo.cilia("cleanup", *places).returncode == 0
    log = (echo.directory / "agent.log").read_text()
    assert f"pid {first}" in log
    assert "Traceback" not in log


def test_the_socket_is_private_and_commands_answer_quickly(echo: World) -> None:
    mode = stat.S_IMODE(os.stat(echo.state_dir / "cilia.sock").st_mode)
    assert mode == 0o600
    for command, expected in (
        (("status",), r"Agent: +OK"),
        (("db", "show", "frontends"), rf"{re.escape(V4)}:80/TCP .*ClusterIP"),
        (("db", "show", "services", "-o", "json"), '"Name": "test/echo"'),
        (("service", "list"), rf"{re.escape(V4)}:80/TCP"),
        (("bpf", "lb", "list", f"--bpf-root={echo.bpf_root}"), rf"ADDR={re.escape(V4)}:80/TCP"),
    ):
        cpu_s = 9.9
        for _ in range(3):
            before = cpu_of_children_s()
            done = echo.cilia(*command)
            cpu_s = min(cpu_s, cpu_of_children_s() - before)
            assert done.returncode == 0, done.stdout + done.stderr
        assert re.search(expected, done.stdout), done.stdout
        assert cpu_s < 0.3, f"cilia {' '.join(command)} took {cpu_s:.2f} s of CPU"


def test_tables_are_dumped_as_json_and_metrics_are_served(echo: World) -> None:
    dump = echo.get("/statedb/dump")
    assert {"services", "frontends", "backends"} <= set(dump["tables"])
    assert echo.get("/statedb/dump/frontends")["instance"] == dump["instance"]


def test_every_kind_of_address_is_answered_from_the_node(w: World) -> None:
    every = service("every", V4).replace(
        "spec:", "spec:\n  type: LoadBalancer\n  externalIPs: [10.203.0.12]"
    )
    every = every.replace("protocol: TCP, port: 80,", "protocol: TCP, port: 80, nodePort: 30080,")
    every += "status: {loadBalancer: {ingress: [{ip: 10.203.0.13}]}}\n"
    w.write("every.yaml", every + "---\n" + endpoint_slice("every", POD_V4[:2]))
    w.start_agent()
    w.eventually(w.ready)
    rows = w.cilia("db", "show", "node-addresses", "-o", "json").stdout
    nodes = [row["addr"] for row in map(json.loads, rows.replace("}\n{", "}\0{").split("\0"))]
    node_ports = [(ip, 30080) for ip in nodes if ":" not in ip and not ip.startswith("127.")]
    assert node_ports, rows
    w.eventually(lambda: f"ADDR={node_ports[0][0]}:30080/TCP" in maps_of(w))
    for address, port in ((V4, 80), ("10.203.0.12", 80), ("10.203.0.13", 80), node_ports[0]):
        result = w.inside.tcp(address, port)
        assert result.get("answer") in NAMES, (address, port, result)
        assert result["peer"] == [address, port]


def test_the_shell_asks_the_running_agent_and_writes_nothing(echo: World) -> None:
    shown = echo.cilia("shell", "lb/maps-dump")
    assert shown.returncode == 0, shown.stderr
    assert f"ADDR={V4}:80/TCP SLOT=1" in shown.stdout
    columns = echo.cilia("shell", "db/get", "frontends", f"{V4}:80/TCP", "--columns=Status")
    assert "Done" in columns.stdout, columns.stderr
    for refused in (("db/delete", "frontends", "x"), ("lb/maps-restore",)):
        assert echo.cilia("shell", *refused).returncode != 0


def test_a_pin_that_somebody_removed_is_back_within_two_seconds(echo: World) -> None:
    pin = echo.bpf_root / echo.namespace / "links" / "connect4"
    pin.unlink()
    started = time.monotonic()
    echo.eventually(pin.exists, 5)
    assert time.monotonic() - started < 2.0
    assert echo.inside.tcp(V4, 80)["answer"] in NAMES
    # The row says what was found, until a later look finds it repaired.
    echo.eventually(lambda: "connect4" not in echo.cilia("db", "show", "drift").stdout)
    assert "not in force" in (echo.directory / "agent.log").read_text()


def test_metrics_and_health_are_served_over_tcp_when_asked_for(w: World) -> None:
    w.write("echo.yaml", served("echo", V4, POD_V4[:1]))
    w.write("bad.yaml", served("bad", OTHER_V4, POD_V4[:1]).replace("port: 80,", "port: 0,"))
    metrics, health = free_port(), free_port()
    w.start_agent(f"--prometheus-serve-addr=:{metrics}", f"--agent-health-port={health}")
    w.eventually(w.ready)
    text = http_get(w, metrics, "/metrics")
    assert 'cilia_frontends{status="done"} 2.0' in text
    assert 'cilia_problems{file="bad.yaml",kind="Service"} 2.0' in text, "both of its ports"
    assert "cilia_reconciler_round_seconds_count" in text
    for probe in ("/healthz", "/livez", "/readyz"):
        assert '"status":"ok"' in http_get(w, health, probe)
    for port, path in ((metrics, "/statedb/dump"), (health, "/metrics"), (metrics, "/healthz")):
        with pytest.raises(urllib.error.HTTPError, match="404"):
            http_get(w, port, path)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def http_get(w: World, port: int, path: str) -> str:
    """Asked inside the namespace, where the agent listens."""

    def ask() -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
            return str(answer.read().decode())

    with NetNS.named(w.namespace) as namespace:
        return namespace.run(ask)


def test_a_mistake_is_named_and_nothing_else_is_touched(echo: World) -> None:
    bad = served("bad", OTHER_V4, POD_V4[:1]).replace("port: 80,", "port: 70000,")
    echo.write("bad.yaml", bad)
    echo.write("broken.yaml", "kind: [unclosed\n")
    echo.eventually(lambda: len(echo.get("/status")["problems"]) >= 2)
    status = echo.cilia("status")
    assert status.returncode == 1
    assert re.search(r"bad\.yaml.*Service test/bad.*spec\.ports\[0\]\.port", status.stdout)
    assert "broken.yaml" in status.stdout
    assert echo.inside.tcp(V4, 80)["answer"] in NAMES
    # What was in force from a file that is broken now stays in force.
    echo.write("echo.yaml", "kind: [unclosed\n")
    echo.eventually(lambda: "echo.yaml" in echo.cilia("status").stdout)
    assert echo.inside.tcp(V4, 80)["answer"] in NAMES
    echo.write("echo.yaml", served("echo", V4, POD_V4[:2]))
    (echo.manifests / "bad.yaml").unlink()
    (echo.manifests / "broken.yaml").unlink()
    echo.eventually(lambda: echo.get("/status")["healthy"])
