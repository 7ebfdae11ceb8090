# SPDX-License-Identifier: Apache-2.0
"""Programs of somebody else beside ours: on the hooks of a device and of a cgroup."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from bpf import clsact, features, pins
from bpf.descriptors import open_directory
from bpf.foreign import foreign_programs
from bpf.link import AttachType, Link
from bpf.object import Object
from bpf.program import Program
from cilia.linux.netlink import Netlink
from reconcilers.datapath.attachment_places import foreign_filters
from tests.bpf.sources import build
from tests.bpf.world import NetworkNamespace

pytestmark = pytest.mark.root

SOURCE = """
SEC("tc") int ours(struct __sk_buff *ctx) { return -1; }
SEC("tc") int theirs(struct __sk_buff *ctx) { return -1; }
SEC("cgroup/connect4") int our_dial(struct bpf_sock_addr *ctx) { return 1; }
SEC("cgroup/connect4") int their_dial(struct bpf_sock_addr *ctx) { return 1; }
"""


@pytest.fixture
def programs() -> Iterator[dict[str, Program]]:
    with Object.open("test", build(SOURCE)) as obj:
        obj.load()
        yield {program.name: program for program in obj.programs()}


def test_hooks_of_a_cgroup(programs: dict[str, Program], cgroup: Path, bpffs: Path) -> None:
    with ExitStack() as stack:
        target = stack.enter_context(open_directory(cgroup)).number
        hook = AttachType.CGROUP_INET4_CONNECT
        theirs = stack.enter_context(Link.create(programs["their_dial"], target, hook))
        assert foreign_programs([bpffs], cgroup) == []  # we are not there
        ours = stack.enter_context(Link.create(programs["our_dial"], target, hook))
        pins.pin(ours.number, bpffs / "dial")
        (found,) = foreign_programs([bpffs], cgroup)
        assert found == (0, "cgroup inet4 connect", programs["their_dial"].info().id, "their_dial")
        theirs.detach()
        assert foreign_programs([bpffs], cgroup) == []


def test_hooks_of_a_device(
    programs: dict[str, Program], netns: NetworkNamespace, bpffs: Path, tmp_path: Path
) -> None:
    if not features.has_tcx():
        pytest.skip("this kernel has no TCX hooks (Linux 6.6)")
    device = netns.ifindex("one")
    with netns.enter(), ExitStack() as stack:
        for hook in (AttachType.TCX_INGRESS, AttachType.TCX_EGRESS):
            ours = stack.enter_context(Link.create(programs["ours"], device, hook))
            pins.pin(ours.number, bpffs / hook.name)
        assert foreign_programs([bpffs], tmp_path) == []
        hook = AttachType.TCX_EGRESS
        stack.enter_context(Link.create(programs["theirs"], device, hook))
        (found,) = foreign_programs([bpffs], tmp_path)
        assert found == (device, "tcx egress", programs["theirs"].info().id, "theirs")


def test_filters_of_a_device(
    programs: dict[str, Program], netns: NetworkNamespace, bpffs: Path
) -> None:
    (bpffs / "programs").mkdir()
    pins.pin(programs["ours"].number, bpffs / "programs" / "ours")
    device = netns.ifindex("one")
    with netns.enter(), Netlink() as netlink:
        assert list(foreign_filters(netlink, device, bpffs)) == []
        ours = clsact.Filter(device, clsact.Direction.INGRESS, 100, 0xC1000007)
        theirs = clsact.Filter(device, clsact.Direction.INGRESS, 200, 1)
        for program, where in ((programs["ours"], ours), (programs["theirs"], theirs)):
            clsact.attach(program, where)
        (found,) = foreign_filters(netlink, device, bpffs)
        assert found == (device, "clsact ingress", programs["theirs"].info().id, "theirs")
