# SPDX-License-Identifier: Apache-2.0
"""What `cilia lb explain` says of a running agent's maps."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from typing import Any

import pytest

from cilia.linux.netns import NetNS
from tests.e2e.manifests import served
from tests.e2e.world import POD_V4, POD_V6, World, world
from tests.kernel import Kernel

pytestmark = [pytest.mark.root, pytest.mark.timeout(240)]

V4, V6 = "10.203.0.10", "fd00:203::10"
OPTIONS = ("--bpf-lb-algorithm=maglev", "--bpf-lb-external-clusterip", "--devices=eth0")


@pytest.fixture(scope="module")
def w(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with world(tmp_path_factory.mktemp("explain"), "explain") as made:
        made.write("echo.yaml", served("echo", V4, POD_V4[:3]))
        made.write("echo6.yaml", served("echo6", V6, POD_V6[:2]))
        made.write("nobody.yaml", served("nobody", "10.203.0.20", []))
        made.start_agent(*OPTIONS)
        made.eventually(made.ready)
        yield made


def explain(w: World, *arguments: str) -> list[dict[str, Any]]:
    root = f"--bpf-root={w.bpf_root}"
    done = w.cilia("lb", "explain", *arguments, root, "-o", "json")
    assert done.returncode == 0, done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


def test_a_position_in_the_table_decides_and_is_named(w: World) -> None:
    (answer,) = explain(w, "10.244.9.9:40000", "test/echo:tcp")
    assert (answer["frontend"], answer["outcome"], answer["reason"]) == (
        f"{V4}:80/TCP",
        "backend",
        "maglev",
    )
    assert answer["backends"][0].split(":")[0] in POD_V4[:3]
    assert any("position" in step["said"] for step in answer["steps"])
    assert answer["revision"] > 0


def test_answers_spread_over_the_backends_and_stay_for_a_client(w: World) -> None:
    met = {
        explain(w, f"10.244.9.9:{port}", f"{V4}:80", "--protocol=UDP")[0]["backends"][0]
        for port in range(40000, 40012)
    }
    assert len(met) > 1
    again = [explain(w, "10.244.9.9:40000", f"{V4}:80", "--protocol=tcp") for _ in range(2)]
    assert again[0] == again[1]


def test_the_other_family_has_its_own_frontends(w: World) -> None:
    (answer,) = explain(w, "[fd00::9]:40000", "test/echo6:80", "--protocol=tcp")
    assert answer["frontend"] == f"[{V6}]:80/TCP"
    assert answer["backends"][0].startswith("[fd00:204::")


def test_a_refusal_says_why(w: World) -> None:
    (answer,) = explain(w, "10.244.9.9:40000", "test/nobody:tcp")
    assert (answer["outcome"], answer["reason"]) == ("refused", "no backend")


def test_text_is_one_sentence_and_its_look_ups(w: World) -> None:
    root = f"--bpf-root={w.bpf_root}"
    shown = w.cilia("lb", "explain", "10.244.9.9:40000", "test/echo:tcp", root).stdout.splitlines()
    assert shown[0].startswith(f"{V4}:80/TCP (ClusterIP of test/echo, revision ")
    assert "goes to" in shown[1]
    assert shown[1].endswith(": maglev")
    assert all(line.startswith("    cilia_") for line in shown[2:])
    assert explain(w, "10.244.9.9:40000", "test/echo:tcp")[0]["sockets"] == "all"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["10.244.9.9", "test/echo"], "is not IP:PORT"),
        (["10.244.9.9:40000", "test/other"], "no frontend of IPv4 matches test/other"),
        (["[fd00::9]:40000", "test/echo"], "no frontend of IPv6 matches test/echo"),
    ],
)
def test_a_wrong_question_gets_one_sentence(w: World, arguments: list[str], says: str) -> None:
    done = w.cilia("lb", "explain", *arguments, f"--bpf-root={w.bpf_root}")
    assert done.returncode != 0
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_a_port_that_a_service_lacks_is_refused_as_the_kernel_does(w: World) -> None:
    answers = explain(w, "10.244.9.9:40000", f"{V4}:81")
    assert {answer["outcome"] for answer in answers} == {"refused"}
    nowhere = w.cilia("lb", "explain", "10.244.9.9:40000", "10.9.9.9:81")
    assert "no frontend of IPv4 matches 10.9.9.9:81" in nowhere.stderr


def test_a_frontend_that_is_kept_without_a_row_is_explained(w: World) -> None:
    """Its file is unread, and nothing tells what was in it."""
    w.kill_agent()
    shutil.rmtree(w.state_dir / "manifests")
    w.write("echo6.yaml", "{")
    w.start_agent(*OPTIONS)
    try:
        w.eventually(lambda: "echo6.yaml is not read" in w.cilia("status").stdout)
        shown = w.cilia("lb", "explain", "[fd00::9]:40000", f"[{V6}]:80")
        assert "the agent has no row of it" in shown.stdout
        assert f"goes to [{POD_V6[0][:4]}" in shown.stdout
    finally:
        w.write("echo6.yaml", served("echo6", V6, POD_V6[:2]))
    w.eventually(w.ready)


TAKEN = """\
apiVersion: v1
kind: Service
metadata: {name: np, namespace: test}
spec:
  type: NodePort
  clusterIP: 10.203.0.30
  ports: [{name: tcp, protocol: TCP, port: 80, targetPort: 8080, nodePort: 30781}]
---
apiVersion: v1
kind: Service
metadata: {name: lb, namespace: test}
spec:
  type: LoadBalancer
  clusterIP: 10.203.0.31
  ports: [{name: tcp, protocol: TCP, port: 30781, targetPort: 8080}]
status: {loadBalancer: {ingress: [{ip: 192.0.2.7}]}}
"""


def test_a_frontend_that_another_service_keeps_out_says_by_whom(w: World) -> None:
    with NetNS.named(w.namespace) as netns:
        Kernel(netns).veth("eth0", "peer", "192.0.2.7/24")
    w.write("taken.yaml", TAKEN)
    w.eventually(lambda: "refused:" in w.cilia("service", "list").stdout)
    shown = w.cilia("service", "list", "-n", "test").stdout
    (line,) = [line for line in shown.splitlines() if "192.0.2.7:30781/TCP" in line]
    reason = (
        "192.0.2.7:30781/TCP is an address of this node and node port 30781 of Service test/np,"
        " which keeps it"
    )
    assert line.split(None, 4)[2:] == ["LoadBalancer", "test/lb", f"refused: {reason}"]
    answers = explain(w, "10.244.9.9:40000", "192.0.2.7:30781")
    told = {answer["service"]: answer["not_in_force"] for answer in answers}
    assert told == {"test/lb": [f"refused: {reason}"], "test/np": []}
    status = w.get("/status")
    assert (status["frontends"]["refused"], status["degraded"]) == (1, [])
    root = f"--bpf-root={w.bpf_root}"
    text = w.cilia("lb", "explain", "10.244.9.9:40000", "192.0.2.7:30781", root).stdout
    assert f"  is refused: {reason}; a packet to this address" in text.splitlines()
    (w.manifests / "taken.yaml").unlink()
    w.eventually(lambda: "refused:" not in w.cilia("service", "list").stdout)


def test_sockets_that_are_not_translated_are_told(w: World) -> None:
    w.kill_agent()
    w.start_agent("--bpf-lb-sock=false", "--devices=eth0")
    w.eventually(w.ready)
    root = f"--bpf-root={w.bpf_root}"
    shown = w.cilia("lb", "explain", "10.244.9.9:40000", "test/echo:tcp", root).stdout
    assert shown.splitlines()[-1].startswith("Sockets: not translated (--bpf-lb-sock=false): prog")
    outside = w.cilia("lb", "explain", "10.244.9.9:40000", "test/echo:tcp", root, "--outside")
    assert "Sockets:" not in outside.stdout
    assert "Sockets:     not translated (--bpf-lb-sock=false)" in w.cilia("status").stdout
    assert "errno" in w.inside.tcp(V4, 80), "as it says"
