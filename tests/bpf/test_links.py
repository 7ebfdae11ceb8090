# SPDX-License-Identifier: Apache-2.0
"""Attachments to devices and namespaces: one hook, several programs, atomic replacement."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from bpf import clsact
from bpf.clsact import Direction, Filter
from bpf.descriptors import Fd
from bpf.errors import Detached, DeviceGone, Exists, Invalid, KernelError, StaleRevision
from bpf.link import FIRST, LAST, AttachType, Link, LinkType, after, before, read_hook
from bpf.object import Object
from bpf.program import Program
from bpf.xdp import XdpMode
from tests.bpf.sources import build
from tests.bpf.world import NetworkNamespace

pytestmark = pytest.mark.root

SOURCE = """
SEC("tc") int a(struct __sk_buff *ctx) { return -1; }
SEC("tc") int b(struct __sk_buff *ctx) { return -1; }
SEC("tc") int c(struct __sk_buff *ctx) { return -1; }
SEC("tc") int d(struct __sk_buff *ctx) { return -1; }
SEC("xdp") int pass(struct xdp_md *ctx) { return XDP_PASS; }
SEC("xdp") int pass2(struct xdp_md *ctx) { return XDP_PASS; }
SEC("sk_lookup") int lookup(struct bpf_sk_lookup *ctx) { return SK_DROP; }
"""


@pytest.fixture
def programs() -> Iterator[dict[str, Program]]:
    with Object.open("test", build(SOURCE)) as obj:
        obj.load()
        yield {program.name: program for program in obj.programs()}


def order(ifindex: int, programs: dict[str, Program]) -> str:
    """The names of the programs at TCX ingress, in order."""
    names = {program.info().id: name for name, program in programs.items()}
    return "".join(
        names[number] for number in read_hook(ifindex, AttachType.TCX_INGRESS).program_ids
    )


@pytest.mark.usefixtures("tcx")
def test_tcx_order_is_first_last_or_relative(
    netns: NetworkNamespace, programs: dict[str, Program]
) -> None:
    device = netns.ifindex("one")
    with netns.enter():
        b = Link.create(programs["b"], device, AttachType.TCX_INGRESS)
        a = Link.create(programs["a"], device, AttachType.TCX_INGRESS, place=FIRST)
        d = Link.create(programs["d"], device, AttachType.TCX_INGRESS, place=LAST)
        assert order(device, programs) == "abd"
        c = Link.create(programs["c"], device, AttachType.TCX_INGRESS, place=before(d))
        assert order(device, programs) == "abcd"
        c.close()
        assert order(device, programs) == "abd"
        c = Link.create(programs["c"], device, AttachType.TCX_INGRESS, place=after(programs["a"]))
        assert order(device, programs) == "acbd"
        assert read_hook(device, AttachType.TCX_EGRESS).program_ids == ()
    for link in (a, b, c, d):
        link.close()


@pytest.mark.usefixtures("tcx")
def test_tcx_refuses_a_choice_made_on_an_old_revision(
    netns: NetworkNamespace, programs: dict[str, Program]
) -> None:
    device = netns.ifindex("one")
    with netns.enter():
        revision = read_hook(device, AttachType.TCX_INGRESS).revision
        with Link.create(programs["a"], device, AttachType.TCX_INGRESS, expected_revision=revision):
            with pytest.raises(StaleRevision):
                Link.create(
                    programs["b"], device, AttachType.TCX_INGRESS, expected_revision=revision
                )
            with pytest.raises(Exists):
                Link.create(programs["a"], device, AttachType.TCX_INGRESS)


@pytest.mark.usefixtures("tcx")
def test_link_update_keeps_the_place_and_swaps_the_program(
    netns: NetworkNamespace, programs: dict[str, Program]
) -> None:
    device = netns.ifindex("one")
    with (
        netns.enter(),
        Link.create(programs["a"], device, AttachType.TCX_INGRESS) as first,
        Link.create(programs["b"], device, AttachType.TCX_INGRESS),
    ):
        number = first.info().id
        first.update(programs["c"])
        assert order(device, programs) == "cb"
        assert first.info().id == number
        with pytest.raises(Invalid):
            first.update(programs["pass"])
        assert order(device, programs) == "cb"


@pytest.mark.usefixtures("tcx")
def test_link_of_a_removed_device_is_detached(
    netns: NetworkNamespace, programs: dict[str, Program]
) -> None:
    with netns.enter():
        link = Link.create(programs["a"], netns.ifindex("one"), AttachType.TCX_INGRESS)
        assert link.info()[3:] == (AttachType.TCX_INGRESS, netns.ifindex("one"))
        netns.run("link", "del", "one")
        assert link.info().target == 0
        with pytest.raises(Detached):
            link.update(programs["b"])
        with pytest.raises(DeviceGone):
            read_hook(9999, AttachType.TCX_INGRESS)
        with pytest.raises(DeviceGone):
            Link.create(programs["a"], 9999, AttachType.TCX_INGRESS)


@pytest.mark.parametrize("mode", list(XdpMode))
def test_xdp_link_is_exclusive_and_updatable(
    netns: NetworkNamespace, programs: dict[str, Program], mode: XdpMode
) -> None:
    device = netns.ifindex("one")
    with (
        netns.enter(),
        Link.create(programs["pass"], device, AttachType.XDP, flags=mode.flags) as link,
    ):
        info = link.info()
        assert (info.type, info.target) == (LinkType.XDP, device)
        with pytest.raises(KernelError, match="attach to xdp"):
            Link.create(programs["pass2"], device, AttachType.XDP, flags=mode.flags)
        link.update(programs["pass2"])
        assert link.info().program_id == programs["pass2"].info().id


def test_netns_link_decides_about_sockets(
    netns: NetworkNamespace, programs: dict[str, Program]
) -> None:
    with netns.enter():
        server = socket.create_server(("127.0.0.1", 0))
        address = server.getsockname()
        with Fd(open_namespace(netns)) as namespace:
            link = Link.create(programs["lookup"], namespace.number, AttachType.SK_LOOKUP)
        assert link.info().type == LinkType.NETNS
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(address, timeout=2)
        link.close()
        socket.create_connection(address, timeout=2).close()
        server.close()


def open_namespace(netns: NetworkNamespace) -> int:
    import os

    return os.open(f"/run/netns/{netns.name}", os.O_RDONLY | os.O_CLOEXEC)


@pytest.mark.usefixtures("tcx")
def test_pinned_link_outlives_its_owner(
    netns: NetworkNamespace, programs: dict[str, Program], bpffs: Path
) -> None:
    from bpf import pins

    device = netns.ifindex("one")
    with netns.enter():
        link = Link.create(programs["a"], device, AttachType.TCX_INGRESS)
        pins.replace(link.number, bpffs / "link")
        link.close()
        assert order(device, programs) == "a"
        with Link.open_pinned(bpffs / "link") as again:
            again.detach()
        assert order(device, programs) == ""


def test_a_pin_that_cannot_be_made_is_called_by_its_own_name(
    programs: dict[str, Program], tmp_path: Path
) -> None:
    from bpf import pins

    with pytest.raises(KernelError, match=rf"pin {tmp_path}/name: "):
        pins.replace(programs["a"].number, tmp_path / "name")


def test_clsact_filter_is_replaced_in_its_place(
    netns: NetworkNamespace, programs: dict[str, Program]
) -> None:
    device = netns.ifindex("one")
    first = Filter(device, Direction.INGRESS, priority=1, handle=1)
    second = first._replace(handle=2)
    egress = first._replace(direction=Direction.EGRESS)
    with netns.enter():
        assert clsact.attached(first) is None
        clsact.detach(first)
        clsact.attach(programs["a"], first)
        clsact.attach(programs["b"], second)
        assert clsact.attached(first) == programs["a"].info().id
        assert clsact.attach(programs["c"], first) == programs["c"].info().id
        assert clsact.attached(first) == programs["c"].info().id
        assert clsact.attached(second) == programs["b"].info().id
        assert clsact.attached(egress) is None
        clsact.detach(first)
        clsact.detach(first)
        assert clsact.attached(first) is None
        assert clsact.attached(second) == programs["b"].info().id


def test_clsact_on_a_missing_device_says_so(
    netns: NetworkNamespace, programs: dict[str, Program], capfd: pytest.CaptureFixture[str]
) -> None:
    with netns.enter(), pytest.raises(KernelError, match="interface 9999"):
        clsact.attach(programs["a"], Filter(9999, Direction.INGRESS, 1, 1))
    assert capfd.readouterr().err == ""
