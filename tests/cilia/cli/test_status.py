# SPDX-License-Identifier: Apache-2.0
"""What `cilia status` prints of the tables."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from cilia.__main__ import cli
from cilia.cli.status import lines
from cilia.linux.lock import InstanceLock

ANSWER: dict[str, Any] = {
    "healthy": True,
    "version": "1",
    "pid": 7,
    "uptime_s": 3.0,
    "instance": "cilia",
    "instance_id": "0123",
    "source": "directory",
    "synchronised": True,
    "frontends": {"done": 0, "pending": 0, "error": 0, "refused": 0},
    "replacement": "serve",
    "datapath": {"mode": "memory", "sockets": "all", "links": [], "maps": []},
    "watches": [],
    "degraded": [],
    "problems": [],
    "others": {"programs": [], "kube_proxy": [], "error": ""},
}


def printed(**row: Any) -> str:
    """The line of one table, with its colours."""
    table = {"name": "t", "objects": 5, "revision": 9, "pending": [], **row}
    text = list(lines({**ANSWER, "tables": [table]}))
    assert text[-2] == "Tables:"
    return text[-1]


@pytest.mark.parametrize(
    ("used", "budget", "says"),
    [
        (0, 1 << 20, "0 B of 1.0 MiB"),
        (1023, None, "1023 B"),
        (1536, 256 << 20, "1.5 KiB of 256 MiB"),
        (200 << 10, 2 << 30, "200 KiB of 2.0 GiB"),
        (3 << 40, 1 << 20, "3072 GiB of 1.0 MiB, over its budget"),
        (1 << 20, 1 << 20, "1.0 MiB of 1.0 MiB"),
    ],
)
def test_the_size_of_a_table_stands_beside_its_budget(
    used: int, budget: int | None, says: str
) -> None:
    line = click.unstyle(printed(bytes=used, budget_bytes=budget))
    assert line.split() == ["t", "5", "objects", "revision", "9", *says.split()]


def test_programs_are_counted_by_where_they_are() -> None:
    links = [{"name": "connect4", "at": "cgroup"}, *({"name": n, "at": "device"} for n in "ab")]
    text = list(lines({**ANSWER, "tables": [], "datapath": {**ANSWER["datapath"], "links": links}}))
    assert "Datapath:    memory, 1 programs attached to the cgroup, 2 to devices" in text


@pytest.mark.parametrize(
    ("sockets", "says"),
    [
        ("all", "translated at connect, those of this node and of its pods"),
        ("node", "those of this node alone are translated at connect"),
        ("none", "programs of this node reach no Service"),
    ],
)
def test_it_says_whose_sockets_are_translated(sockets: str, says: str) -> None:
    links = [{"name": "recvmsg4", "at": "cgroup"}]
    datapath = {**ANSWER["datapath"], "links": links, "sockets": sockets}
    (line,) = [
        line
        for line in lines({**ANSWER, "tables": [], "datapath": datapath})
        if line.startswith("Sockets:")
    ]
    assert says in line


def pod_network(**fields: Any) -> list[str]:
    """The lines of the pod network."""
    pods = {
        "endpoints": {"ready": 3, "waiting-for-identity": 1},
        "ignored_annotations": fields.pop("ignored", {}),
        "routing": "native",
        "ipam": {"mode": "kubernetes", "pools": [], "refused": [], **fields.pop("ipam", {})},
    }
    if "chaining" in fields:
        pods["chaining"] = fields.pop("chaining")
    answer = {**ANSWER, "tables": [], "pod_network": pods, **fields}
    starts = ("Endpoints:", "Chaining:", "Annotations:", "IPAM:", "Masquerade:")
    return [click.unstyle(line) for line in lines(answer) if line.startswith(starts)]


def test_the_pod_network_has_no_lines_where_it_is_off() -> None:
    assert not any(line.startswith("IPAM:") for line in lines({**ANSWER, "tables": []}))


def test_the_pod_network_says_how_full_its_prefixes_are() -> None:
    four = {"prefix": "10.0.1.0/24", "size": 254, "in_use": 4, "quarantined": 2}
    six = {"prefix": "fd00::/64", "size": 2**64 - 1, "in_use": 4, "quarantined": 0}
    assert pod_network(ipam={"pools": [four, six]}) == [
        "Endpoints:   3 ready, 1 waiting-for-identity, routing native",
        "IPAM:        kubernetes, 10.0.1.0/24 4 of 254 in use and 2 in quarantine,"
        " fd00::/64 4 of 2^64 in use",
        "Masquerade:  off: what pods send to the world keeps its source",
    ]


def test_another_plugin_has_addresses_and_routes_where_ours_stands_behind_it() -> None:
    ipam = {"mode": "external", "network": "cbr0"}
    assert pod_network(ipam=ipam, chaining="flannel")[:3] == [
        "Endpoints:   3 ready, 1 waiting-for-identity, routing by another plugin",
        "Chaining:    flannel",
        "IPAM:        external, by the plugin of network cbr0",
    ]


def test_annotations_that_change_nothing_are_named() -> None:
    lines = pod_network(ignored={"kubernetes.io/egress-bandwidth": 2})
    assert lines[1] == "Annotations: not in force: kubernetes.io/egress-bandwidth (2)"


def test_a_prefix_that_is_refused_says_why() -> None:
    wrong = "10.0.1.0/24 has the node's own address 10.0.1.1 (eth0)"
    assert pod_network(ipam={"refused": [wrong]})[1] == f"IPAM:        kubernetes, {wrong}"
    assert pod_network()[1] == "IPAM:        kubernetes, no prefix for pods yet"


@pytest.mark.parametrize(
    ("report", "says"),
    [
        ({"ipv4": True, "ipv6": True, "exclusions": 0, "first": []}, "IPv4 and IPv6 by programs"),
        (
            {"ipv4": True, "ipv6": False, "exclusions": 3, "first": ["10.0.0.0/8", "10.1.0.0/16"]},
            "IPv4 by programs of devices, but not to 10.0.0.0/8, 10.1.0.0/16 and 1 more",
        ),
    ],
)
def test_masquerading_says_where_the_source_is_kept(report: dict[str, Any], says: str) -> None:
    assert says in pod_network(masquerade=report)[2]


def test_a_table_over_its_budget_stands_out() -> None:
    red = click.style("x", fg="red").partition("x")[0]
    assert red in printed(bytes=2 << 20, budget_bytes=1 << 20)
    assert red not in printed(bytes=1 << 20, budget_bytes=1 << 20)


def test_what_a_table_waits_for_comes_last() -> None:
    line = printed(bytes=1, budget_bytes=None, pending=["services"])
    assert click.unstyle(line).endswith("1 B  waits for services")


def watch_line(**row: Any) -> str:
    watch = {
        "resource": "services",
        "state": "watching",
        "listed": row.get("proof_age_s", 0.0) is not None,
        "objects": 3,
        "resource_version": 7,
        "proof_age_s": 12.3,
        "repairs": 0,
        "errors": 0,
        "error": "",
        **row,
    }
    text = list(lines({**ANSWER, "watches": [watch], "tables": []}))
    assert "Watches:" in text
    return text[text.index("Watches:") + 1]


def test_a_watch_shows_how_old_its_proof_is() -> None:
    line = click.unstyle(watch_line())
    assert " ".join(line.split()) == "services 3 objects watching, proven 12s ago"
    assert "not listed yet" in watch_line(proof_age_s=None)
    assert watch_line(repairs=2).endswith("proven 12s ago, 2 repaired")


def test_a_watch_that_fails_stands_out_with_its_error() -> None:
    line = watch_line(state="failed", error="503: etcd is away")
    assert click.style("failed", fg="red") in line
    assert line.endswith(": 503: etcd is away")


def test_an_agent_whose_socket_is_gone_is_named(tmp_path: Path) -> None:
    lock = InstanceLock()
    command = [f"--socket={tmp_path / 'cilia.sock'}", "status"]
    assert "no agent answers" in CliRunner().invoke(cli, command).output
    lock.acquire(tmp_path)
    try:
        assert f"an agent runs (pid {os.getpid()})" in CliRunner().invoke(cli, command).output
    finally:
        lock.release()
