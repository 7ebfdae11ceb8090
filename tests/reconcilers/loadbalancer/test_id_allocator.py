# SPDX-License-Identifier: Apache-2.0
"""Numbers for addresses."""

import pytest

from reconcilers.loadbalancer.backend_references import BackendReferences
from reconcilers.loadbalancer.id_allocator import IdAllocator, IdsExhaustedError
from tables.addressing import L3n4Addr


def test_numbers_are_sequential_and_a_key_keeps_its_own() -> None:
    ids: IdAllocator[str] = IdAllocator("test")
    assert [ids.acquire(key) for key in "abca"] == [1, 2, 3, 1]


def test_freed_number_is_not_given_out_again() -> None:
    ids: IdAllocator[str] = IdAllocator("test")
    ids.acquire("a")
    assert ids.release("a") == 1
    assert ids.release("a") is None
    assert ids.acquire("a") == 2


def test_restored_key_gets_its_number_and_new_ones_come_after_the_highest() -> None:
    ids: IdAllocator[str] = IdAllocator("test")
    ids.restore("a", 7)
    ids.restore("b", 3)
    assert [ids.acquire(key) for key in "cba"] == [8, 3, 7]
    assert ids.restored == {}


def test_forgotten_key_is_new() -> None:
    ids: IdAllocator[str] = IdAllocator("test")
    ids.restore("a", 7)
    ids.forget_restored()
    assert ids.acquire("a") == 8


def test_numbers_wrap_around_and_skip_those_in_use() -> None:
    ids: IdAllocator[str] = IdAllocator("test", limit=4)
    ids.restore("kept", 1)
    assert [ids.acquire(key) for key in "abc"] == [2, 3, 4]
    ids.release("b")
    assert ids.acquire("d") == 3
    with pytest.raises(IdsExhaustedError, match="all 4 test ids"):
        ids.acquire("e")
    ids.forget_restored()
    assert ids.acquire("e") == 1


def test_backend_in_several_states_has_the_best_one() -> None:
    references = BackendReferences()
    addr = L3n4Addr.of("10.0.0.1", 80, "TCP")
    references.add(addr, 1)
    references.add(addr, 3)
    assert references.state(addr) == 1
    references.add(addr, 0)
    references.add(addr, 0)
    assert references.state(addr) == 0
    assert references.remove(addr, 0)
    assert references.state(addr) == 0
    assert references.remove(addr, 0)
    assert references.state(addr) == 1
    assert references.remove(addr, 1)
    assert references.state(addr) == 3
    assert not references.remove(addr, 3)
    assert len(references) == 0
