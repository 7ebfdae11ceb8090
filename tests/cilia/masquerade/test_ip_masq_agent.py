# SPDX-License-Identifier: Apache-2.0
"""The file of ip-masq-agent: what it says, and what becomes of a broken one."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import anyio
import pytest

from cilia.masquerade.ip_masq_agent import (
    DEFAULTS,
    LINK_LOCAL,
    LINK_LOCAL6,
    IPMasqAgentFile,
    read,
)
from cilia.program.health import HealthReporter
from statedb import DB
from tables.addressing import Prefix
from tables.health import Level, new_health_table

TEN = Prefix.parse("10.0.0.0/8")


@pytest.mark.parametrize("data", [b"", b"# nothing yet\n", b"---\n"])
def test_an_empty_file_is_the_default_list(data: bytes) -> None:
    assert read(data) == (*DEFAULTS, LINK_LOCAL, LINK_LOCAL6)


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (b"nonMasqueradeCIDRs: [10.0.0.0/8]", (TEN, LINK_LOCAL, LINK_LOCAL6)),
        (b"nonMasqueradeCIDRs: []", (LINK_LOCAL, LINK_LOCAL6)),
        (b"masqLinkLocal: true", (LINK_LOCAL6,)),
        (b"masqLinkLocalIPv6: true\nresyncInterval: 60s", (LINK_LOCAL,)),
        (
            b'{"nonMasqueradeCIDRs": ["10.1.2.3/8", "10.0.0.0/8", "2001:db8::/32"],'
            b' "masqLinkLocal": true, "masqLinkLocalIPv6": true}',
            (TEN, Prefix.parse("2001:db8::/32")),
        ),
    ],
)
def test_a_file_says_what_is_not_masqueraded(data: bytes, found: tuple[Prefix, ...]) -> None:
    assert read(data) == found


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"nonMasqueradeCIDRs: [10.0.0.0]", "nonMasqueradeCIDRs.0: .*not ADDRESS/LENGTH"),
        (b"nonMasqueradeCIDRs: [10.0.0.0/40]", "nonMasqueradeCIDRs.0: .*is not a prefix"),
        (b"nonMasqueradeCIDRs: 10.0.0.0/8", "nonMasqueradeCIDRs: .*list"),
        (b"nonMasqueradeCIDR: [10.0.0.0/8]", "nonMasqueradeCIDR: Extra"),
        (b"masqLinkLocal: 1", "masqLinkLocal: .*boolean"),
        (b"nonMasqueradeCIDRs: [", "expected"),
        (b"[]", "dictionary"),
        (b"\xff\xfe\xff", "."),
    ],
)
def test_a_broken_file_is_refused_with_its_place(data: bytes, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        read(data)


class World:
    def __init__(self, directory: Path) -> None:
        self.db = DB()
        self.health = new_health_table(self.db)
        self.path = directory / "ip-masq-agent"
        reporter = HealthReporter(self.db, self.health, "masquerade", "ip-masq-agent")
        self.file = IPMasqAgentFile(self.path, reporter)

    def level(self) -> Level:
        (row,) = self.health.all(self.db.read_txn())
        return row.level

    async def until(self, prefixes: tuple[Prefix, ...] | None) -> None:
        with anyio.fail_after(5):
            while True:
                found, changed = self.file.prefixes_watch()
                if found == prefixes:
                    return
                await changed.wait()


async def test_a_file_is_read_again_when_it_changes_and_not_while_it_is_broken(
    tmp_path: Path,
) -> None:
    world = World(tmp_path)
    async with anyio.create_task_group() as group:
        group.start_soon(world.file.run)
        await world.until((*DEFAULTS, LINK_LOCAL, LINK_LOCAL6))
        world.path.write_text("nonMasqueradeCIDRs: [10.0.0.0/8]")
        await world.until((TEN, LINK_LOCAL, LINK_LOCAL6))
        world.path.write_text("nonMasqueradeCIDRs: {")
        with anyio.fail_after(5):
            while world.level() is not Level.DEGRADED:
                await anyio.sleep(0.001)
        assert world.file.prefixes_watch()[0] == (TEN, LINK_LOCAL, LINK_LOCAL6)
        # As a ConfigMap comes: another file in its place.
        other = tmp_path / "other"
        other.write_text("nonMasqueradeCIDRs: []")
        other.rename(world.path)
        await world.until((LINK_LOCAL, LINK_LOCAL6))
        assert world.level() is Level.OK
        world.path.unlink()
        await world.until((*DEFAULTS, LINK_LOCAL, LINK_LOCAL6))
        group.cancel_scope.cancel()


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo], ids=["directory", "pipe"])
async def test_what_a_file_says_that_is_broken_from_the_beginning_is_not_known(
    tmp_path: Path, make: Callable[[Path], None]
) -> None:
    world = World(tmp_path)
    make(world.path)
    await world.file.look()
    assert world.file.prefixes_watch()[0] is None
    assert world.level() is Level.DEGRADED
