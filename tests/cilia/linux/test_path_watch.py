# SPDX-License-Identifier: Apache-2.0
"""The entries on the way to a path, and what is told of them."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import anyio
import pytest
from inotify_simple import INotify

from cilia.linux.mounts import mount
from cilia.linux.path_watch import DEBOUNCE_S, PathWatch, entries
from tests.bpf.world import unmount


def test_the_way_goes_through_the_targets_of_links(tmp_path: Path) -> None:
    base = tmp_path.resolve()
    (base / "real" / "deep").mkdir(parents=True)
    (base / "link").symlink_to("real/../real/deep")
    way = [path.relative_to(base) for path in entries(base / "link" / "x") if path > base]
    assert way == [Path(p) for p in ("link", "real", "real", "real/deep", "real/deep/x")]


def test_a_loop_of_links_ends(tmp_path: Path) -> None:
    (tmp_path / "one").symlink_to("two")
    (tmp_path / "two").symlink_to("one")
    assert len(list(entries(tmp_path / "one"))) < 100


async def test_what_others_do_beside_the_way_is_not_told(tmp_path: Path) -> None:
    (tmp_path / "place").mkdir()
    with PathWatch([tmp_path / "place"]) as watch:
        (tmp_path / "beside").write_text("")
        (tmp_path / "place" / "inside").write_text("")
        assert await watch.wait(0.3) == frozenset()
        (tmp_path / "place").rename(tmp_path / "gone")
        changed = await watch.wait(5)
        assert changed == {tmp_path / "place"}
        assert watch.leads_elsewhere(changed)


async def test_what_comes_where_nothing_was_is_told(tmp_path: Path) -> None:
    with PathWatch([tmp_path / "not" / "yet"]) as watch:
        (tmp_path / "not").mkdir()
        assert watch.leads_elsewhere(await watch.wait(5))


async def test_lost_events_are_told(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    for path in (one, other):
        path.write_text("")
    most = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    with PathWatch([], [tmp_path]) as watch:
        for _ in range(most // 2 + 1):  # the kernel takes equal ones in a row for one
            os.utime(one)
            os.utime(other)
        assert watch.leads_elsewhere(await watch.wait(5))


async def test_a_wait_that_is_over_or_cancelled_loses_nothing(tmp_path: Path) -> None:
    with PathWatch([], [tmp_path]) as watch:
        (tmp_path / "one").write_text("")
        assert await watch.wait(DEBOUNCE_S / 3) == frozenset()
        with anyio.move_on_after(DEBOUNCE_S / 3):
            await watch.wait()
        assert await watch.wait(5) == {tmp_path / "one"}


STARTS_NO_PROCESS = """
import sys, pathlib
sys.addaudithook(lambda event, _: event in ("subprocess.Popen", "os.posix_spawn") and sys.exit(3))
from cilia.linux.path_watch import PathWatch
PathWatch([pathlib.Path("/tmp")]).close()
"""


def test_a_watch_starts_no_process() -> None:
    assert subprocess.run([sys.executable, "-c", STARTS_NO_PROCESS], check=False).returncode == 0


@pytest.mark.parametrize(
    ("call", "code", "setting"),
    [
        ("__init__", errno.EMFILE, "max_user_instances"),
        ("add_watch", errno.ENOSPC, "max_user_watches"),
    ],
)
def test_a_setting_that_is_too_low_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, code: int, setting: str
) -> None:
    """The settings are the machine's, and a user namespace is not to be had everywhere."""

    def refused(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(INotify, call, refused)
    with pytest.raises(OSError, match=rf"raise fs\.inotify\.{setting} by sysctl"):
        PathWatch([tmp_path])


@pytest.mark.root
async def test_a_mount_on_the_way_is_told_and_no_other(tmp_path: Path) -> None:
    place, other = tmp_path / "on" / "the way", tmp_path / "other"
    place.mkdir(parents=True)
    with PathWatch([place]) as watch:
        mount("tmpfs", other)
        unmount(other)
        assert not watch.leads_elsewhere(await watch.wait(0.3))
        mount("tmpfs", tmp_path / "on")
        try:
            assert watch.leads_elsewhere(await watch.wait(5))
        finally:
            unmount(tmp_path / "on")
