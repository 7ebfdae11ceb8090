# SPDX-License-Identifier: Apache-2.0
"""Directories of a program are its own."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from cilia.linux.mounts import mount
from cilia.program.directories import own_directory
from cilia.program.errors import ProgramError
from tests.bpf.world import unmount


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_directory_is_made_private_and_taken_again(tmp_path: Path) -> None:
    path = tmp_path / "own"
    own_directory(path)
    own_directory(path)
    assert mode(path) == 0o700
    path.chmod(0o777)
    own_directory(path)
    assert mode(path) == 0o700


def test_a_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with pytest.raises(ProgramError, match="no directory"):
        own_directory(tmp_path / "link")


def test_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ProgramError, match="file is no directory"):
        own_directory(tmp_path / "file")


@pytest.mark.root
def test_a_directory_of_somebody_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "theirs"
    path.mkdir()
    os.chown(path, 1234, 1234)
    with pytest.raises(ProgramError, match="belongs to user 1234"):
        own_directory(path)


@pytest.mark.root
def test_a_bpffs_that_we_mount_is_roots_alone(tmp_path: Path) -> None:
    mount("bpf", tmp_path / "bpf")
    try:
        assert mode(tmp_path / "bpf") & 0o777 == 0o700, "the kernel adds the sticky bit"
    finally:
        unmount(tmp_path / "bpf")
