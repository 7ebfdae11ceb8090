# SPDX-License-Identifier: Apache-2.0
"""Every kind of map that the datapath uses, in the kernel."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bpf.btf import Formatter
from bpf.errors import Exists, Invalid, NotFound
from bpf.libbpf import ffi, lib, options, possible_cpus
from bpf.maps.map import Map
from bpf.maps.percpu import PerCpuMap
from bpf.maps.references import ReferenceMap, index_key, lpm_key
from bpf.maps.types import MapFlag, MapType
from bpf.object import Object
from tests.bpf.sources import build

pytestmark = pytest.mark.root

PACKET = bytes(64)


def u32(number: int) -> bytes:
    return number.to_bytes(4, "little")


@pytest.mark.parametrize(
    ("kind", "flags"),
    [
        (MapType.HASH, MapFlag.NONE),
        (MapType.HASH, MapFlag.NO_PREALLOC),
        (MapType.LRU_HASH, MapFlag.NONE),
    ],
)
def test_hash_kinds_keep_what_they_are_given(kind: MapType, flags: MapFlag) -> None:
    with Map.create(kind, "test", 4, 4, 1024, flags=flags) as opened:
        assert opened.info.type is kind
        keys = [u32(n) for n in range(500)]
        opened.update_batch(keys, [u32(n + 1) for n in range(500)])
        assert dict(opened.items()) == {u32(n): u32(n + 1) for n in range(500)}
        assert sorted(opened.keys()) == sorted(keys)
        opened.clear()
        assert list(opened.keys()) == []


def test_lru_makes_room_by_forgetting() -> None:
    with Map.create(MapType.LRU_HASH, "test", 4, 4, 128) as opened:
        for n in range(1000):
            opened.update(u32(n), u32(n))
        left = [key for key, _ in opened.items()]
        assert 0 < len(left) <= 128
        assert u32(999) in left


def test_array_has_every_index_from_the_start() -> None:
    with Map.create(MapType.ARRAY, "test", 4, 8, 5) as opened:
        assert list(opened.items()) == [(u32(n), bytes(8)) for n in range(5)]
        opened.update_batch([u32(1), u32(3)], [b"11111111", b"33333333"])
        assert opened.lookup(u32(3)) == b"33333333"
        with pytest.raises(Invalid):
            opened.delete(u32(1))
        assert opened.lookup(u32(5)) is None


@pytest.mark.parametrize(
    "kind", [MapType.PERCPU_HASH, MapType.PERCPU_ARRAY, MapType.LRU_PERCPU_HASH]
)
def test_per_cpu_kinds_have_a_value_for_every_possible_cpu(kind: MapType) -> None:
    # 12 bytes are padded to 16 in the kernel's copy.
    with PerCpuMap(Map.create(kind, "test", 4, 12, 128).detach_fd()) as opened:
        values = [bytes([cpu + 1]) * 12 for cpu in range(possible_cpus())]
        opened.update_each(u32(1), values)
        assert opened.lookup_each(u32(1)) == values
        assert dict(opened.items_each())[u32(1)] == values
        with pytest.raises(ValueError, match="bytes"):
            opened.update_each(u32(1), values[:-1])


def test_per_cpu_counters_are_added_up() -> None:
    source = """
    struct pair { __u64 a, b; };
    struct { __uint(type, BPF_MAP_TYPE_PERCPU_ARRAY); __type(key, __u32);
             __type(value, struct pair); __uint(max_entries, 2); } counters SEC(".maps");
    SEC("tc") int count(struct __sk_buff *ctx)
    {
        __u32 key = 1;
        struct pair *pair = bpf_map_lookup_elem(&counters, &key);
        if (pair) { pair->a++; pair->b += 10; }
        return 0;
    }
    """
    cpus = sorted(os.sched_getaffinity(0))
    with Object.open("test", build(source)) as obj:
        obj.load()
        counters = PerCpuMap(obj.map("counters").detach_fd())
        for cpu in cpus:
            os.sched_setaffinity(0, {cpu})
            obj.program("count").run(PACKET, repeat=3)
        os.sched_setaffinity(0, cpus)
    assert counters.sum_u64(u32(1)) == [3 * len(cpus), 30 * len(cpus)]
    assert counters.sum_u64(u32(0)) == [0, 0]


def test_longest_prefix_wins() -> None:
    with Map.create(MapType.LPM_TRIE, "test", 8, 4, 16, flags=MapFlag.NO_PREALLOC) as opened:
        wide, narrow = lpm_key(8, bytes([10, 0, 0, 0])), lpm_key(24, bytes([10, 1, 2, 0]))
        opened.update_batch([wide, narrow], [u32(1), u32(2)])
        assert opened.lookup(lpm_key(32, bytes([10, 1, 2, 9]))) == u32(2)
        assert opened.lookup(lpm_key(32, bytes([10, 9, 9, 9]))) == u32(1)
        assert opened.lookup(lpm_key(32, bytes([11, 0, 0, 0]))) is None
        assert dict(opened.items()) == {wide: u32(1), narrow: u32(2)}
        opened.delete_batch([wide, lpm_key(8, bytes([99, 0, 0, 0]))])
        assert dict(opened.items()) == {narrow: u32(2)}


@pytest.mark.parametrize("kind", [MapType.HASH_OF_MAPS, MapType.ARRAY_OF_MAPS])
def test_map_of_maps_gives_back_what_was_put_in(kind: MapType) -> None:
    with (
        Map.create(MapType.HASH, "inner", 4, 4, 8) as one,
        Map.create(MapType.HASH, "inner", 4, 4, 8) as two,
        Map.create(MapType.HASH, "other", 8, 4, 8) as misfit,
        ReferenceMap(Map.create(kind, "outer", 4, 4, 4, inner=one).detach_fd()) as outer,
    ):
        outer.set(u32(1), one)
        outer.set(u32(2), two)
        two.update(u32(7), u32(77))
        assert outer.held_id(u32(1)) == one.info.id
        found = outer.inner_map(u32(2))
        assert found is not None
        assert found.lookup(u32(7)) == u32(77)
        assert outer.inner_map(u32(3)) is None
        with pytest.raises(Invalid):
            outer.set(u32(1), misfit)


def test_inner_map_lives_through_the_outer_one_alone() -> None:
    inner = Map.create(MapType.HASH, "inner", 4, 4, 8)
    outer = ReferenceMap(Map.create(MapType.HASH_OF_MAPS, "o", 4, 4, 4, inner=inner).detach_fd())
    outer.set(u32(1), inner)
    inner.update(u32(5), u32(6))
    inner.close()
    again = outer.inner_map(u32(1))
    assert again is not None
    assert again.lookup(u32(5)) == u32(6)


TAIL_CALLS = """
struct { __uint(type, BPF_MAP_TYPE_PROG_ARRAY); __uint(key_size, 4); __uint(value_size, 4);
         __uint(max_entries, 4); } calls SEC(".maps");
SEC("tc") int first(struct __sk_buff *ctx) { bpf_tail_call(ctx, &calls, 1); return 11; }
SEC("tc") int second(struct __sk_buff *ctx) { return 22; }
SEC("xdp") int other(struct xdp_md *ctx) { return 1; }
"""


def test_tail_call_goes_where_the_array_says() -> None:
    with Object.open("test", build(TAIL_CALLS)) as obj:
        obj.load()
        calls = ReferenceMap(obj.map("calls").detach_fd())
        first = obj.program("first")
        assert first.run(PACKET).retval == 11
        calls.set(index_key(1), obj.program("second"))
        assert first.run(PACKET).retval == 22
        target = calls.program(index_key(1))
        assert target is not None
        assert target.name == "second"
        with pytest.raises(Invalid):
            calls.set(index_key(1), obj.program("other"))
        calls.delete(index_key(1))
        assert first.run(PACKET).retval == 11


def test_pin_is_taken_over_atomically(bpffs: Path) -> None:
    path = bpffs / "map"
    old = Map.create(MapType.HASH, "old", 4, 4, 8)
    new = Map.create(MapType.HASH, "new", 4, 4, 8)
    with pytest.raises(NotFound):
        Map.open_pinned(path)
    old.pin(path)
    with pytest.raises(Exists):
        new.pin(path)
    new.replace_pin(path)
    assert Map.open_pinned(path).info.id == new.info.id
    assert [path.name for path in bpffs.glob("map~*")] == []


def test_map_by_number() -> None:
    opened = Map.create(MapType.HASH, "test", 4, 4, 8)
    number = opened.info.id
    assert Map.by_id(number).info.name == "test"
    with pytest.raises(NotFound):
        Map.by_id(0xFFFFFFF0)


TYPED = """
struct place { __u32 address; __u16 port; __u16 pad; };
struct { __uint(type, BPF_MAP_TYPE_HASH); __type(key, struct place); __type(value, __u64);
         __uint(max_entries, 4); } typed SEC(".maps");
SEC("tc") int use(struct __sk_buff *ctx)
{
    struct place key = {};
    return bpf_map_lookup_elem(&typed, &key) != 0;
}
"""


def test_entries_are_shown_by_their_c_types() -> None:
    with Object.open("test", build(TYPED)) as obj:
        obj.load()
        with Formatter(obj.map("typed")) as shown:
            key = u32(1) + (80).to_bytes(2, "little") + bytes(2)
            assert (
                shown.key(key)
                == "(struct place){.address = (__u32)1,.port = (__u16)80,.pad = (__u16)0,}"
            )
            assert shown.value((77).to_bytes(8, "little")) == "(__u64)77"


def test_map_without_types_is_shown_in_hexadecimal() -> None:
    with Map.create(MapType.HASH, "test", 4, 4, 8) as opened, Formatter(opened) as shown:
        assert shown.key(b"\x01\x02\x03\x04") == "01020304"


CANARY = b"\xa5" * 512


def written_by_lookup(opened: Map, key: bytes) -> int:
    """Return how many bytes the kernel writes for one value; 0 if it refuses the look-up."""
    buffer = ffi.new("char[]", CANARY * 40)
    if lib.bpf_map_lookup_elem(opened.number, key, buffer) != 0:
        return 0
    return len(bytes(ffi.buffer(buffer)).rstrip(b"\0").rstrip(b"\xa5"))


@pytest.mark.parametrize("kind", range(1, 40))
def test_no_lookup_writes_beyond_the_size_of_a_value(kind: int) -> None:
    """Kinds that this kernel does not have, or not so, are refused when they are made."""
    made = 0
    for value_size in (1, 3, 4, 8, 9, 16, 100, 256):
        for key_size in (0, 4, 8):
            fd = lib.bpf_map_create(
                kind, b"test", key_size, value_size, 8, options("bpf_map_create_opts", map_flags=0)
            )
            if fd < 0:
                continue
            with Map(fd) as opened:
                made += 1
                key = bytes(key_size)
                lib.bpf_map_update_elem(fd, key, b"\x5a" * 512 * 40, 0)
                assert written_by_lookup(opened, key) <= opened.value_size, (kind, value_size)
    if kind in (MapType.HASH, MapType.PERCPU_HASH, MapType.PERCPU_ARRAY, MapType.LRU_PERCPU_HASH):
        assert made >= 8
