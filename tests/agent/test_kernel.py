# SPDX-License-Identifier: Apache-2.0
"""The kernel's part of the agent in one piece: set up, changed by hand, ended, started again."""

from __future__ import annotations

import ctypes
import os
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest

from bpf import pins
from bpf.object import Object
from cilia.agent.kernel import Job, KernelEdge, KernelOptions, build_kernel
from cilia.linux.mounts import mount_bpffs
from reconcilers.verify import new_drift_table
from statedb import DB
from tables.addressing import IP, Prefix
from tables.attachments import AttachHook, Attachment
from tables.desired_addresses import DesiredAddress
from tables.desired_devices import DesiredDevice, VethSpec
from tables.desired_routes import DesiredRoute
from tables.desired_rules import desired_rule
from tables.node_addresses import new_node_addresses_table
from tables.rules import Rule
from tables.sysctl import SysctlSetting
from tests.bpf.sources import build
from tests.kernel import Kernel, new_kernel

pytestmark = pytest.mark.root

SOURCE = 'SEC("tc") int main_a(struct __sk_buff *ctx) { return -1; }'
SECONDS = 10


@pytest.fixture
def kernel() -> Iterator[Kernel]:
    with new_kernel() as kernel:
        yield kernel


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


@asynccontextmanager
async def running(kernel: Kernel, bpffs: Path) -> AsyncIterator[KernelEdge]:
    db = DB()
    options = KernelOptions(netns=kernel.netns, links_dir=bpffs / "links")
    edge = build_kernel(db, new_drift_table(db), new_node_addresses_table(db), options)
    async with anyio.create_task_group() as tasks:
        for job in edge.jobs.values():
            tasks.start_soon(run, job)
        yield edge
        tasks.cancel_scope.cancel()
    edge.close()


def write_all(edge: KernelEdge, bpffs: Path) -> None:
    """Everything hangs on a device that is itself only wanted so far."""
    rule = Rule(family=2, priority=20, table=2000, destination=Prefix.parse("10.8.0.0/16"))
    route = DesiredRoute(
        owner="test", prefix=Prefix.parse("10.8.0.0/16"), device="cilia_a", table=2000
    )
    program = str(bpffs / "main_a")
    with edge.db.write_txn(*edge.desired_tables()) as wtxn:
        edge.attachments.insert(
            wtxn,
            Attachment(target="cilia_a", hook=AttachHook.INGRESS, owner="test", program=program),
        )
        edge.routes_writer.upsert(wtxn, route)
        edge.desired_addresses.insert(
            wtxn,
            DesiredAddress(
                owner="test", device="cilia_a", address=IP.parse("10.8.0.1"), prefix_len=24
            ),
        )
        edge.desired_rules.insert(wtxn, desired_rule("test", rule))
        edge.sysctl.insert(wtxn, SysctlSetting("net.ipv4.conf.cilia_a.rp_filter", "0"))
        edge.desired_devices.insert(
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


def all_done(edge: KernelEdge) -> bool:
    txn = edge.db.read_txn()
    return all(str(row.status.kind) == "done" for t in edge.desired_tables() for row in t.all(txn))


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
