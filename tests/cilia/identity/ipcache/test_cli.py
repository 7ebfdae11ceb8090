# SPDX-License-Identifier: Apache-2.0
"""`cilia ip` against a real server on a unix socket."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result

from cilia.__main__ import cli
from cilia.identity.ipcache.writer import IPCacheWriter
from statedb import DB
from tables.addressing import IP
from tables.identity.identities import Identity, new_identities_table
from tables.identity.ipcache import Claim, new_ipcache_table, parse_key
from tables.sources import Source
from tests.statedb.serving import served

CLAIMS = (
    ("10.1.0.7/32", Claim(source=Source.LOCAL, owner="endpoint 7", identity=300, pod="web-0")),
    ("10.1.0.7/32", Claim(source=Source.K8S, owner="node two", identity=6)),
    ("10.1.0.0/24", Claim(source=Source.K8S, owner="x", identity=2, host=IP.parse("192.0.2.2"))),
    ("192.0.2.1/32", Claim(source=Source.LOCAL, owner="device 2 (eth0)", identity=1)),
    ("0.0.0.0/0", Claim(source=Source.LOCAL, owner="world", identity=2)),
    ("10.9.0.1/32@3", Claim(source=Source.CLUSTERMESH, owner="y", identity=70000)),
)
LABELS = ("k8s:app=web", "k8s:io.kubernetes.pod.namespace=test")


@pytest.fixture
def path(tmp_path: Path) -> Iterator[str]:
    db = DB()
    table, identities = new_ipcache_table(db), new_identities_table(db)
    with db.write_txn(table, identities) as wtxn:
        identities.insert(wtxn, Identity(300, LABELS))
        for text, claim in CLAIMS:
            cluster_id, prefix = parse_key(text)
            IPCacheWriter(table).upsert(wtxn, prefix, claim, cluster_id)
    with served(db, tmp_path / "s") as path:
        yield path


def run(path: str, *arguments: str) -> Result:
    return CliRunner().invoke(cli, ["--socket", path, "ip", *arguments])


def printed(path: str, *arguments: str) -> list[str]:
    result = run(path, *arguments)
    assert result.exit_code == 0, result.output
    return [" ".join(line.split()) for line in result.stdout.splitlines()]


def test_prefixes_are_listed_by_length_with_the_labels_of_their_identities(path: str) -> None:
    assert printed(path, "list") == [
        "IP Identity Source",
        "0.0.0.0/0 reserved:world local",
        "10.1.0.0/24 reserved:world k8s",
        "10.1.0.7/32 k8s:app=web local",
        "k8s:io.kubernetes.pod.namespace=test",
        "10.9.0.1/32@3 70000 clustermesh",
        "192.0.2.1/32 reserved:host local",
    ]
    assert printed(path, "list", "-n")[3] == "10.1.0.7/32 300 local"


def test_a_wide_list_tells_who_says_so_and_what_is_shadowed(path: str) -> None:
    lines = printed(path, "list", "-n", "-o", "wide")
    assert lines[2] == "10.1.0.0/24 2 k8s 192.0.2.2 0 x - pending"
    assert lines[3] == "10.1.0.7/32 300 local - 0 endpoint 7 node two pending"


@pytest.mark.parametrize(
    ("arguments", "prefixes"),
    [
        (("10.1.0.0/16",), ["10.1.0.0/24", "10.1.0.7/32"]),
        (("--labels", "k8s:app=web"), ["10.1.0.7/32"]),
        (("-l", "k8s:app=web", "-l", "k8s:none"), []),
        (("-l", "reserved:world", "10.0.0.0/8"), ["10.1.0.0/24"]),
        (("10.0.0.0/8@3",), ["10.9.0.1/32@3"]),
    ],
)
def test_a_list_is_narrowed(path: str, arguments: tuple[str, ...], prefixes: list[str]) -> None:
    rows = json.loads("\n".join(printed(path, "list", "-o", "json", *arguments)))
    assert [row["cidr"] for row in rows] == prefixes


@pytest.mark.parametrize(
    ("address", "prefix"),
    [("10.1.0.7", "10.1.0.7/32"), ("10.1.0.8", "10.1.0.0/24"), ("203.0.113.1", "0.0.0.0/0")],
)
def test_an_address_has_the_longest_prefix_that_covers_it(
    path: str, address: str, prefix: str
) -> None:
    result = run(path, "get", address, "-o", "yaml")
    (row,) = yaml.safe_load(result.stdout)
    assert row["cidr"] == prefix


def test_the_form_is_the_fields_with_more(path: str) -> None:
    (row,) = json.loads(run(path, "get", "10.1.0.7", "-o", "json").stdout)
    (shadowed,) = row.pop("shadowed")
    assert (shadowed["Owner"], shadowed["Identity"]) == ("node two", 6)
    assert row == {
        "cidr": "10.1.0.7/32",
        "identity": 300,
        "hostIP": "",
        "encryptKey": 0,
        "metadata": {"source": "local", "namespace": "", "name": "web-0"},
        "owner": "endpoint 7",
        "status": "pending",
    }


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("get", "fd00::1"), "no prefix covers fd00::1: `cilia ip list` shows all"),
        (("get", "x"), "'x' is not a prefix"),
        (("list", "10.0.0.0/33"), "'10.0.0.0/33' is not a prefix"),
        (("list", "-l", "k8s:none"), "no prefix is such"),
    ],
)
def test_what_is_not_found_is_said(path: str, arguments: tuple[str, ...], says: str) -> None:
    result = run(path, *arguments)
    assert result.exit_code == 1
    assert says in result.output


def test_an_agent_without_pods_says_so(tmp_path: Path) -> None:
    with served(DB(), tmp_path / "s") as path:
        assert "runs without --pod-network" in run(path, "list").output
