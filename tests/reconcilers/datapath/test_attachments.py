# SPDX-License-Identifier: Apache-2.0
"""Programs at hooks: order, replacement, drift, restarts, and devices that come and go."""

from __future__ import annotations

import ctypes
import json
import os
import resource
import shutil
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import msgspec
import pytest

from bpf import features, pins
from bpf.link import AttachType, Link, all_links, read_hook
from bpf.object import Object
from bpf.program import Program
from cilia.linux.cgroup import find_cgroup2
from cilia.linux.mounts import mount_bpffs
from cilia.linux.netlink import Netlink
from reconcilers.datapath.attachment_places import FilterPlaces, LinkPlaces, pin_name
from reconcilers.datapath.attachments import (
    CONFIG,
    AttachmentOperations,
    FilterWatch,
    PinWatch,
    concerns_attachments,
)
from reconcilers.datapath.cgroup_places import CgroupPlaces
from statedb.shown.columns import table_text
from tables.datapath import attachments
from tables.datapath.attachments import FIRST, AttachHook, Attachment, AttachOrder, OrderKind
from tests.bpf.sources import build
from tests.kernel import Kernel
from tests.kernel_world import Repairing, reflecting, repairing

pytestmark = pytest.mark.root

SOURCE = """
SEC("tc") int a(struct __sk_buff *ctx) { return -1; }
SEC("tc") int b(struct __sk_buff *ctx) { return -1; }
SEC("tc") int c(struct __sk_buff *ctx) { return -1; }
SEC("tc") int d(struct __sk_buff *ctx) { return -1; }
SEC("xdp") int pass(struct xdp_md *ctx) { return XDP_PASS; }
SEC("cgroup/connect4") int connect4(struct bpf_sock_addr *ctx) { return 1; }
SEC("cgroup/connect4") int other4(struct bpf_sock_addr *ctx) { return 1; }
"""
QUIET_S = 0.4


@pytest.fixture
def bpffs(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "bpf"
    mount_bpffs(path)
    (path / "programs").mkdir()
    with Object.open("test", build(SOURCE)) as obj:
        obj.load()
        for program in obj.programs():
            pins.pin(program.number, path / "programs" / program.name)
            program.close()
    yield path
    ctypes.CDLL(None).umount2(os.fsencode(path), 2)


def number(bpffs: Path, name: str) -> int:
    """The kernel's number of a program."""
    with Program.open_pinned(bpffs / "programs" / name) as program:
        return program.info().id


class Hooks:
    def __init__(self, bench: Repairing[Attachment], bpffs: Path) -> None:
        self.bench = bench
        self.bpffs = bpffs
        self.world = bench.world

    def row(
        self, owner: str, program: str, hook: str = "ingress", target: str = "v0", **fields: Any
    ) -> Attachment:
        return Attachment(
            target=target,
            hook=AttachHook(hook),
            owner=owner,
            program=str(self.bpffs / "programs" / program),
            **fields,
        )

    def order(self, target: str = "v0", hook: AttachType = AttachType.TCX_INGRESS) -> str:
        """The names of the programs at a hook, in order."""

        def read() -> str:
            found = read_hook(self.world.index(target), hook).program_ids
            names = []
            for number in found:
                with Program.by_id(number) as program:
                    names.append(program.name)
            return "".join(names)

        return self.world.kernel.netns.run(read)

    def link(self, row: Attachment) -> Link:
        if row.hook.is_device:
            return Link.open_pinned(self.bpffs / "links" / pin_name(row))
        return Link.open_pinned(self.bpffs / "cgroup" / row.hook.value)


@asynccontextmanager
async def hooking(
    kernel: Kernel, bpffs: Path, *, clsact: bool = False, **settings: Any
) -> AsyncIterator[Hooks]:
    async with reflecting(kernel) as (world, _):
        with Netlink(kernel.netns) as netlink:
            table = attachments.new_attachments_table(world.db)
            cgroups = CgroupPlaces(bpffs / "cgroup")
            operations = AttachmentOperations(
                world.tables.devices,
                LinkPlaces(bpffs / "links"),
                cgroups,
                FilterPlaces(netlink, bpffs) if clsact else None,
                netns=kernel.netns,
            )
            async with repairing(
                world,
                table,
                operations,
                world.tables.devices,
                concerns_attachments(table),
                attachments.TARGET,
                CONFIG,
                **settings,
            ) as bench:
                yield Hooks(bench, bpffs)
            cgroups.close()


@pytest.fixture
def tcx() -> None:
    if not features.has_tcx():
        pytest.skip("this kernel has no TCX hooks (Linux 6.6)")


@pytest.mark.usefixtures("tcx")
async def test_links_whose_pins_are_gone_are_taken_over(kernel: Kernel, bpffs: Path) -> None:
    """Somebody renames the directory while no agent runs: no program runs twice then."""
    kernel.veth("v0", "v1")

    async def start() -> dict[AttachHook, int]:
        async with hooking(kernel, bpffs) as hooks:
            rows = (
                hooks.row("one", "a"),
                hooks.row("two", "b"),
                hooks.row("one", "a", hook=AttachHook.EGRESS),
                hooks.row("one", "pass", hook=AttachHook.XDP),
            )
            hooks.bench.write(*rows)
            assert await hooks.bench.settled() == ["done"] * len(rows)
            assert hooks.order() == "ab"
            assert hooks.order(hook=AttachType.TCX_EGRESS) == "a"
            links = {}
            for row in rows:
                with hooks.link(row) as link:
                    links[row.hook] = link.info().id
            return links

    before = await start()
    (bpffs / "links").rename(bpffs / "elsewhere")
    assert await start() == before


@pytest.mark.usefixtures("tcx")
async def test_programs_stand_in_the_order_that_is_asked_for(kernel: Kernel, bpffs: Path) -> None:
    kernel.veth("v0", "v1")
    async with hooking(kernel, bpffs) as hooks:
        hooks.bench.write(hooks.row("two", "b"))
        assert await hooks.bench.settled() == ["done"]
        hooks.bench.write(
            hooks.row("one", "a", order=FIRST),
            hooks.row("three", "c", order=AttachOrder(OrderKind.AFTER, "two")),
            hooks.row("four", "d", order=AttachOrder(OrderKind.BEFORE, "two")),
        )
        assert await hooks.bench.settled() == ["done"] * 4
        assert hooks.order() == "adbc"
        rows = hooks.bench.table.all(hooks.world.db.read_txn())
        printed = table_text(attachments.COLUMNS, rows, ["Target", "Hook", "Owner", "Order"])
        assert [" ".join(line.split()) for line in printed.splitlines()] == [
            "Target Hook Owner Order",
            "v0 ingress four before two",
            "v0 ingress one first",
            "v0 ingress three after two",
            "v0 ingress two last",
        ]
        # Asked to the other side, it moves.
        hooks.bench.write(hooks.row("four", "d", order=AttachOrder(OrderKind.AFTER, "two")))
        await hooks.bench.settled()
        assert hooks.order() == "abdc"


@pytest.mark.usefixtures("tcx")
async def test_a_neighbour_that_is_not_there_is_waited_for(kernel: Kernel, bpffs: Path) -> None:
    kernel.veth("v0", "v1")
    async with hooking(kernel, bpffs) as hooks:
        hooks.bench.write(hooks.row("a", "a", order=AttachOrder(OrderKind.BEFORE, "b")))
        assert await hooks.bench.settled() == ["error: b is not attached to v0 ingress"]
        hooks.bench.write(hooks.row("b", "b"))
        await hooks.bench.until_statuses("done", "done")
        assert hooks.order() == "ab"


@pytest.mark.usefixtures("tcx")
async def test_a_program_is_replaced_within_its_link(kernel: Kernel, bpffs: Path) -> None:
    kernel.veth("v0", "v1")
    async with hooking(kernel, bpffs) as hooks:
        hooks.bench.write(hooks.row("one", "a"), hooks.row("two", "b"))
        await hooks.bench.settled()
        with hooks.link(hooks.row("one", "a")) as link:
            before = link.info()
        hooks.bench.write(hooks.row("one", "c"))
        await hooks.bench.settled()
        assert hooks.order() == "cb"
        with hooks.link(hooks.row("one", "a")) as link:
            assert link.info().id == before.id
        # A new program under the name of the old one is taken up by the next read-back.
        with Program.open_pinned(bpffs / "programs" / "d") as program:
            pins.replace(program.number, bpffs / "programs" / "c")
        hooks.bench.reconciler.verify_now()
        with anyio.fail_after(5):
            while hooks.order() != "db":
                await anyio.sleep(0.01)


async def test_xdp_and_cgroup_hooks(kernel: Kernel, bpffs: Path) -> None:
    kernel.veth("v0", "v1")
    root = find_cgroup2()
    assert root is not None
    cgroup = root / f"cilia-test-{os.getpid()}"
    cgroup.mkdir()
    try:
        async with hooking(kernel, bpffs) as hooks:
            rows = [
                hooks.row("main", "pass", "xdp"),
                hooks.row("main", "connect4", "connect4", str(cgroup)),
            ]
            hooks.bench.write(*rows)
            assert await hooks.bench.settled() == ["done", "done"]
            with hooks.link(rows[0]) as link:
                assert link.info().target == hooks.world.index("v0")
            with hooks.link(rows[1]) as link:
                assert link.info().target == cgroup.stat().st_ino
                link.detach()
            with hooks.link(rows[0]) as link:
                link.detach()
            seen = hooks.bench.drifted()

            def broken() -> bool:
                for row in rows:
                    with hooks.link(row) as link:
                        if not link.info().target:
                            return True
                return False

            # Read back once a second, and then some time for the repair.
            with anyio.fail_after(2.0):
                while broken():
                    await anyio.sleep(0.01)
            rows_seen, _ = seen.next(hooks.world.db.read_txn())
            assert {c.obj.kind for c in rows_seen if not c.deleted} == {"different"}
            hooks.bench.delete(*hooks.bench.table.all(hooks.world.db.read_txn()))
            await hooks.bench.settled()
            assert list((bpffs / "links").iterdir()) == []
            assert list((bpffs / "cgroup").iterdir()) == []
    finally:
        cgroup.rmdir()


@pytest.mark.usefixtures("tcx")
async def test_a_pin_taken_by_hand_is_back_at_once(kernel: Kernel, bpffs: Path) -> None:
    kernel.veth("v0", "v1")
    async with hooking(kernel, bpffs, verify_interval_s=0.0) as hooks:
        hooks.bench.write(hooks.row("one", "a"))
        await hooks.bench.settled()
        watch = PinWatch([bpffs / "links"], hooks.bench.reconciler.verify_now)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(watch.run)
            await anyio.sleep(QUIET_S)  # inotify is set up in a thread that tells nobody
            seen = hooks.bench.drifted()
            with hooks.link(hooks.row("one", "a")) as link:
                before = link.info().id
            for path in (bpffs / "links").iterdir():
                path.unlink()
            assert hooks.order() == "a", "a link does not go with its pin"
            links = bpffs / "links"
            drift = await hooks.bench.repaired(lambda: not any(links.iterdir()), seen)
            assert drift.kind == "missing"
            with hooks.link(hooks.row("one", "a")) as link:
                assert link.info().id == before
            tasks.cancel_scope.cancel()


@pytest.mark.usefixtures("tcx")
async def test_pins_are_back_as_often_as_their_directory_goes(kernel: Kernel, bpffs: Path) -> None:
    kernel.veth("v0", "v1")
    row = (bpffs / "links", "a")
    async with hooking(kernel, bpffs, verify_interval_s=0.0) as hooks:
        hooks.bench.write(hooks.row("one", row[1]))
        await hooks.bench.settled()
        watch = PinWatch([row[0]], hooks.bench.reconciler.verify_now)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(watch.run)
            for _ in range(3):
                await anyio.sleep(QUIET_S)
                shutil.rmtree(row[0])
                with anyio.fail_after(5):
                    while not row[0].is_dir() or not any(row[0].iterdir()):
                        await anyio.sleep(0.01)
            assert hooks.order() == "a"
            tasks.cancel_scope.cancel()


async def test_clsact_filters_keep_order_and_are_back_at_once(kernel: Kernel, bpffs: Path) -> None:
    kernel.veth("v0", "v1")
    kernel.tc("qdisc add dev v0 clsact")
    pinned = bpffs / "programs" / "d"
    kernel.tc(f"filter add dev v0 ingress prio 7 bpf da pinned {pinned}")

    def programs() -> list[int]:
        text = kernel.tc("-j filter show dev v0 ingress")
        return [entry["options"]["prog"]["id"] for entry in json.loads(text) if "options" in entry]

    async with hooking(kernel, bpffs, clsact=True, verify_interval_s=0.0) as hooks:
        two = hooks.row("two", "b")
        hooks.bench.write(two)
        await hooks.bench.settled()
        hooks.bench.write(
            hooks.row("one", "a", order=AttachOrder(OrderKind.BEFORE, "two")),
            hooks.row("out", "c", "egress"),
        )
        assert await hooks.bench.settled() == ["done"] * 3
        foreign = number(bpffs, "d")
        assert programs() == [foreign, number(bpffs, "a"), number(bpffs, "b")]
        hooks.bench.write(hooks.row("one", "c", order=AttachOrder(OrderKind.BEFORE, "two")))
        await hooks.bench.settled()
        whole = [foreign, number(bpffs, "c"), number(bpffs, "b")]
        assert programs() == whole
        hooks.bench.write(hooks.row("one", "c", order=AttachOrder(OrderKind.AFTER, "two")))
        await hooks.bench.settled()
        assert programs() == [foreign, number(bpffs, "b"), number(bpffs, "c")]
        hooks.bench.write(hooks.row("one", "c", order=AttachOrder(OrderKind.BEFORE, "two")))
        await hooks.bench.settled()
        assert programs() == whole
        watch = FilterWatch(hooks.bench.reconciler.verify_now, kernel.netns)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(watch.run)
            await anyio.sleep(QUIET_S)
            seen = hooks.bench.drifted()
            kernel.tc("filter del dev v0 ingress prio 50000")
            drift = await hooks.bench.repaired(lambda: programs() != whole, seen)
            assert drift.kind == "missing"
            kernel.tc("qdisc del dev v0 clsact")
            await hooks.bench.repaired(lambda: programs() != whole[1:], seen)
            kernel.tc(f"filter add dev v0 ingress prio 7 bpf da pinned {pinned}")
            tasks.cancel_scope.cancel()
    # What is not wanted after a restart goes; what someone else put there stays.
    async with hooking(kernel, bpffs, clsact=True) as hooks:
        hooks.bench.write(two)
        await hooks.bench.settled()
        with anyio.fail_after(5):
            while programs() != [foreign, number(bpffs, "b")]:
                await anyio.sleep(0.01)


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


@pytest.mark.usefixtures("tcx")
async def test_a_restart_keeps_every_link_and_prunes_what_nobody_wants(
    kernel: Kernel, bpffs: Path
) -> None:
    kernel.veth("v0", "v1")
    async with hooking(kernel, bpffs) as hooks:
        one = hooks.row("one", "a")
        hooks.bench.write(one, hooks.row("two", "b"))
        await hooks.bench.settled()
        with hooks.link(one) as link:
            before = link.info()
    # As if killed between pinning beside the name and taking the name over.
    place = bpffs / "links" / pin_name(one)
    place.rename(place.with_name(place.name + pins.NEW))
    async with hooking(kernel, bpffs) as hooks:
        assert hooks.order() == "ab"
        hooks.bench.write(one)
        assert await hooks.bench.settled() == ["done"]
        with hooks.link(one) as link:
            assert link.info() == before
        with anyio.fail_after(5):
            while (hooks.order(), names(bpffs / "links")) != ("a", [place.name]):
                await anyio.sleep(0.01)


@pytest.mark.usefixtures("tcx")
async def test_a_program_that_is_missing_leaves_what_is_in_force(
    kernel: Kernel, bpffs: Path
) -> None:
    kernel.veth("v0", "v1")
    async with hooking(kernel, bpffs) as hooks:
        hooks.bench.write(hooks.row("one", "a"))
        await hooks.bench.settled()
        hooks.bench.write(hooks.row("one", "nothing"))
        (status,) = await hooks.bench.settled()
        assert status.startswith("error: open pin ")
        hooks.bench.reconciler.prune_now()
        hooks.bench.reconciler.verify_now()
        await anyio.sleep(QUIET_S)
        assert hooks.order() == "a"


@pytest.mark.usefixtures("tcx")
async def test_a_device_made_anew_under_its_name_is_attached_to_again(
    kernel: Kernel, bpffs: Path
) -> None:
    kernel.veth("v0", "v1")
    async with hooking(kernel, bpffs, retry_backoff_min_s=60.0) as hooks:
        hooks.bench.write(hooks.row("one", "a"))
        await hooks.bench.settled()
        first = hooks.world.index("v0")
        kernel.ip("link del v0")
        await hooks.bench.until_statuses("error: no device v0")
        kernel.veth("other0", "other1")  # takes the next index
        kernel.veth("v0", "v1")
        await hooks.bench.until_statuses("done")
        second = hooks.world.index("v0")
        assert second != first
        assert hooks.order() == "a"
        # Without a moment at which the reconciler could see it gone.
        kernel.ip_batch(["link del v0", "link add v0 type veth peer name v1"])
        await hooks.world.until(
            hooks.world.tables.devices,
            lambda: hooks.world.device("v0") is not None and hooks.world.index("v0") > second,
        )
        with anyio.fail_after(2):
            # A pin is made beside its predecessor: for a moment there are two.
            while hooks.order() != "a" or len(list((bpffs / "links").iterdir())) != 1:
                await anyio.sleep(0.01)


DEVICES = int(os.environ.get("CILIA_TEST_DEVICES", "100"))


@pytest.mark.usefixtures("tcx")
@pytest.mark.timeout(120)
async def test_attachments_follow_devices_that_come_and_go(kernel: Kernel, bpffs: Path) -> None:
    """Devices come in bursts, are attached to at both hooks, and go; nothing is left.

    1,000 of them with CILIA_TEST_DEVICES=1000; the kernel takes 16 ms an attachment.
    """
    burst = min(100, DEVICES)
    ours = {number(bpffs, "a"), number(bpffs, "b")}
    async with hooking(kernel, bpffs) as hooks:
        table = hooks.bench.table
        started, used = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF)
        for start in range(0, DEVICES, burst):
            names = [f"n{i}" for i in range(start, start + burst)]
            hooks.bench.write(
                *(
                    hooks.row("main", program, hook, name)
                    for name in names
                    for program, hook in (("a", "ingress"), ("b", "egress"))
                )
            )
            lines = [f"link add {name} group 7 type veth peer name p{name}" for name in names]
            await anyio.to_thread.run_sync(kernel.ip_batch, lines)
            with anyio.fail_after(30):
                while set(hooks.bench.statuses()) != {"done"}:
                    await anyio.sleep(0.05)
            assert hooks.order(names[-1]) == "a"
            await anyio.to_thread.run_sync(kernel.ip, "link del group 7")
            hooks.bench.delete(*table.all(hooks.world.db.read_txn()))
            await hooks.bench.settled(timeout_s=30)
        after = resource.getrusage(resource.RUSAGE_SELF)
        cpu_s = after.ru_utime + after.ru_stime - used.ru_utime - used.ru_stime
        print(f"{DEVICES} devices: {time.perf_counter() - started:.1f} s, {cpu_s:.1f} s CPU")
        assert list((bpffs / "links").iterdir()) == []
        with anyio.fail_after(5):
            while any(link.program_id in ours for link in all_links()):
                await anyio.sleep(0.01)
        devices = hooks.world.tables.devices
        await hooks.world.until(
            devices, lambda: devices.num_objects(hooks.world.db.read_txn()) == 1
        )


@pytest.mark.usefixtures("tcx")
async def test_reading_back_a_thousand_links_costs_little(kernel: Kernel, bpffs: Path) -> None:
    """Once a second for 1,000 links must stay a small part of one core."""
    kernel.veth("v0", "v1")
    places = LinkPlaces(bpffs / "links")
    with Program.open_pinned(bpffs / "programs" / "a") as program:

        def attach() -> None:
            with Link.create(program, 1, AttachType.TCX_INGRESS) as link:
                for i in range(1000):
                    pins.pin(link.number, bpffs / "links" / f"l{i}")

        kernel.netns.run(attach)
    started, used = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF)
    assert len(places.installed()) == 1000
    after = resource.getrusage(resource.RUSAGE_SELF)
    cpu_s = after.ru_utime + after.ru_stime - used.ru_utime - used.ru_stime
    assert cpu_s < 0.25, (cpu_s, time.perf_counter() - started)


def test_the_check_names_the_field() -> None:
    good = Attachment(target="v0", hook=AttachHook.INGRESS, owner="a", program="/p")
    attachments.check(good)
    for fields, name in (
        ({"owner": ""}, "owner"),
        ({"target": "/sys/fs/cgroup"}, "target"),
        ({"hook": AttachHook.CONNECT4}, "target"),
        ({"order": AttachOrder(OrderKind.BEFORE)}, "order"),
        ({"order": AttachOrder(OrderKind.FIRST, "b")}, "order"),
        ({"order": AttachOrder(OrderKind.BEFORE, "a")}, "order"),
    ):
        with pytest.raises(ValueError, match=name):
            attachments.check(msgspec.structs.replace(good, **fields))
