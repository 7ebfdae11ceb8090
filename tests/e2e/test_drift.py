# SPDX-License-Identifier: Apache-2.0
"""What someone else does to the agent's maps is shown as drift, and repaired."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from bpf.maps.lb import LBMaps, decode_service_key
from tests.e2e.manifests import served
from tests.e2e.world import POD_V4, World, world

pytestmark = [pytest.mark.root, pytest.mark.timeout(60)]


@pytest.fixture
def w(tmp_path: Path) -> Iterator[World]:
    with world(tmp_path, "drift") as made:
        made.write("echo.yaml", served("echo", "10.203.0.1", POD_V4[:2]))
        made.start_agent("--lb-verify-interval-s=1")
        made.eventually(made.ready)
        yield made


def test_a_lost_map_entry_is_a_row_of_drift_and_is_written_again(w: World) -> None:
    directory = next(path.parent for path in w.bpf_root.rglob("cilia_lb4_svc"))
    maps = LBMaps.open_pinned(directory)
    before = dict(maps.v4.service.items())
    assert before
    assert w.cilia("db", "show", "drift", "-o", "json").stdout == ""
    maps.v4.service.delete(next(key for key in before if decode_service_key(key).port == 80))

    rows: list[dict[str, str]] = []

    def drifted() -> bool:
        shown = w.cilia("db", "dump", "drift")
        assert shown.returncode == 0, shown.stderr
        rows[:] = json.loads(shown.stdout)["tables"]["drift"]
        return bool(rows)

    w.eventually(drifted)
    (row,) = rows
    assert (row["reconciler"], row["kind"], row["actual"]) == ("frontends", "missing", "")
    assert "ADDR=10.203.0.1:80/" in row["expected"]
    w.eventually(lambda: dict(maps.v4.service.items()) == before)
    w.eventually(lambda: not drifted())
    maps.close()


def test_pins_that_are_removed_come_back_and_the_next_start_finds_all(w: World) -> None:
    """Somebody empties the directory of the instance while its agent runs."""
    for name in POD_V4[:2]:
        w.inside.serve(name, name, 8080)
    directory = w.bpf_root / w.namespace
    w.eventually(lambda: (directory / "links" / "connect4").exists())
    before = {path.relative_to(directory) for path in directory.rglob("*") if path.is_file()}
    for path in sorted(directory.rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    assert w.get("/status")["pid"], "it answers without them"

    def pinned() -> bool:
        return before == {p.relative_to(directory) for p in directory.rglob("*") if p.is_file()}

    w.eventually(pinned, 10)
    assert w.get("/status")["pid"] == w.agents[-1].pid
    assert w.inside.tcp("10.203.0.1", 80)["answer"] in POD_V4[:2]
    w.kill_agent()
    assert w.inside.tcp("10.203.0.1", 80)["answer"] in POD_V4[:2], "all was pinned"
    w.start_agent()
    w.eventually(w.ready)
    assert w.inside.tcp("10.203.0.1", 80)["answer"] in POD_V4[:2]
