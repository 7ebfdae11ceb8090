# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cilia.linux.namespaces import network_namespaces
from cilia.linux.netns import RUN_DIR, NetNS

pytestmark = pytest.mark.root


def inodes(*directories: Path) -> list[int]:
    return [netns.inode for netns in network_namespaces(directories)]


def test_own_namespace_is_first_and_each_is_there_once() -> None:
    found = inodes(RUN_DIR)
    assert found[0] == os.stat("/proc/self/ns/net").st_ino
    assert len(found) == len(set(found))


def test_a_name_in_the_directory_is_found_and_gone_with_it() -> None:
    name = f"cilia-test-list-{os.getpid()}"
    with NetNS.create(name) as made:
        try:
            assert made.inode in inodes(RUN_DIR)
        finally:
            NetNS.remove(name)
        assert made.inode not in inodes(RUN_DIR)


def test_the_namespace_of_a_process_is_found_without_a_name() -> None:
    with NetNS.new() as made:
        assert made.inode not in inodes(RUN_DIR)
        with subprocess.Popen(
            ["nsenter", f"--net={made.path}", sys.executable, "-S", "-c", "print(); input()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        ) as process:
            assert process.stdout is not None
            process.stdout.readline()
            assert made.inode in inodes()
            process.communicate(b"\n")


def test_names_that_are_no_namespace_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / "stale").touch()
    (tmp_path / "dangling").symlink_to(tmp_path / "nothing")
    (tmp_path / "mount").symlink_to("/proc/self/ns/mnt")
    found = inodes(tmp_path, tmp_path / "missing")
    assert found[0] == os.stat("/proc/self/ns/net").st_ino
    assert os.stat("/proc/self/ns/mnt").st_ino not in found


def test_what_lies_beyond_the_limit_is_told(tmp_path: Path) -> None:
    with NetNS.new() as one, NetNS.new() as two:
        (tmp_path / "a").symlink_to(one.path)
        (tmp_path / "b").symlink_to(two.path)
        left_out: list[Path] = []
        found = [
            netns.inode for netns in network_namespaces([tmp_path], limit=2, left_out=left_out)
        ]
        assert found[1:] == [one.inode]
        assert left_out == [tmp_path / "b"]


def test_what_may_not_be_opened_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with NetNS.new() as one, NetNS.new() as two:
        (tmp_path / "a").symlink_to(one.path)
        (tmp_path / "b").symlink_to(two.path)
        opened = NetNS.open

        def refuse(path: Path) -> NetNS:
            if path == tmp_path / "a":
                raise PermissionError(path)
            return opened(path)

        monkeypatch.setattr(NetNS, "open", refuse)
        found = inodes(tmp_path)
        assert two.inode in found
        assert one.inode not in found


def test_nothing_stays_open() -> None:
    before = len(os.listdir("/proc/self/fd"))
    assert inodes(RUN_DIR)
    assert len(os.listdir("/proc/self/fd")) == before
