# SPDX-License-Identifier: Apache-2.0
"""`cilia bpf ipcache` from the pinned map alone, with no agent there."""

from __future__ import annotations

import json
from collections.abc import Iterator
from ipaddress import ip_network
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from bpf import features
from bpf.features import mount_bpffs
from bpf.maps import ipcache as codec
from bpf.maps.map import Map
from bpf.maps.types import MapFlag, MapType
from cilia.datapath.cli.bpf import bpf
from tests.bpf.world import unmount

pytestmark = pytest.mark.root

ENTRIES = {
    ("0.0.0.0/0", 0): codec.IPCacheValue(9),
    ("10.1.0.0/16", 0): codec.IPCacheValue(300, bytes([192, 0, 2, 2])),
    ("10.1.0.7/32", 0): codec.IPCacheValue(301),
    ("10.1.0.7/32", 3): codec.IPCacheValue(70000),
    ("fd00::/64", 0): codec.IPCacheValue(302),
}


@pytest.fixture
def maps(tmp_path: Path) -> Iterator[Path]:
    """The directory of the maps of the instance «test», in a bpffs of its own."""
    features.require_privilege()
    path = tmp_path / "bpffs"
    mount_bpffs(path)
    made = path / "test" / "maps"
    made.mkdir(parents=True)
    yield made
    unmount(path)


@pytest.fixture
def opened(maps: Path) -> Iterator[Map]:
    with Map.create(
        *(MapType.LPM_TRIE, codec.NAME, codec.KEY_BYTES, codec.VALUE_BYTES, 64),
        flags=MapFlag.NO_PREALLOC,
    ) as made:
        made.pin(maps / codec.NAME)
        yield made


def fill(opened: Map) -> None:
    for (text, cluster_id), value in ENTRIES.items():
        network = ip_network(text)
        key = codec.IPCacheKey(network.network_address.packed, network.prefixlen, cluster_id)
        opened.update(codec.encode_key(key), codec.encode_value(value))


def run(maps: Path, *arguments: str) -> Result:
    root = f"--bpf-root={maps.parents[1]}"
    return CliRunner().invoke(bpf, ["ipcache", *arguments, root], obj={"instance": "test"})


def test_entries_are_listed_as_the_field_lists_them(maps: Path, opened: Map) -> None:
    fill(opened)
    lines = [" ".join(line.split()) for line in run(maps, "list").output.splitlines()]
    none = "encryptkey=0 tunnelendpoint=0.0.0.0 flags=<none>"
    assert lines == [
        "IP PREFIX/ADDRESS IDENTITY",
        f"0.0.0.0/0 identity=9 {none}",
        "10.1.0.0/16 identity=300 encryptkey=0 tunnelendpoint=192.0.2.2 flags=hastunnel",
        f"10.1.0.7/32 identity=301 {none}",
        f"fd00::/64 identity=302 {none}",
        f"10.1.0.7/32@3 identity=70000 {none}",
    ]
    shown = json.loads(run(maps, "list", "-o", "json").output)
    assert shown["10.1.0.7/32"] == [f"identity=301 {none}"]
    assert len(shown) == len(ENTRIES)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("get", "10.1.0.7"), "10.1.0.7 maps to identity identity=301 "),
        (("get", "10.1.0.8"), "10.1.0.8 maps to identity identity=300 "),
        (("get", "8.8.8.8"), "8.8.8.8 maps to identity identity=9 "),
        (("get", "10.1.0.7", "--cluster-id", "3"), "maps to identity identity=70000 "),
        (("get", "fd00::9"), "fd00::9 maps to identity identity=302 "),
        (("get", "fd01::9"), "no prefix covers fd01::9"),
        (("get", "10.1.0.0/16"), "'10.1.0.0/16' is no address"),
        (("match", "10.1.0.0/16"), "10.1.0.0/16 maps to identity identity=300 "),
        (("match", "10.1.0.0/24"), "no entry is 10.1.0.0/24"),
        (("match", "10.1.0.1/16"), "has host bits set"),
    ],
)
def test_an_address_has_its_longest_prefix_and_a_prefix_its_own_entry(
    maps: Path, opened: Map, arguments: tuple[str, ...], says: str
) -> None:
    fill(opened)
    assert says in run(maps, *arguments).output


def test_an_empty_map_and_one_that_is_not_there_are_told_apart(maps: Path) -> None:
    result = run(maps, "list")
    assert result.exit_code == 1
    assert "no agent of this instance has run" in result.output
    with Map.create(
        *(MapType.LPM_TRIE, codec.NAME, codec.KEY_BYTES, codec.VALUE_BYTES, 64),
        flags=MapFlag.NO_PREALLOC,
    ) as made:
        made.pin(maps / codec.NAME)
    assert "No entries found." in run(maps, "list").output
