# SPDX-License-Identifier: Apache-2.0
"""A full disk under the state directory takes nothing back, also not over a restart."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from cilia.api.client import AgentUnreachable
from cilia.k8s.directory_files import UNKNOWN
from cilia.linux.mounts import mount
from tests.bpf.world import unmount
from tests.e2e.manifests import served
from tests.e2e.world import POD_V4, World, world

pytestmark = [pytest.mark.root, pytest.mark.timeout(60)]

ADDRESS = "10.203.0.10"


@pytest.fixture
def w(tmp_path: Path) -> Iterator[World]:
    """The state directory is a small file system of its own."""
    state = tmp_path / "state"
    mount("tmpfs", state)
    size = ctypes.CDLL(None).mount(b"none", os.fsencode(state), b"tmpfs", 32, b"size=64k")
    assert size == 0  # MS_REMOUNT
    try:
        with world(tmp_path, "full") as made:
            yield made
    finally:
        unmount(state)


def says(w: World, text: str) -> bool:
    try:
        return any(text in row["message"] for row in w.get("/status")["problems"])
    except AgentUnreachable:
        return False


def test_what_is_in_force_is_not_taken_back_by_an_older_copy(w: World) -> None:
    for address in POD_V4[:2]:
        w.inside.serve(address, address, 8080)
    w.write("echo.yaml", served("echo", ADDRESS, POD_V4[:1]))
    w.start_agent()
    w.eventually(w.ready)
    with pytest.raises(OSError, match="space"):
        (w.state_dir / "fill").write_bytes(bytes(1 << 20))
    # More than fits where the copy of the former was.
    note = "metadata: {annotations: {note: " + "x" * 20_000 + "}, name: echo,"
    changed = served("echo", ADDRESS, POD_V4[1:2]).replace("metadata: {name: echo,", note, 1)
    w.write("echo.yaml", changed)
    w.eventually(lambda: w.inside.tcp(ADDRESS, 80)["answer"] == POD_V4[1])
    w.eventually(lambda: says(w, "No space left on device"))
    w.kill_agent()
    w.write("echo.yaml", "{")
    loop = w.inside.loop_start(ADDRESS, 80, 50.0)
    w.start_agent()
    w.eventually(lambda: says(w, UNKNOWN))
    assert not w.ready(), "or what the file had would be removed"
    w.eventually(lambda: w.inside.loop_count(loop) > 50)
    found = w.inside.loop_stop(loop)
    assert (found["failures"], set(found["answers"])) == ([], {POD_V4[1]})
    (w.state_dir / "fill").unlink()
    w.write("echo.yaml", served("echo", ADDRESS, POD_V4[:1]))
    w.eventually(w.ready)
    w.eventually(lambda: bool(w.get("/status")["healthy"]))
    assert w.inside.tcp(ADDRESS, 80)["answer"] == POD_V4[0]
