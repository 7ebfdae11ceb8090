# SPDX-License-Identifier: Apache-2.0
"""The map ``cilia_ipcache`` as the object defines it: layout, longest match, and its end."""

from __future__ import annotations

import random
from collections.abc import Iterator
from ipaddress import ip_address, ip_network

import pytest

from bpf import compile as bpf_compile
from bpf.errors import MapFull
from bpf.libbpf import ffi
from bpf.maps import ipcache as codec
from bpf.maps.map import Map
from bpf.maps.types import MapFlag, MapType
from bpf.object import Object

V4, V6 = ip_address("10.1.2.3").packed, ip_address("fd00::1:2").packed
Model = dict[codec.IPCacheKey, int]


@pytest.mark.parametrize(("address", "family"), [(V4, 1), (V6, 2)])
def test_a_key_is_the_c_struct(address: bytes, family: int) -> None:
    bits = 8 * len(address)
    key = codec.IPCacheKey(address, bits, 0x1234)
    raw = codec.encode_key(key)
    view = ffi.from_buffer("struct ipcache_key *", raw)
    assert len(raw) == ffi.sizeof("struct ipcache_key")
    assert (view.prefix_bits, view.cluster_id, view.family) == (32 + bits, 0x1234, family)
    assert bytes(ffi.buffer(view.address)).rstrip(b"\0") == address.rstrip(b"\0")
    assert codec.decode_key(raw) == key


@pytest.mark.parametrize(
    ("tunnel", "flags"),
    [
        (b"", codec.IPCacheFlag(0)),
        (V4, codec.IPCacheFlag.HASTUNNEL),
        (V6, codec.IPCacheFlag.HASTUNNEL | codec.IPCacheFlag.IPV6TUNNEL),
    ],
)
def test_a_value_is_the_c_struct(tunnel: bytes, flags: codec.IPCacheFlag) -> None:
    raw = codec.encode_value(codec.IPCacheValue(0x01020304, tunnel, 5))
    view = ffi.from_buffer("struct ipcache_value *", raw)
    assert len(raw) == ffi.sizeof("struct ipcache_value")
    assert (view.identity, view.encrypt_key, view.flags) == (0x01020304, 5, flags)
    assert bytes(ffi.buffer(view.tunnel)).rstrip(b"\0") == tunnel.rstrip(b"\0")
    assert codec.decode_value(raw) == codec.IPCacheValue(0x01020304, tunnel, 5, flags)


@pytest.fixture(params=[512], ids=str)
def opened(request: pytest.FixtureRequest) -> Iterator[Map]:
    """The map that the programs' object makes, with room for so many."""
    elf = bpf_compile.load_object("lxc")
    with Object.open("lxc", elf) as obj:
        assert {d.name: d.max_entries for d in obj.map_definitions()}[codec.NAME] == codec.ENTRIES
        obj.keep_programs(lambda name: False)
        for definition in obj.map_definitions():
            obj.set_max_entries(definition.name, min(definition.max_entries, request.param))
        obj.load()
        made = obj.map(codec.NAME)
    with made:
        yield made


def put(opened: Map, key: codec.IPCacheKey, identity: int) -> None:
    opened.update(codec.encode_key(key), codec.encode_value(codec.IPCacheValue(identity)))


def random_key(rng: random.Random) -> codec.IPCacheKey:
    """Of few networks, so that prefixes lie in each other."""
    if rng.random() < 0.5:
        length = rng.choice((0, 8, 12, 16, 23, 24, 31, 32))
        host = (10 << 24) | rng.getrandbits(24) & 0x0F03FF
        packed = host.to_bytes(4, "big")
    else:
        length = rng.choice((0, 16, 48, 64, 100, 127, 128))
        packed = ((0xFD00 << 112) | rng.getrandbits(80) & 0x3F0000FFFF).to_bytes(16, "big")
    network = ip_network((packed, length), strict=False)
    return codec.IPCacheKey(network.network_address.packed, length, rng.choice((0, 0, 3)))


def longest(model: Model, key: codec.IPCacheKey) -> int | None:
    """The identity of the longest prefix of the same cluster and family."""
    address = int.from_bytes(key.address, "big")
    found = [
        (of.length, identity)
        for of, identity in model.items()
        if (of.cluster_id, len(of.address)) == (key.cluster_id, len(key.address))
        and (int.from_bytes(of.address, "big") ^ address) >> 8 * len(of.address) - of.length == 0
    ]
    return max(found)[1] if found else None


@pytest.mark.root
def test_the_longest_prefix_of_the_same_cluster_and_family_wins(opened: Map) -> None:
    assert (opened.info.type, opened.info.flags) == (MapType.LPM_TRIE, MapFlag.NO_PREALLOC)
    rng = random.Random(3)
    model: Model = {}
    for _ in range(1500):
        key = random_key(rng)
        if rng.random() < 0.7 and len(model) < opened.max_entries:
            model[key] = rng.randrange(1, 1 << 24)
            put(opened, key, model[key])
        elif key in model:
            del model[key]
            opened.delete(codec.encode_key(key))
        asked = random_key(rng)
        whole = codec.IPCacheKey(asked.address, 8 * len(asked.address), asked.cluster_id)
        raw = opened.lookup(codec.encode_key(whole))
        assert (None if raw is None else codec.decode_value(raw).identity) == longest(model, whole)
    entries = {codec.decode_key(k): codec.decode_value(v).identity for k, v in opened.items()}
    assert entries == model
    assert opened.count() == len(model)


@pytest.mark.root
@pytest.mark.parametrize("opened", [8], indirect=True)
def test_a_full_map_keeps_what_it_has(opened: Map) -> None:
    keys = [codec.IPCacheKey(bytes([10, 0, 0, number]), 32) for number in range(9)]
    for key in keys[:8]:
        put(opened, key, 300)
    with pytest.raises(MapFull):
        put(opened, keys[8], 300)
    found = {codec.decode_key(key) for key, _ in opened.items()}
    assert found == set(keys[:8])
    opened.delete(codec.encode_key(keys[0]))
    put(opened, keys[8], 300)
