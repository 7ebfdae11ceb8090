# SPDX-License-Identifier: Apache-2.0
"""Pins of maps that somebody removed or replaced while no agent ran: the maps are found again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bpf.datapath import NodeDatapath, cleanup
from bpf.maps.lb import IPV4, encode_id
from bpf.maps.map import Map
from bpf.maps.types import MapType
from bpf.sock import SockConfig
from tests.bpf.test_sock_takeover import start
from tests.bpf.world import World

pytestmark = pytest.mark.root

BACKENDS = "cilia_lb4_be"


@pytest.fixture
def config(world: World) -> Iterator[SockConfig]:
    config = SockConfig(world.bpffs / "node", world.cgroup, 1024, 1024)
    yield config
    cleanup(config.pin_dir)


def ids(maps_dir: Path) -> dict[str, int]:
    found = {}
    for path in maps_dir.iterdir():
        with Map.open_pinned(path) as opened:
            found[path.name] = opened.info.id
    return found


def removed(maps_dir: Path) -> None:
    (maps_dir / BACKENDS).unlink()


def emptied(maps_dir: Path) -> None:
    for path in maps_dir.iterdir():
        path.unlink()


def renamed(maps_dir: Path) -> None:
    maps_dir.rename(maps_dir.with_name("elsewhere"))


def replaced_by_an_equal_one(maps_dir: Path) -> None:
    """It would pass for the one in force, and is empty."""
    with Map.open_pinned(maps_dir / BACKENDS) as old:
        info = old.info
        made = Map.create(
            MapType(info.type),
            info.name,
            info.key_size,
            info.value_size,
            info.max_entries,
            flags=info.flags,
        )
        with made:
            made.replace_pin(maps_dir / BACKENDS)


@pytest.mark.parametrize("deed", [removed, emptied, renamed, replaced_by_an_equal_one])
def test_a_map_in_force_gets_its_pin_back(config: SockConfig, deed: Callable[[Path], None]) -> None:
    maps_dir = config.pin_dir / "maps"
    start(config).close()
    before = ids(maps_dir)
    key, value = encode_id(7), bytes(IPV4.backend_value.size)
    with Map.open_pinned(maps_dir / BACKENDS) as backends:
        backends.update(key, value)
    deed(maps_dir)
    node = NodeDatapath(config)
    node.open_maps().close()
    try:
        assert BACKENDS in node.put_back
        found = ids(maps_dir)
        assert {name: found[name] for name in node.put_back} == {
            name: before[name] for name in node.put_back
        }
        # What no program uses is gone with its pin.
        assert not set(node.fresh) & set(node.put_back)
        assert node.map(BACKENDS).lookup(key) == value
    finally:
        node.close()
