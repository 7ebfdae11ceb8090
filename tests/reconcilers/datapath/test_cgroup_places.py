# SPDX-License-Identifier: Apache-2.0
"""Programs at hooks of a cgroup: adopted at their pins, held, moved, and repaired."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest

from bpf import pins
from bpf.link import AttachType, Link, LinkInfo, LinkType, all_links, cgroup_id
from bpf.program import Program
from cilia.linux.cgroup import find_cgroup2
from reconcilers import Drift
from statedb import ChangeIterator
from tables.datapath.attachments import Attachment
from tests.kernel import Kernel
from tests.reconcilers.datapath.test_attachments import Hooks, bpffs, hooking, number

__all__ = ["bpffs"]

pytestmark = pytest.mark.root


@pytest.fixture
def cgroups() -> Iterator[list[Path]]:
    root = find_cgroup2()
    assert root is not None
    paths = [root / f"cilia-test-{os.getpid()}-{name}" for name in "ab"]
    for path in paths:
        path.mkdir()
    yield paths
    for path in paths:
        path.rmdir()


class Connect4:
    """One row, of the hook connect4."""

    def __init__(self, hooks: Hooks, bpffs: Path, cgroup: Path) -> None:
        self.hooks, self.pin = hooks, bpffs / "cgroup" / "connect4"
        self.row = hooks.row("main", "connect4", "connect4", str(cgroup))

    def info(self) -> LinkInfo:
        with Link.open_pinned(self.pin) as link:
            return link.info()

    def drifted(self) -> ChangeIterator[Drift]:
        return self.hooks.bench.drifted()

    async def repaired(self, seen: ChangeIterator[Drift], whole: Callable[[], bool]) -> Drift:
        """The drift that was recorded; it may be gone by now, because it is repaired."""
        with anyio.fail_after(5):
            while True:
                rows, more = seen.next(self.hooks.world.db.read_txn())
                if found := [change.obj for change in rows]:
                    break
                await more.wait()
            while not whole():
                await anyio.sleep(0.01)
        return found[0]

    async def put(self, row: Attachment) -> None:
        self.hooks.bench.write(row)
        assert await self.hooks.bench.settled() == ["done"]


@asynccontextmanager
async def connecting(kernel: Kernel, bpffs: Path, cgroup: Path) -> AsyncIterator[Connect4]:
    async with hooking(kernel, bpffs, verify_interval_s=0.05) as hooks:
        yield Connect4(hooks, bpffs, cgroup)


def on(cgroup: Path) -> list[int]:
    """Ids of the links that the kernel has there."""
    target = cgroup_id(cgroup)
    return [
        info.id for info in all_links() if (info.type, info.target) == (LinkType.CGROUP, target)
    ]


def make_pinned(bpffs: Path, cgroup: Path) -> LinkInfo:
    """The link of an earlier run, with a program of its own."""
    (bpffs / "cgroup").mkdir(exist_ok=True)
    directory = os.open(cgroup, os.O_RDONLY)
    with Program.open_pinned(bpffs / "programs" / "other4") as program:
        link = Link.create(program, directory, AttachType.CGROUP_INET4_CONNECT)
    with link:
        pins.pin(link.number, bpffs / "cgroup" / "connect4")
        info = link.info()
    os.close(directory)
    return info


async def test_link_of_an_earlier_run_stays_and_gets_the_new_program(
    kernel: Kernel, bpffs: Path, cgroups: list[Path]
) -> None:
    earlier = make_pinned(bpffs, cgroups[0])
    async with connecting(kernel, bpffs, cgroups[0]) as connect4:
        await connect4.put(connect4.row)
        assert connect4.info() == earlier._replace(program_id=number(bpffs, "connect4"))
        assert on(cgroups[0]) == [earlier.id]


async def test_link_on_another_cgroup_goes_when_its_successor_is_there(
    kernel: Kernel, bpffs: Path, cgroups: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    earlier = make_pinned(bpffs, cgroups[0])
    seen: list[list[int]] = []
    replace = pins.replace

    def watched(fd: int, path: Path) -> None:
        seen.append(on(cgroups[0]) + on(cgroups[1]))
        replace(fd, path)

    monkeypatch.setattr(pins, "replace", watched)
    async with connecting(kernel, bpffs, cgroups[1]) as connect4:
        await connect4.put(connect4.row)
        assert seen == [[earlier.id, connect4.info().id]]
        assert (on(cgroups[0]), on(cgroups[1])) == ([], [connect4.info().id])


async def test_removed_pin_detaches_nothing_and_is_drift(
    kernel: Kernel, bpffs: Path, cgroups: list[Path]
) -> None:
    async with connecting(kernel, bpffs, cgroups[0]) as connect4:
        await connect4.put(connect4.row)
        before, seen = connect4.info(), connect4.drifted()
        connect4.pin.unlink()
        assert on(cgroups[0]) == [before.id]
        drift = await connect4.repaired(seen, connect4.pin.exists)
        assert (drift.key, drift.kind) == ("connect4", "missing")
        assert connect4.info() == before
        assert on(cgroups[0]) == [before.id]


async def test_program_put_there_by_hand_is_drift(
    kernel: Kernel, bpffs: Path, cgroups: list[Path]
) -> None:
    async with connecting(kernel, bpffs, cgroups[0]) as connect4:
        await connect4.put(connect4.row)
        before, seen = connect4.info(), connect4.drifted()
        other = Program.open_pinned(bpffs / "programs" / "other4")
        with other, Link.open_pinned(connect4.pin) as link:
            link.update(other)
        drift = await connect4.repaired(seen, lambda: connect4.info() == before)
        assert (drift.key, drift.kind) == ("connect4", "different")


async def test_cgroup_made_anew_under_its_name_is_attached_to_again(
    kernel: Kernel, bpffs: Path, cgroups: list[Path]
) -> None:
    async with connecting(kernel, bpffs, cgroups[0]) as connect4:
        await connect4.put(connect4.row)
        seen = connect4.drifted()
        cgroups[0].rmdir()
        cgroups[0].mkdir()
        await connect4.repaired(seen, lambda: connect4.info().target == cgroup_id(cgroups[0]))
        assert on(cgroups[0]) == [connect4.info().id]


async def test_link_follows_a_name_that_means_another_cgroup_now(
    kernel: Kernel, bpffs: Path, cgroups: list[Path], tmp_path: Path
) -> None:
    name, new = tmp_path / "cgroup", tmp_path / "new"
    name.symlink_to(cgroups[0])
    new.symlink_to(cgroups[1])
    async with connecting(kernel, bpffs, name) as connect4:
        await connect4.put(connect4.row)
        assert on(cgroups[0]) == [connect4.info().id]
        seen = connect4.drifted()
        new.rename(name)
        await connect4.repaired(seen, lambda: connect4.info().target == cgroup_id(cgroups[1]))
        assert (on(cgroups[0]), on(cgroups[1])) == ([], [connect4.info().id])


async def test_link_that_no_row_wants_is_detached_whoever_holds_it(
    kernel: Kernel, bpffs: Path, cgroups: list[Path]
) -> None:
    make_pinned(bpffs, cgroups[0])
    with Link.open_pinned(bpffs / "cgroup" / "connect4"):
        async with connecting(kernel, bpffs, cgroups[0]) as connect4:
            connect4.hooks.bench.reconciler.prune_now()
            with anyio.fail_after(5):
                while connect4.pin.exists():
                    await anyio.sleep(0.01)
            assert on(cgroups[0]) == []
