# SPDX-License-Identifier: Apache-2.0
"""Maglev tables: shares by weight, stability when a backend goes, and the same as the model's."""

from __future__ import annotations

from array import array
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bpf.errors import Invalid
from bpf.lb.maglev import fill
from bpf.maps.tables import MARK_BYTES
from reconcilers.loadbalancer.maglev import Member, Recipe, mark_of
from tests.reconcilers.loadbalancer.maglev_model import lookup_table

SIZE = 1021


def numbers(members: list[Member], size: int = SIZE) -> list[int]:
    words = array("I", Recipe.of(members, size).table()[:-MARK_BYTES]).tolist()
    assert not any(words[size:])
    return words[:size]


def members_of(weights: list[int]) -> list[Member]:
    return [Member(f"be-{i}", i + 1, weight) for i, weight in enumerate(weights)]


@pytest.mark.parametrize(
    ("weights", "counts"),
    [
        ([100], [1021]),
        ([100] * 2, [511, 510]),
        ([100] * 3, [341, 340, 340]),
        ([100] * 4, [256, 255, 255, 255]),
        ([1] * 4, [256, 255, 255, 255]),
        ([70, 70, 30, 30], [358, 357, 153, 153]),
        ([70, 30, 70, 30], [358, 153, 357, 153]),
        ([30, 30, 70, 70], [154, 153, 357, 357]),
        ([100, 50], [681, 340]),
    ],
)
def test_positions_are_in_proportion_to_the_weights(weights: list[int], counts: list[int]) -> None:
    found = Counter(numbers(members_of(weights)))
    assert [found[index + 1] for index in range(len(weights))] == counts


@given(st.lists(st.integers(1, 300), min_size=1, max_size=12), st.sampled_from([13, 31, 251]))
def test_table_is_the_model_s(weights: list[int], size: int) -> None:
    members = members_of(weights)
    assert numbers(members, size) == lookup_table(members, size)


def test_turns_go_by_name_and_not_by_position_in_the_list() -> None:
    found = Counter(numbers([Member("b", 1), Member("a", 2)]))
    assert (found[1], found[2]) == (510, 511)


def test_table_and_mark_are_the_same_for_any_order_of_the_members() -> None:
    members = [Member(f"be-{i}", i, 10 + i) for i in range(7)]
    forward, backward = Recipe.of(members, SIZE), Recipe.of(members[::-1], SIZE)
    assert forward == backward
    assert forward.table() == backward.table()
    assert mark_of(forward.table()) == forward


@pytest.mark.parametrize(
    "other", [[Member("a", 2)], [Member("a", 1, 99)], [Member("b", 1)], [Member("a", 1)] * 2]
)
def test_mark_tells_one_table_from_another(other: list[Member]) -> None:
    assert Recipe.of(other, SIZE) != Recipe.of([Member("a", 1)], SIZE)
    assert Recipe.of([Member("a", 1)], 251) != Recipe.of([Member("a", 1)], SIZE)


def test_few_positions_of_the_others_move_when_one_member_goes() -> None:
    members = members_of([100] * 20)
    before, after = numbers(members), numbers(members[:-1])
    kept = [b == a for b, a in zip(before, after, strict=True) if b != 20]
    assert sum(kept) / len(kept) > 0.8


@pytest.mark.parametrize("members", [[], [Member("a", 1, 0)], members_of([1] * 14)])
def test_table_without_anything_to_choose_is_refused(members: list[Member]) -> None:
    with pytest.raises(ValueError, match="positive weights"):
        Recipe.of(members, 13)


def test_filling_without_turns_is_refused() -> None:
    with pytest.raises(Invalid):
        fill([], 13)


def test_a_seed_gives_other_positions_and_another_mark() -> None:
    members = members_of([100, 100, 100])
    one, other = (Recipe.of(members, 251, seed) for seed in (b"one", b"other"))
    assert one != other
    assert one.table() != other.table()
    assert one.table() == Recipe.of(members, 251, b"one").table()
