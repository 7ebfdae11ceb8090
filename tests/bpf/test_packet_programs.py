# SPDX-License-Identifier: Apache-2.0
"""Programs of packets come with the socket programs: pinned, and updated in links of devices."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from bpf import compile as bpf_compile
from bpf import pins
from bpf.datapath import cleanup
from bpf.errors import NotFound
from bpf.link import AttachType, Link, LinkInfo
from bpf.packet_programs import PacketConfig
from bpf.program import Program
from bpf.sock import SockConfig
from cilia.linux.netlink import Netlink
from reconcilers.datapath.attachment_places import FilterPlaces, foreign_filters, pin_name
from tables.datapath.attachments import AttachHook, Attachment
from tables.node.devices import Device
from tests.bpf.attaching import AttachingDatapath
from tests.bpf.sources import build
from tests.bpf.world import NetworkNamespace, World

pytestmark = pytest.mark.root

SOURCE = """
const volatile __u32 verdict = 0;
struct {
    __uint(type, BPF_MAP_TYPE_LRU_HASH);
    __type(key, __u32);
    __type(value, __u64);
    __uint(max_entries, 64);
} cilia_ct4_tcp SEC(".maps");
SEC("tc") int from_netdev(struct __sk_buff *skb)
{
    __u32 key = 1;
    __u64 value = 2;
    bpf_map_update_elem(&cilia_ct4_tcp, &key, &value, 0);
    return verdict;
}
"""


@pytest.fixture(autouse=True)
def objects(monkeypatch: pytest.MonkeyPatch) -> None:
    real = bpf_compile.load_object

    def load(name: str, *, cache_dir: Path | None = None) -> bytes:
        return build(SOURCE) if name == "host" else real(name, cache_dir=cache_dir)

    monkeypatch.setattr(bpf_compile, "load_object", load)


def loaded(
    world: World,
    verdict: int,
    *,
    entries: int = 64,
    tcx: bool | None = None,
    instance: str = "test",
) -> AttachingDatapath:
    packets = PacketConfig(
        ["host"], {"verdict": verdict.to_bytes(4, "little")}, {"cilia_ct4_tcp": entries}
    )
    sock = AttachingDatapath(SockConfig(world.bpffs / instance, world.cgroup), packets, tcx=tcx)
    sock.open_maps().close()
    sock.load()
    return sock


def started(
    world: World,
    verdict: int,
    *,
    entries: int = 64,
    tcx: bool | None = None,
    device: Device | None = None,
    row: Attachment | None = None,
) -> AttachingDatapath:
    """`row`: an attachment of `device`."""
    sock = loaded(world, verdict, entries=entries, tcx=tcx)
    if device is not None and row is not None:
        with sock.db.write_txn(sock.devices) as wtxn:
            sock.devices.insert(wtxn, device)
        sock.device_rows.append(row)
    sock.attach()
    return sock


@pytest.fixture
def pin_dir(world: World) -> Iterator[Path]:
    yield world.bpffs / "test"
    cleanup(world.bpffs / "test")


def program_id(path: Path) -> int:
    with Program.open_pinned(path) as program:
        return program.info().id


def test_programs_are_pinned_and_drift_is_seen(world: World, pin_dir: Path) -> None:
    sock = started(world, 0)
    pin = pin_dir / "programs" / "from_netdev"
    assert sock.drift() == []
    pin.unlink()
    assert sock.drift() == ["from_netdev"]
    assert sock.not_in_force() == []  # looking puts it back
    assert sock.drift() == []
    sock.close()


def test_programs_are_loaded_anew_with_other_constants(world: World, pin_dir: Path) -> None:
    sock = started(world, 0)
    first = program_id(pin_dir / "programs" / "from_netdev")
    with pytest.raises(NotFound, match="constant unheard"):
        sock.load({"unheard": bytes(4)})
    assert sock.drift() == []  # those before stay
    assert sock.constants == {"verdict": bytes(4)}
    sock.load({"verdict": b"\2\0\0\0"})
    sock.publish()
    with Program.open_pinned(pin_dir / "programs" / "from_netdev") as program:
        assert program.info().id != first
        assert program.run(bytes(64)).retval == 2
    assert sock.not_in_force()  # until its rows are applied again
    for revision, row in enumerate(sock.rows):
        sock.operations.update(sock.db.read_txn(), revision, row)
    assert sock.not_in_force() == []
    sock.close()


def test_a_new_start_swaps_what_links_hold(
    tcx: None, world: World, pin_dir: Path, netns: NetworkNamespace
) -> None:
    device = Device(netns.ifindex("one"), "one")
    row = Attachment(
        target="one",
        hook=AttachHook.INGRESS,
        owner="cilia",
        program=str(pin_dir / "programs" / "from_netdev"),
    )

    def start(verdict: int) -> LinkInfo:
        with netns.enter():
            started(world, verdict, device=device, row=row).close()
        with Link.open_pinned(pin_dir / "attachments" / pin_name(row)) as link:
            return link.info()

    first, second = start(0), start(2)
    assert second.id == first.id
    assert second.program_id == program_id(Path(row.program)) != first.program_id
    assert second.target == device.index


def test_nothing_is_retired_while_a_device_runs_a_predecessor(
    tcx: None, world: World, pin_dir: Path, netns: NetworkNamespace
) -> None:
    started(world, 0).close()
    with Program.open_pinned(pin_dir / "programs" / "from_netdev") as program, netns.enter():
        made = Link.create(program, netns.ifindex("one"), AttachType.TCX_INGRESS)
    with made:
        sock = loaded(world, 2)
        pins.pin(made.number, pin_dir / "attachments" / "one")
        sock.publish()
        for revision, row in enumerate(sock.rows):
            sock.operations.update(sock.db.read_txn(), revision, row)
        assert sock.predecessors() == ["one"]
        with pytest.raises(RuntimeError, match="before the links were updated: one"):
            sock.retire()
        sock.attach()  # no row wants it: it is pruned
        assert sock.retire() == []
        sock.close()


def test_a_new_start_swaps_what_filters_hold(
    world: World, pin_dir: Path, netns: NetworkNamespace
) -> None:
    """Every kernel has tc filters; they stand in where there is no TCX."""
    device = Device(netns.ifindex("one"), "one")
    program = pin_dir / "programs" / "from_netdev"
    row = Attachment(target="one", hook=AttachHook.INGRESS, owner="cilia", program=str(program))

    def start(verdict: int) -> int:
        started(world, verdict, tcx=False, device=device, row=row).close()
        return program_id(program)

    with netns.enter(), Netlink() as netlink:
        filters = FilterPlaces(netlink, pin_dir)
        seen = []
        for verdict in (0, 2):
            seen.append(start(verdict))
            assert list(filters.program_ids().values()) == seen[-1:]
        assert seen[0] != seen[1]
        assert filters.detach_all() == 1
        assert filters.program_ids() == {}


def test_nothing_is_retired_while_a_filter_runs_a_predecessor(
    world: World, pin_dir: Path, netns: NetworkNamespace
) -> None:
    device = Device(netns.ifindex("one"), "one")
    program = pin_dir / "programs" / "from_netdev"
    row = Attachment(target="one", hook=AttachHook.INGRESS, owner="cilia", program=str(program))
    with netns.enter():
        started(world, 0, tcx=False, device=device, row=row).close()
        sock = loaded(world, 2, tcx=False)
        sock.publish()
        for revision, of_socket in enumerate(sock.rows):
            sock.operations.update(sock.db.read_txn(), revision, of_socket)
        (running,) = sock.predecessors()
        assert running.startswith("one:ingress:")
        with pytest.raises(RuntimeError, match="before the links were updated: one:ingress"):
            sock.retire()
        sock.attach()  # no row wants it: it is pruned
        assert sock.retire() == []
        sock.close()


def test_two_instances_leave_each_other_s_filters_alone(
    world: World, pin_dir: Path, netns: NetworkNamespace
) -> None:
    """At one hook of one device, with the same names of owner and program."""
    device = Device(netns.ifindex("one"), "one")
    other_dir = world.bpffs / "other"

    def row(directory: Path) -> Attachment:
        program = str(directory / "programs" / "from_netdev")
        return Attachment(target="one", hook=AttachHook.INGRESS, owner="cilia", program=program)

    with netns.enter(), Netlink() as netlink:
        ours, theirs = FilterPlaces(netlink, pin_dir), FilterPlaces(netlink, other_dir)
        other = loaded(world, 0, tcx=False, instance="other")
        with other.db.write_txn(other.devices) as wtxn:
            other.devices.insert(wtxn, device)
        other.device_rows.append(row(other_dir))
        other.publish()
        for revision, of_device in enumerate(other.device_rows):
            other.operations.update(other.db.read_txn(), revision, of_device)
        first = program_id(other_dir / "programs" / "from_netdev")
        assert list(theirs.program_ids().values()) == [first]

        sock = started(world, 2, tcx=False, device=device, row=row(pin_dir))
        assert list(theirs.program_ids().values()) == [first]
        assert sock.predecessors() == []
        second = program_id(pin_dir / "programs" / "from_netdev")
        assert list(ours.program_ids().values()) == [second]
        told = {found.program_id for found in foreign_filters(netlink, device.index, pin_dir)}
        assert told == {first}
        assert ours.detach_all() == 1
        assert list(theirs.program_ids().values()) == [first]
        sock.close()
        other.close()
    cleanup(other_dir)


def test_a_filter_of_a_predecessor_without_a_pin_is_known_by_its_maps(
    world: World, pin_dir: Path, netns: NetworkNamespace
) -> None:
    """A start that is killed after it has pinned its programs leaves such filters."""
    device = Device(netns.ifindex("one"), "one")
    program = pin_dir / "programs" / "from_netdev"
    row = Attachment(target="one", hook=AttachHook.INGRESS, owner="cilia", program=str(program))
    with netns.enter(), Netlink() as netlink:
        started(world, 0, tcx=False, device=device, row=row).close()
        first = program_id(program)
        sock = loaded(world, 2, tcx=False)
        sock.publish()
        sock.close()
        places = FilterPlaces(netlink, pin_dir)
        assert list(places.program_ids().values()) == [first] != [program_id(program)]
        assert places.detach_all() == 1


def test_flows_move_to_a_larger_map(world: World, pin_dir: Path) -> None:
    first = started(world, 0)
    with Program.open_pinned(pin_dir / "programs" / "from_netdev") as program:
        program.run(bytes(64))
    first.close()
    second = started(world, 0, entries=128)
    second.retire()
    flows = second._loader.maps["cilia_ct4_tcp"]
    assert flows.max_entries == 128
    assert dict(flows.items()) == {b"\1\0\0\0": b"\2" + bytes(7)}
    second.close()


def test_programs_of_another_build_are_unpinned(world: World, pin_dir: Path) -> None:
    started(world, 0).close()
    sock = AttachingDatapath(SockConfig(pin_dir, world.cgroup))
    sock.open_maps().close()
    sock.load()
    sock.attach()
    assert "from_netdev" in sock.retire()
    assert sorted(path.name for path in (pin_dir / "programs").iterdir()) == sorted(
        sock.socket_programs
    )
    sock.close()
