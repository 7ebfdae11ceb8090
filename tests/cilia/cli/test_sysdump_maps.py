# SPDX-License-Identifier: Apache-2.0
"""An archive of maps of each kind: whole values, also of maps with a value for each CPU."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bpf.features import mount_bpffs
from bpf.libbpf import possible_cpus
from bpf.maps.map import Map
from bpf.maps.percpu import PerCpuMap
from bpf.maps.types import MapType
from cilia.cli.sysdump.archive import Reader
from tests.bpf.world import unmount

pytestmark = pytest.mark.root

INSTANCE = "archived"
KEYS = 100
VALUE_BYTES = 16


@pytest.fixture
def pins(tmp_path: Path) -> Iterator[Path]:
    """The directory of an instance's maps, in a bpffs of the test's own."""
    root = tmp_path / "bpffs"
    root.mkdir()
    mount_bpffs(root)
    maps = root / INSTANCE / "maps"
    maps.mkdir(parents=True)
    yield maps
    unmount(root)


def archived(root: Path, path: Path) -> Reader:
    """Run the command in a process of its own, which it may take down."""
    where = ["--output", str(path), "--bpf-root", str(root)]
    command = [sys.executable, "-m", "cilia", f"--instance={INSTANCE}", "--socket=/nowhere"]
    done = subprocess.run(
        [*command, "sysdump", *where], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return Reader(path)


@pytest.mark.parametrize("kind", [MapType.PERCPU_HASH, MapType.PERCPU_ARRAY])
def test_a_map_with_values_for_each_cpu_is_archived_whole(
    pins: Path, tmp_path: Path, kind: MapType
) -> None:
    values = [bytes([cpu + 1]) * VALUE_BYTES for cpu in range(possible_cpus())]
    with PerCpuMap(Map.create(kind, "counters", 4, VALUE_BYTES, KEYS).detach_fd()) as counters:
        for number in range(KEYS):
            counters.update_each(number.to_bytes(4, "little"), values)
        counters.pin(pins / "counters")
    reader = archived(pins.parents[1], tmp_path / "node.tar.gz")
    lines = [line.split() for line in reader.lines("kernel/maps/counters.hex")]
    reader.close()
    assert len(lines) == KEYS
    assert {value.decode() for _, value in lines} == {b"".join(values).hex()}
