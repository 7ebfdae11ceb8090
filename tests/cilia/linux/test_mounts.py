# SPDX-License-Identifier: Apache-2.0
import ctypes
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from cilia.linux.cgroup import cgroup2_of, find_cgroup2
from cilia.linux.errors import MountError
from cilia.linux.mounts import is_mounted, mount, mount_bpffs, mounts

PURE = """\
22 1 0:21 / / rw,relatime - ext4 /dev/root rw
25 22 0:23 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate
"""
HYBRID = """\
25 22 0:23 / /sys/fs/cgroup ro,nosuid - tmpfs tmpfs ro,mode=755
26 25 0:24 / /sys/fs/cgroup/unified rw,nosuid shared:9 - cgroup2 cgroup2 rw
27 25 0:25 / /sys/fs/cgroup/cpu rw,nosuid shared:10 master:2 - cgroup cgroup rw,cpu
"""
LEGACY = "27 25 0:25 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n"
IN_A_CONTAINER = """\
30 22 0:24 /kubepods/pod1 /sys/fs/cgroup rw - cgroup2 cgroup rw
31 22 0:24 / /run/cilia/cgroupv2 rw - cgroup2 cgroup2 rw
"""
HIDDEN = """\
25 22 0:23 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw
26 22 0:29 / /sys/fs/cgroup rw - tmpfs tmpfs rw
"""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (PURE, "/sys/fs/cgroup"),
        (HYBRID, "/sys/fs/cgroup/unified"),
        (LEGACY, None),
        (IN_A_CONTAINER, "/run/cilia/cgroupv2"),
        (HIDDEN, None),
    ],
)
def test_cgroup2_is_found_in_every_layout(text: str, expected: str | None) -> None:
    found = find_cgroup2(mounts(text))
    assert found == (None if expected is None else Path(expected))


def test_escaped_characters_and_options() -> None:
    (entry,) = mounts("9 1 0:5 / /a\\040b\\134c rw,noexec shared:3 - bpf none rw,mode=700\n")
    assert entry.path == Path("/a b\\c")
    assert entry.fstype == "bpf"
    assert {"noexec", "mode=700"} <= entry.options


def test_this_process_is_in_a_cgroup() -> None:
    root = find_cgroup2()
    assert root is not None
    own = cgroup2_of(os.getpid(), root)
    assert str(os.getpid()) in (own / "cgroup.procs").read_text().split()


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "with blank"
    yield path
    if os.path.ismount(path):
        ctypes.CDLL(None).umount2(os.fsencode(path), 0)


@pytest.mark.root
def test_bpffs_is_mounted_once(place: Path) -> None:
    assert mount_bpffs(place)
    assert is_mounted(place, "bpf")
    assert not mount_bpffs(place)
    assert len([entry for entry in mounts() if entry.path == place]) == 1


@pytest.mark.root
def test_an_unknown_file_system_is_an_error(place: Path) -> None:
    with pytest.raises(MountError, match="mount nosuchfs at"):
        mount("nosuchfs", place)
