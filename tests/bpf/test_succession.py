# SPDX-License-Identifier: Apache-2.0
"""Programs take the place of those of the run before, when the maps allow it, and not earlier."""

from __future__ import annotations

import errno
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import anyio
import pytest

from bpf.datapath import NodeDatapath, cleanup
from bpf.errors import kernel_error
from bpf.link import Link
from bpf.program import Program
from bpf.sock import SockConfig
from cilia.datapath.programs import NodePrograms, Succession
from reconcilers import Config, Reconciler
from reconcilers.datapath.attachment_places import LinkPlaces
from reconcilers.datapath.attachments import AttachmentOperations
from reconcilers.datapath.cgroup_places import CgroupPlaces
from statedb import DB
from tables.datapath import attachments
from tables.node.devices import new_devices_table
from tests.bpf.test_migration import pin_names
from tests.bpf.test_sock_takeover import PROGRAMS, in_force, link_ids, map_names, start
from tests.bpf.world import World

pytestmark = pytest.mark.root


@pytest.fixture
def config(world: World) -> Iterator[SockConfig]:
    config = SockConfig(world.bpffs / "node", world.cgroup, 1024, 1024)
    yield config
    cleanup(config.pin_dir)


@asynccontextmanager
async def succeeding(config: SockConfig) -> AsyncIterator[Succession]:
    """A start up to the point where programs are loaded, with rows and their reconciler."""
    node = NodeDatapath(config)
    node.open_maps().close()
    node.load()
    programs = NodePrograms(node)
    attaching = programs.attaching()
    db = DB()
    table = attachments.new_attachments_table(db)
    with db.write_txn(table) as wtxn:
        for row in attaching.rows:
            table.insert(wtxn, row)
    cgroups = CgroupPlaces(attaching.cgroup_links)
    links = LinkPlaces(attaching.device_links)
    reconciler = Reconciler(
        db,
        table,
        AttachmentOperations(new_devices_table(db), links, cgroups, restore=attaching.restore),
        config=Config(in_thread=True, retry_backoff_min_s=0.01),
    )

    async def reconcile() -> None:
        await programs.published.wait()
        await reconciler.run()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(reconcile)
        with anyio.fail_after(10):
            yield Succession(db, table, reconciler, programs)
        tasks.cancel_scope.cancel()
    cgroups.close()
    node.close()


def statuses(succession: Succession) -> set[str]:
    rows = succession.attachments.all(succession.db.read_txn())
    return {row.status.kind.value for row in rows}


async def test_first_start_attaches_at_once(config: SockConfig) -> None:
    async with succeeding(config) as succession:
        await succession.begin()
        assert sorted(in_force(config)) == PROGRAMS
        assert succession.programs.timings["attach"] > 0
        await succession.finish()
    assert pin_names(config) == sorted(map_names(config))


async def test_start_on_the_same_maps_swaps_the_programs_at_once(config: SockConfig) -> None:
    start(config).close()
    links, old = link_ids(config), in_force(config)
    async with succeeding(config) as succession:
        await succession.begin()
        assert link_ids(config) == links
        assert not set(in_force(config).values()) & set(old.values())


async def test_start_on_other_maps_touches_no_link_before_they_are_filled(
    config: SockConfig,
) -> None:
    start(config).close()
    links, old = link_ids(config), in_force(config)
    async with succeeding(config._replace(service_entries=2048)) as succession:
        await succession.begin()
        assert in_force(config) == old
        assert statuses(succession) == {"pending"}
        await succession.finish()
        assert statuses(succession) == {"done"}
    assert link_ids(config) == links
    assert not set(in_force(config).values()) & set(old.values())
    assert pin_names(config) == sorted(map_names(config))


async def test_predecessors_maps_stay_until_the_last_link_is_updated(
    config: SockConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    start(config).close()
    refused: list[list[str]] = []
    update = Link.update

    def update_later(link: Link, program: Program) -> None:
        if len(refused) < 20:
            refused.append(pin_names(config))
            raise kernel_error("update link", errno.ENOMEM)
        update(link, program)

    monkeypatch.setattr(Link, "update", update_later)
    async with succeeding(config._replace(service_entries=2048)) as succession:
        await succession.begin()
        await succession.finish()
        assert statuses(succession) == {"done"}
    assert all("cilia_lb4_svc~next" in names for names in refused)
    assert len(refused) == 20
    assert pin_names(config) == sorted(map_names(config))
