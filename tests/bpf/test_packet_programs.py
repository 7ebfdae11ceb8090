# SPDX-License-Identifier: Apache-2.0
"""Programs of packets come with the socket programs: pinned, and swapped where links hold them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from bpf import compile as bpf_compile
from bpf import pins
from bpf.link import AttachType, Link
from bpf.packet_programs import PacketConfig
from bpf.program import Program
from bpf.sock import SockConfig, SockDatapath, cleanup
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


def started(world: World, verdict: int, *, entries: int = 64) -> SockDatapath:
    packets = PacketConfig(
        ["host"], {"verdict": verdict.to_bytes(4, "little")}, {"cilia_ct4_tcp": entries}
    )
    sock = SockDatapath(SockConfig(world.bpffs / "test", world.cgroup), packets)
    sock.open_maps().close()
    sock.load()
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
    sock.attach()
    assert sock.drift() == []
    sock.close()


def test_a_new_start_swaps_what_links_hold(
    tcx: None, world: World, pin_dir: Path, netns: NetworkNamespace
) -> None:
    started(world, 0).close()
    links = pin_dir / "attachments"
    links.mkdir()
    pin = pin_dir / "programs" / "from_netdev"
    device = netns.ifindex("one")
    with Program.open_pinned(pin) as program, netns.enter():
        made = Link.create(program, device, AttachType.TCX_INGRESS)
    with made:
        pins.pin(made.number, links / "one")
        before = made.info().program_id
        started(world, 2).close()
        assert made.info().program_id == program_id(pin) != before


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
    sock = SockDatapath(SockConfig(pin_dir, world.cgroup))
    sock.open_maps().close()
    sock.load()
    sock.attach()
    assert "from_netdev" in sock.retire()
    assert not list((pin_dir / "programs").iterdir())
    sock.close()
