# SPDX-License-Identifier: Apache-2.0
"""A cluster leaves nothing: not when its maker is killed, and not after `make node-down`."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bpf.errors import NotFound
from bpf.link import Link, all_links
from bpf.maps.map import Map
from cilia.linux.mounts import mounts
from cilia.linux.netns import NetNS

from . import leftovers
from .__main__ import DIRECTORY, NAME
from .cgroups import hierarchies
from .cluster import Cluster
from .machine import REPOSITORY
from .networks import ON_BRIDGE

MAKER = """
import json, sys, time
from pathlib import Path
from tests.node.cluster import Cluster
with Cluster(sys.argv[1], Path(sys.argv[2]), dual_stack=False) as cluster:
    print(json.dumps(cluster.api.get("/api/v1/nodes/n1")["spec"]["podCIDRs"]), flush=True)
    time.sleep(600)
"""


def traces(name: str, record: leftovers.Record | None = None) -> set[str]:
    """What of a cluster is on this machine; its record, if there was one, knows more names."""
    found = {f"namespace {entry}" for entry in NetNS.names() if entry.startswith(f"{name}-")}
    for root in hierarchies():
        found |= {str(path) for path in root.glob(f"{name}-*")}
    found |= {f"mount {e.path}" for e in mounts() if name in str(e.path)}
    found |= {f"process {text}" for text in processes() if name in text}
    found |= {f"record {entry.name}" for entry in leftovers.records() if entry.name == name}
    if record is not None:
        found |= {path for path in record.directories if Path(path).exists()}
        numbers = record.processes.items()
        found |= {f"process {pid}" for pid, started in numbers if leftovers.alive(pid, started)}
    return found


def processes() -> Iterator[str]:
    """Command and control groups of all but this one."""
    for entry in Path("/proc").glob("[0-9]*"):
        pid = int(entry.name)
        if pid != os.getpid() and leftovers.start_time(pid) is not None:
            try:
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                yield f"{entry.name} {command} {(entry / 'cgroup').read_text()}"
            except (FileNotFoundError, ProcessLookupError):
                continue  # ended meanwhile


def devices() -> set[str]:
    """Of this machine's own network namespace."""
    return {name for _, name in socket.if_nameindex()}


class Pinned:
    """Links and maps that a node's agent has pinned, by the kernel's numbers."""

    def __init__(self, node: int) -> None:
        """`node`: the node's first process."""
        pins = Path(f"/proc/{node}/root/sys/fs/bpf/cilia")
        self.links, self.maps = set[int](), set[int]()
        for path in (pins / "links").iterdir():
            with Link.open_pinned(path) as link:
                self.links.add(link.info().id)
        for path in (pins / "maps").iterdir():
            with Map.open_pinned(path) as opened:
                self.maps.add(opened.info.id)

    def left(self) -> bool:
        return bool({info.id for info in all_links()} & self.links) or any(
            map(self.has_map, self.maps)
        )

    @staticmethod
    def has_map(number: int) -> bool:
        try:
            Map.by_id(number).close()
        except NotFound:
            return False
        return True


@pytest.mark.timeout(400)
def test_a_cluster_of_one_family_whose_maker_is_killed_is_removed_by_the_next(
    tmp_path: Path,
) -> None:
    name = f"cilia-killed-{os.getpid()}"
    before = devices()
    maker = subprocess.Popen(
        [sys.executable, "-c", MAKER, name, str(tmp_path)],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert maker.stdout is not None
        (pods,) = json.loads(maker.stdout.readline())
        assert pods.startswith("10.244.")
        (record,) = (r for r in leftovers.records() if r.name == name)
        assert not record.abandoned()
    finally:
        maker.send_signal(signal.SIGKILL)
        maker.communicate()
    assert record.abandoned()
    assert traces(name, record) != set()
    record.remove()
    assert traces(name, record) == set()
    assert devices() == before


@ON_BRIDGE
@pytest.mark.timeout(600)
def test_a_cluster_that_is_left_running_is_taken_down_and_a_watched_one_is_not(
    cluster: Cluster,
) -> None:
    def make(target: str) -> str:
        command = [sys.executable, "-m", "tests.node", target]
        return subprocess.run(
            command, cwd=REPOSITORY, check=True, capture_output=True, text=True
        ).stdout

    before = devices()
    try:
        told = make("up")
        assert "KUBECONFIG=" in told
        with pytest.raises(subprocess.CalledProcessError):
            make("up")
        (record,) = (r for r in leftovers.records() if r.name == NAME)
        found = re.search(r"--target=(\d+)", told)
        assert found is not None, told
        pinned = Pinned(int(found[1]))
        assert pinned.links and pinned.maps and pinned.left()
        assert traces(NAME, record) != set()
    finally:
        assert NAME in make("down")
    assert traces(NAME, record) == set()
    assert not DIRECTORY.exists()
    assert devices() == before
    # The kernel frees what was pinned some time after the last mount of its bpffs is gone.
    cluster.eventually(lambda: not pinned.left(), "the end of what was pinned")
    assert make("down") == "no cluster is running\n"
    cluster.wait_nodes()
    assert traces(cluster.name) != set()
