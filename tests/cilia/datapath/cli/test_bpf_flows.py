# SPDX-License-Identifier: Apache-2.0
"""Connections, translations and counters as people read them, from pinned maps alone."""

from __future__ import annotations

import json
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from bpf import features
from bpf.events import METRICS_KEY, METRICS_VALUE
from bpf.features import mount_bpffs
from bpf.maps import ct, nat
from bpf.maps.cluster_nodes import VALUE_BYTES, ClusterNodeFlag, encode_value
from bpf.maps.map import Map
from bpf.maps.percpu import PerCpuMap
from bpf.maps.types import MapType
from cilia.datapath.cli.bpf import bpf
from tests.bpf.world import unmount

pytestmark = pytest.mark.root

CLIENT, NODE, VIP, POD = (
    ip_address(text).packed for text in ("192.0.2.9", "192.0.2.1", "10.96.0.1", "10.244.1.1")
)


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    """A bpffs in which the maps of the instance «test» are pinned."""
    features.require_privilege()
    path = tmp_path / "bpffs"
    mount_bpffs(path)
    (path / "test" / "maps").mkdir(parents=True)
    yield path
    unmount(path)


def pinned(root: Path, kind: MapType, name: str, key_size: int, value_size: int) -> Map:
    made = Map.create(kind, name, key_size, value_size, 64)
    made.pin(root / "test" / "maps" / name)
    return made


def run(root: Path, *arguments: str) -> Any:
    return CliRunner().invoke(bpf, [*arguments, "--bpf-root", str(root)], obj={"instance": "test"})


def test_connections_are_listed(root: Path) -> None:
    raw = pinned(root, MapType.LRU_HASH, "cilia_ct4_tcp", 16, ct.ENTRY_SIZE)
    key = ct.CtKey(VIP, CLIENT, 80, 4000, 6, ct.Direction.SERVICE)
    flags = ct.CtFlag.SEEN_REPLY | ct.CtFlag.SNAT
    address = NODE.ljust(16, b"\0")
    entry = ct.CtEntry(
        backend_id=3, rev_nat=9, flags=flags, packets=7, nat_address=address, nat_port=50000
    )
    raw.update(ct.encode_key(key), ct.encode_entry(entry))
    printed = run(root, "ct", "list").output.splitlines()
    assert printed[0].split()[:4] == ["Protocol", "Direction", "Source", "Destination"]
    assert printed[1].split()[:4] == ["TCP", "service", "192.0.2.9:4000", "10.96.0.1:80"]
    (row,) = json.loads(run(root, "ct", "list", "-o", "json").output)
    assert row["flags"] == "seen-reply,snat"
    assert row["translated"] == "source 192.0.2.1:50000"
    assert (row["backend_id"], row["rev_nat"], row["packets"]) == (3, 9, 7)
    assert row["frontend"] == "10.96.0.1:80"


def test_connection_tells_who_is_at_the_other_end_and_the_verdict(root: Path) -> None:
    raw = pinned(root, MapType.LRU_HASH, "cilia_ct4_tcp", 16, ct.ENTRY_SIZE)
    for source, generation in enumerate((0, 7, 7 | ct.VERDICT_DENIED), start=4000):
        key = ct.CtKey(VIP, CLIENT, 80, source, 6, ct.Direction.INGRESS)
        entry = ct.CtEntry(remote_identity=300, policy_generation=generation)
        raw.update(ct.encode_key(key), ct.encode_entry(entry))
    rows = json.loads(run(root, "ct", "list", "-o", "json").output)
    assert {(row["source"], row["verdict"], row["policy_generation"]) for row in rows} == {
        ("192.0.2.9:4000", "", 0),
        ("192.0.2.9:4001", "allowed", 7),
        ("192.0.2.9:4002", "denied", 7),
    }
    assert {row["remote_identity"] for row in rows} == {300}


def test_connection_tells_the_frontend_that_was_asked(root: Path) -> None:
    raw = pinned(root, MapType.LRU_HASH, "cilia_ct4_tcp", 16, ct.ENTRY_SIZE)
    for source, fields in ((4000, {"rev_nat": 9, "frontend_port": 80}), (4001, {})):
        key = ct.CtKey(POD, CLIENT, 8080, source, 6, ct.Direction.EGRESS)
        entry = ct.CtEntry(nat_address=VIP.ljust(16, b"\0"), **fields)
        raw.update(ct.encode_key(key), ct.encode_entry(entry))
    rows = json.loads(run(root, "ct", "list", "-o", "json").output)
    assert {(row["source"], row["frontend"]) for row in rows} == {
        ("192.0.2.9:4000", "10.96.0.1:80"),
        ("192.0.2.9:4001", ""),
    }


def test_translations_say_what_is_translated(root: Path) -> None:
    raw = pinned(root, MapType.LRU_HASH, "cilia_snat4", 16, 40)
    out = nat.NatKey(POD, CLIENT, 8080, 4000, 17, nat.NatDirection.OUT)
    to_node = nat.NatValue(NODE, 50000)
    to_client = nat.NatValue(CLIENT, 4000, rev_nat=9, frontend=VIP, frontend_port=80)
    raw.update(nat.encode_key(out), nat.encode_value(to_node))
    raw.update(nat.encode_key(nat.partner(out, to_node)), nat.encode_value(to_client))
    rows = json.loads(run(root, "nat", "list", "-o", "json").output)
    assert {(row["direction"], row["translated"], row["frontend"]) for row in rows} == {
        ("out", "source 192.0.2.1:50000", ""),
        ("in", "destination 192.0.2.9:4000", "10.96.0.1:80"),
    }


def test_nodes_are_listed(root: Path) -> None:
    for name, address, flags in (
        ("cilia_nodes4", "192.0.2.2", ClusterNodeFlag.NONE),
        ("cilia_nodes6", "fd00:2::1", ClusterNodeFlag.SELF),
    ):
        key = ip_address(address).packed
        raw = pinned(root, MapType.HASH, name, len(key), VALUE_BYTES)
        raw.update(key, encode_value(flags))
    rows = json.loads(run(root, "nodes", "list", "-o", "json").output)
    assert rows == [
        {"address": "192.0.2.2", "flags": ""},
        {"address": "fd00:2::1", "flags": "self"},
    ]


def test_counters_have_names(root: Path) -> None:
    raw = pinned(root, MapType.PERCPU_HASH, "cilia_metrics", 8, 16)
    counters = PerCpuMap(raw.duplicate().detach_fd())
    values = [METRICS_VALUE.pack(2, 120)] * counters.cpus
    counters.update_each(METRICS_KEY.pack(-2, 77, 1, 1), values)
    heads, cells = run(root, "metrics", "list").output.splitlines()
    assert heads.split()[:4] == ["Reason", "Flow", "reason", "Direction"]
    assert cells.split()[:4] == ["no", "backend", "158", "ingress"]
    (row,) = json.loads(run(root, "metrics", "list", "-o", "json").output)
    assert row == {
        "reason": "no backend",
        "meaning": "",
        "flow_reason": 158,
        "direction": "ingress",
        "packets": 2 * counters.cpus,
        "bytes": 120 * counters.cpus,
        "line": 77,
        "file": "lb.h",
    }


def test_without_maps_one_sentence_says_so(root: Path) -> None:
    result = run(root, "nat", "list")
    assert result.exit_code == 1
    assert "cilia_snat4, cilia_snat6: not pinned below" in result.output
