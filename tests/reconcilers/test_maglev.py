# SPDX-License-Identifier: Apache-2.0
"""Maglev tables: shares by weight, and stability when a backend goes."""

import pytest

from reconcilers.maglev import Member, lookup_table, occurrences

SIZE = 1021


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
    table = lookup_table([Member(f"be-{i}", w) for i, w in enumerate(weights)], SIZE)
    found = occurrences(table)
    assert [found[index] for index in range(len(weights))] == counts


def test_turns_go_by_name_and_not_by_position_in_the_list() -> None:
    members = [Member("b"), Member("a")]
    found = occurrences(lookup_table(members, SIZE))
    assert (found[0], found[1]) == (510, 511)


def test_table_is_the_same_for_any_order_of_the_members() -> None:
    members = [Member(f"be-{i}", 10 + i) for i in range(7)]
    forward = [members[i].name for i in lookup_table(members, SIZE)]
    backward = [members[::-1][i].name for i in lookup_table(members[::-1], SIZE)]
    assert forward == backward


def test_few_positions_of_the_others_move_when_one_member_goes() -> None:
    members = [Member(f"be-{i}") for i in range(20)]
    before = [members[i].name for i in lookup_table(members, SIZE)]
    after = [members[:-1][i].name for i in lookup_table(members[:-1], SIZE)]
    kept = [b == a for b, a in zip(before, after, strict=True) if b != "be-19"]
    assert sum(kept) / len(kept) > 0.8


@pytest.mark.parametrize("members", [[], [Member("a", 0)]])
def test_table_without_anything_to_choose_is_refused(members: list[Member]) -> None:
    with pytest.raises(ValueError, match="positive weights"):
        lookup_table(members, SIZE)
