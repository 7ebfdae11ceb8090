# SPDX-License-Identifier: Apache-2.0
"""Everything that a node is to have, at once: set up, changed by hand, ended, started again."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest

from bpf import pins
from bpf.link import all_links
from bpf.object import Object
from bpf.program import Program
from cilia.datapath.programs import Attaching
from cilia.datapath.wiring import build_attachments
from cilia.linux.mounts import mount_bpffs
from cilia.node import desired
from cilia.node.options import NodeOptions
from cilia.node.repairs import Desired, Repairs
from cilia.node.routes import DesiredRoutes
from cilia.node.wiring import build as build_node
from cilia.program.parts import Context, Job, Part
from statedb import Channel, RWTable
from tables.addressing import IP, Prefix
from tables.datapath.attachments import AttachHook, Attachment
from tables.node.desired_addresses import DesiredAddress
from tables.node.desired_devices import DesiredDevice, VethSpec
from tables.node.desired_routes import DesiredRoute
from tables.node.desired_rules import desired_rule
from tables.node.rules import Rule
from tables.node.sysctl import SysctlSetting
from tests.bpf.sources import build
from tests.context import new_context
from tests.kernel import Kernel

pytestmark = pytest.mark.root

SOURCE = 'SEC("tc") int main_a(struct __sk_buff *ctx) { return -1; }'
SECONDS = 10


@pytest.fixture
def bpffs(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "bpf"
    mount_bpffs(path)
    with Object.open("test", build(SOURCE)) as obj:
        obj.load()
        with obj.program("main_a") as program:
            pins.pin(program.number, path / "main_a")
    yield path
    ctypes.CDLL(None).umount2(os.fsencode(path), 2)


async def run(job: Job) -> None:
    await job()


class Edge:
    """All kinds of things that the kernel is to have, each with its table."""

    def __init__(self, ctx: Context, kernel: Kernel, attaching: Attaching) -> None:
        self.db = ctx.db
        self.node = build_node(ctx, NodeOptions(), observe=True, netns=kernel.netns)
        network = self.node.network
        assert network is not None
        repairs = Repairs(ctx, network)
        self.routes = desired.build_routes(repairs)
        self.devices = desired.build_devices(repairs)
        self.addresses = desired.build_addresses(repairs)
        self.rules = desired.build_rules(repairs)
        self.sysctl = desired.build_sysctl(repairs)
        self.programs = Part()
        self.attachments = build_attachments(ctx, network, attaching, self.programs)
        self.jobs: dict[str, Job] = {**self.node.jobs, **repairs.jobs, **self.programs.jobs}

    def desired(self) -> tuple[Desired[Any], ...]:
        return (
            self.routes,
            self.devices,
            self.addresses,
            self.rules,
            self.sysctl,
            self.attachments,
        )

    def desired_tables(self) -> tuple[RWTable[Any], ...]:
        return tuple(kind.table for kind in self.desired())

    def owners_known(self) -> None:
        for kind in self.desired():
            kind.owners_known(self.db)

    def close(self) -> None:
        for close in (*self.node.closing, *self.programs.closing):
            close()


@asynccontextmanager
async def running(
    kernel: Kernel, bpffs: Path, published: Channel | None = None
) -> AsyncIterator[Edge]:
    attaching = Attaching(bpffs / "links", bpffs / "cgroup", published=published)
    edge = Edge(new_context(), kernel, attaching)
    async with anyio.create_task_group() as tasks:
        for job in edge.jobs.values():
            tasks.start_soon(run, job)
        yield edge
        tasks.cancel_scope.cancel()
    edge.close()


def write_all(edge: Edge, bpffs: Path) -> None:
    """Everything hangs on a device that is itself only wanted so far."""
    rule = Rule(family=2, priority=20, table=2000, destination=Prefix.parse("10.8.0.0/16"))
    route = DesiredRoute(
        owner="test", prefix=Prefix.parse("10.8.0.0/16"), device="cilia_a", table=2000
    )
    program = str(bpffs / "main_a")
    with edge.db.write_txn(*edge.desired_tables()) as wtxn:
        edge.attachments.table.insert(
            wtxn,
            Attachment(target="cilia_a", hook=AttachHook.INGRESS, owner="test", program=program),
        )
        DesiredRoutes(edge.routes.table).upsert(wtxn, route)
        edge.addresses.table.insert(
            wtxn,
            DesiredAddress(
                owner="test", device="cilia_a", address=IP.parse("10.8.0.1"), prefix_len=24
            ),
        )
        edge.rules.table.insert(wtxn, desired_rule("test", rule))
        edge.sysctl.table.insert(wtxn, SysctlSetting("net.ipv4.conf.cilia_a.rp_filter", "0"))
        edge.devices.table.insert(
            wtxn, DesiredDevice(owner="test", name="cilia_a", spec=VethSpec("cilia_b"))
        )


def shown(kernel: Kernel, bpffs: Path) -> list[object]:
    """What the node looks like from outside."""
    links = bpffs / "links"
    return [
        "cilia_a" in kernel.ip("-br link show"),
        "10.8.0.1/24" in kernel.ip("-br addr show"),
        "10.8.0.0/16 dev cilia_a" in kernel.ip("route show table all proto 196"),
        "20:" in kernel.ip("rule show"),
        sorted(path.name for path in links.iterdir()) if links.exists() else [],
    ]


NOTHING: list[object] = [False, False, False, False, []]
WHOLE: list[object] = [True, True, True, True, ["cilia_a:ingress:test"]]


async def until(condition: Callable[[], bool]) -> None:
    with anyio.move_on_after(SECONDS):
        while not condition():
            await anyio.sleep(0.02)
    assert condition()


def all_done(edge: Edge) -> bool:
    txn = edge.db.read_txn()
    return all(str(row.status.kind) == "done" for t in edge.desired_tables() for row in t.all(txn))


CHILD = """
import sys, anyio
from pathlib import Path
from cilia.linux.netns import NetNS
from tests.cilia.node.test_desired import running, write_all
from tests.kernel import Kernel

async def main():
    kernel, bpffs = Kernel(NetNS.open(sys.argv[1])), Path(sys.argv[2])
    print("ready", flush=True)
    while True:
        async with running(kernel, bpffs) as edge:
            write_all(edge, bpffs)
            edge.owners_known()
            await anyio.sleep(0.15)
            with edge.db.write_txn(*edge.desired_tables()) as wtxn:
                for table in edge.desired_tables():
                    table.delete_all(wtxn)
            await anyio.sleep(0.1)

anyio.run(main)
"""


@pytest.mark.timeout(90)
async def test_a_process_killed_anywhere_leaves_nothing_that_a_start_does_not_mend(
    kernel: Kernel, bpffs: Path
) -> None:
    """A child sets everything up and takes it down again and again; it is killed in between."""
    command = [sys.executable, "-c", CHILD, kernel.netns.path, str(bpffs)]
    left = []
    for delay_s in (0.03, 0.08, 0.15, 0.25, 0.4, 0.6):
        with subprocess.Popen(command, stdout=subprocess.PIPE) as child:
            assert child.stdout is not None
            assert await anyio.to_thread.run_sync(child.stdout.readline) == b"ready\n"
            await anyio.sleep(delay_s)
            child.kill()
        left.append(shown(kernel, bpffs))
    assert any(state != NOTHING for state in left), "killed too early to show anything"
    async with running(kernel, bpffs) as edge:
        write_all(edge, bpffs)
        edge.owners_known()
        await until(lambda: all_done(edge) and shown(kernel, bpffs) == WHOLE)
        assert kernel.ip("route show table all proto 196").count("10.8.0.0/16") == 1
        assert kernel.ip("rule show").count("proto 196") == 1
        assert kernel.ip("-br link show").count("cilia_") == 4  # a@b and b@a
    async with running(kernel, bpffs) as edge:
        edge.owners_known()
        await until(lambda: shown(kernel, bpffs) == NOTHING)
    with Program.open_pinned(bpffs / "main_a") as program:
        number = program.info().id
    await until(lambda: all(link.program_id != number for link in all_links()))


@pytest.mark.timeout(60)
async def test_a_node_is_set_up_repaired_and_restarted(kernel: Kernel, bpffs: Path) -> None:
    async with running(kernel, bpffs) as edge:
        write_all(edge, bpffs)
        edge.owners_known()
        await until(lambda: all_done(edge) and shown(kernel, bpffs) == WHOLE)
        # The device goes, and with it address, route and program: all come back by themselves.
        kernel.ip("link del cilia_a")
        await until(lambda: shown(kernel, bpffs) != WHOLE)
        await until(lambda: all_done(edge) and shown(kernel, bpffs) == WHOLE)
    before = kernel.ip("-br link show dev cilia_a")
    async with running(kernel, bpffs) as edge:
        await anyio.sleep(1.0)  # time enough to do harm
        assert shown(kernel, bpffs) == WHOLE, "nothing is taken away before the owners are known"
        write_all(edge, bpffs)
        edge.owners_known()
        await until(lambda: all_done(edge))
        assert kernel.ip("-br link show dev cilia_a") == before
        assert shown(kernel, bpffs) == WHOLE
    async with running(kernel, bpffs) as edge:
        edge.owners_known()
        await until(lambda: shown(kernel, bpffs) == NOTHING)


async def test_nothing_is_attached_before_programs_are_published(
    kernel: Kernel, bpffs: Path
) -> None:
    published = Channel()
    async with running(kernel, bpffs, published) as edge:
        write_all(edge, bpffs)
        edge.owners_known()
        await until(lambda: shown(kernel, bpffs) == [*WHOLE[:4], []])
        assert [row.status.kind for row in edge.attachments.table.all(edge.db.read_txn())] == [
            "pending"
        ]
        published.close()
        await until(lambda: shown(kernel, bpffs) == WHOLE)
