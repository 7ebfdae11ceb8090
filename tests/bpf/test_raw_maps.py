# SPDX-License-Identifier: Apache-2.0
"""The contract of a raw map, kept by the fake and by every kind of kernel map with free keys."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from random import Random
from threading import Thread
from typing import Any, cast

import pytest

from bpf.errors import BatchError, Exists, KernelError, MapFull, NoMemory, NotFound
from bpf.maps.fake import FakeMap, FaultyMap
from bpf.maps.raw import EXIST, NOEXIST, RawMap, SharedMap

#: More entries than one batch of an iteration.
MANY = 10_000

Maker = Callable[[int], RawMap]


def shared(raw: RawMap) -> SharedMap:
    return cast(SharedMap, raw)


def fake(max_entries: int) -> RawMap:
    return FakeMap("test", 4, 8, max_entries)


def kernel_hash(max_entries: int) -> RawMap:
    from bpf.maps.map import Map
    from bpf.maps.types import MapFlag, MapType

    return Map.create(MapType.HASH, "test", 4, 8, max_entries, flags=MapFlag.NO_PREALLOC)


def kernel_hash_without_batch(max_entries: int) -> RawMap:
    """A hash whose batch calls fail as on a kernel that has none."""
    from bpf.maps.map import Map
    from bpf.maps.types import MapType

    class Old(Map):
        def _batches(self) -> Iterator[tuple[Any, Any, int]]:
            from bpf.errors import ENOTSUPP, kernel_error

            raise kernel_error("no batch", ENOTSUPP)

    made = Old(Map.create(MapType.HASH, "test", 4, 8, max_entries).detach_fd())
    made._batch = False
    return made


@pytest.fixture(
    params=[
        pytest.param(fake, id="fake"),
        pytest.param(kernel_hash, id="hash", marks=pytest.mark.root),
        pytest.param(kernel_hash_without_batch, id="hash-no-batch", marks=pytest.mark.root),
    ]
)
def make(request: pytest.FixtureRequest) -> Maker:
    maker: Maker = request.param
    return maker


def key(number: int) -> bytes:
    return number.to_bytes(4, "little")


def value(number: int) -> bytes:
    return number.to_bytes(8, "little")


def test_an_entry_is_there_until_it_is_deleted(make: Maker) -> None:
    raw = make(10)
    assert raw.lookup(key(1)) is None
    raw.update(key(1), value(11))
    raw.update(key(1), value(12))
    assert raw.lookup(key(1)) == value(12)
    raw.delete(key(1))
    assert raw.lookup(key(1)) is None
    with pytest.raises(NotFound):
        raw.delete(key(1))


def test_flags_choose_between_create_and_replace(make: Maker) -> None:
    raw = make(10)
    with pytest.raises(NotFound):
        raw.update(key(1), value(1), EXIST)
    raw.update(key(1), value(1), NOEXIST)
    with pytest.raises(Exists):
        raw.update(key(1), value(2), NOEXIST)
    raw.update(key(1), value(3), EXIST)
    assert raw.lookup(key(1)) == value(3)


def test_full_map_refuses_a_new_key_and_takes_an_old_one(make: Maker) -> None:
    raw = make(2)
    raw.update(key(1), value(1))
    raw.update(key(2), value(2))
    with pytest.raises(MapFull):
        raw.update(key(3), value(3))
    raw.update(key(2), value(22))
    assert dict(raw.items()) == {key(1): value(1), key(2): value(22)}


def test_batches_carry_more_than_one_buffer(make: Maker) -> None:
    raw = make(MANY)
    keys = [key(n) for n in range(MANY)]
    raw.update_batch(keys, [value(n * 3) for n in range(MANY)])
    assert dict(raw.items()) == {key(n): value(n * 3) for n in range(MANY)}
    assert raw.count() == MANY
    raw.delete_batch(keys[: MANY // 2])
    assert sorted(k for k, _ in raw.items()) == sorted(keys[MANY // 2 :])
    raw.clear()
    assert list(raw.items()) == []
    assert raw.count() == 0


def test_what_reading_needed_is_freed_at_once(make: Maker) -> None:
    """Buffers in a cycle would add up until the collector comes: hundreds of MB in a busy agent."""
    entries = make(MANY)
    entries.update(bytes(4), bytes(8))
    list(entries.items())
    gc.collect()
    gc.disable()
    try:
        for _ in range(3):
            assert len(list(entries.items())) == 1
        assert gc.collect() == 0
    finally:
        gc.enable()


def test_empty_batches_do_nothing(make: Maker) -> None:
    raw = make(1)
    raw.update_batch([], [])
    raw.delete_batch([])
    raw.clear()
    assert list(raw.items()) == []


def test_batch_says_how_far_it_came_when_the_map_is_full(make: Maker) -> None:
    raw = make(3)
    with pytest.raises(BatchError) as caught:
        raw.update_batch([key(n) for n in range(5)], [value(n) for n in range(5)])
    assert caught.value.done == 3
    assert isinstance(caught.value.cause, MapFull)
    assert dict(raw.items()) == {key(n): value(n) for n in range(3)}


def test_batch_delete_passes_over_missing_keys(make: Maker) -> None:
    raw = make(10)
    raw.update_batch([key(n) for n in range(6)], [value(n) for n in range(6)])
    raw.delete_batch([key(n) for n in (9, 0, 8, 7, 2, 4, 9)])
    assert sorted(k for k, _ in raw.items()) == [key(1), key(3), key(5)]


def test_an_entry_that_changed_since_it_was_read_stays(make: Maker) -> None:
    """Only the named part of the value counts."""
    raw = make(10)
    keys = [bytes([number]) * 4 for number in range(4)]
    raw.update_batch(keys, [b"old-old1"] * 4)
    entries = list(raw.items())
    raw.update(keys[1], b"new-old1")
    raw.update(keys[2], b"old-new1")
    raw.delete(keys[3])
    gone = shared(raw).delete_unchanged(entries, slice(0, 4))
    assert sorted(gone) == [(keys[0], b"old-old1"), (keys[2], b"old-old1")]
    assert dict(raw.items()) == {keys[1]: b"new-old1"}
    assert shared(raw).delete_unchanged([], slice(0, 4)) == []


@pytest.mark.root
def test_no_entry_is_lost_that_is_replaced_while_it_is_deleted() -> None:
    """Whoever writes meanwhile, on another processor, finds what it wrote."""
    from bpf.maps.map import Map
    from bpf.maps.types import MapType

    keys = [number.to_bytes(4, "little") for number in range(2_000)]
    with Map.create(MapType.LRU_HASH, "test", 4, 8, 4_096) as raw:
        for number in range(20):
            old, new = (f"{word}{number:05}".encode() for word in ("old", "new"))
            raw.update_batch(keys, [old] * len(keys))
            entries = sorted(raw.items())
            replacing = Thread(target=raw.update_batch, args=(keys, [new] * len(keys)))
            replacing.start()
            gone = raw.delete_unchanged(entries, slice(0, 8))
            replacing.join()
            assert dict(raw.items()) == dict.fromkeys(keys, new), f"{len(gone)} were deleted"


@pytest.mark.parametrize("bad", [b"", b"123", b"12345"])
def test_wrong_sizes_never_reach_the_kernel(make: Maker, bad: bytes) -> None:
    raw = make(10)
    calls: list[Callable[[], object]] = [
        lambda: raw.lookup(bad),
        lambda: raw.update(bad, value(1)),
        lambda: raw.update(key(1), bad),
        lambda: raw.delete(bad),
        lambda: raw.update_batch([bad], [value(1)]),
        lambda: raw.delete_batch([bad]),
    ]
    for call in calls:
        with pytest.raises(ValueError, match="bytes"):
            call()
    assert list(raw.items()) == []


def test_faulty_map_fails_before_it_touches_an_entry() -> None:
    target = FakeMap("test", 4, 8)
    faulty = FaultyMap(target, 0.3, Random(7))
    failed = 0
    for n in range(200):
        try:
            faulty.update(key(n), value(n))
        except NoMemory:
            failed += 1
            assert target.lookup(key(n)) is None
        else:
            assert target.lookup(key(n)) == value(n)
    assert 30 < failed < 90


def test_faulty_batch_leaves_exactly_the_entries_that_it_counts() -> None:
    target = FakeMap("test", 4, 8)
    faulty = FaultyMap(target, 0.1, Random(3))
    keys = [key(n) for n in range(1000)]
    with pytest.raises(BatchError) as caught:
        faulty.update_batch(keys, [value(0)] * 1000)
    assert sorted(target.items()) == sorted((k, value(0)) for k in keys[: caught.value.done])


def test_faulty_map_with_probability_one_never_deletes() -> None:
    target = FakeMap("test", 4, 8)
    target.update(key(1), value(1))
    faulty = FaultyMap(target, 1.0, Random(1))
    with pytest.raises(KernelError):
        faulty.delete(key(1))
    with pytest.raises(BatchError):
        faulty.clear()
    assert list(faulty.items()) == [(key(1), value(1))]
