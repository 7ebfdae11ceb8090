# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the BPF tests; those that need privilege belong to tests marked ``root``."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from bpf import features
from bpf.errors import RequirementMissing
from bpf.features import mount_bpffs
from tests.bpf.datapath_world import Datapath, loaded
from tests.bpf.host_world import Node, made
from tests.bpf.lxc_world import CONSTANTS
from tests.bpf.world import NetworkNamespace, World, unmount

_numbers = itertools.count()


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what needs the kernel where it is missing, with the sentence that a user would get."""
    if item.get_closest_marker("root") is None:
        return
    try:
        features.require_privilege()
        features.require_kernel()
        features.require_btf()
    except RequirementMissing as error:
        pytest.skip(str(error))


def cgroup2_root() -> Path:
    """Where the unified hierarchy is mounted."""
    for line in Path("/proc/mounts").read_text().splitlines():
        fields = line.split()
        if fields[2] == "cgroup2":
            return Path(fields[1])
    raise RuntimeError("no cgroup2 is mounted")


@pytest.fixture
def tcx() -> None:
    """For tests of TCX hooks; ``clsact`` is tested on every kernel."""
    if not features.has_tcx():
        pytest.skip("this kernel has no TCX hooks (Linux 6.6)")


@pytest.fixture
def bpffs(tmp_path: Path) -> Iterator[Path]:
    """A bpffs of the test's own."""
    path = tmp_path / "bpffs"
    path.mkdir()
    mount_bpffs(path)
    yield path
    unmount(path)


@pytest.fixture
def cgroup() -> Iterator[Path]:
    """A cgroup of the test's own, empty at the end."""
    path = cgroup2_root() / f"cilia-test-{os.getpid()}-{next(_numbers)}"
    path.mkdir()
    yield path
    if path.exists():
        path.rmdir()


@pytest.fixture
def world(bpffs: Path, cgroup: Path) -> World:
    return World(bpffs, cgroup)


@pytest.fixture(scope="module")
def pod_datapath() -> Iterator[Datapath]:
    with loaded(["lxc"], CONSTANTS) as datapath:
        yield datapath


@pytest.fixture
def pod(pod_datapath: Datapath) -> Datapath:
    """The programs of a workload's device, on empty maps."""
    pod_datapath.clear()
    return pod_datapath


@pytest.fixture(scope="module", params=["tc", "xdp"])
def node(request: pytest.FixtureRequest) -> Iterator[Node]:
    """The programs of a node's device, by one hook."""
    with ExitStack() as stack:
        yield made(request.param, 0, stack)


@pytest.fixture
def netns() -> Iterator[NetworkNamespace]:
    """A network namespace with a pair of devices, ``one`` and ``two``."""
    namespace = NetworkNamespace(f"cilia-test-{os.getpid()}-{next(_numbers)}")
    namespace.veth("one", "two")
    yield namespace
    namespace.close()
