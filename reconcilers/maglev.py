# SPDX-License-Identifier: Apache-2.0
"""Maglev look-up tables: which backend has which position, on every node alike.

Backends take positions in turns, each in an order of its own that follows from its name alone, so
that the loss of one backend moves few of the others' positions (Eisenbud et al., «Maglev: A Fast
and Reliable Software Network Load Balancer», NSDI 2016, section 3.4). A weight makes a backend sit
out turns until its share is due.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from typing import NamedTuple


class Member(NamedTuple):
    """A backend; `name` orders the turns and seeds the positions."""

    name: str
    weight: int = 100


def lookup_table(members: Sequence[Member], size: int) -> list[int]:
    """For each of `size` positions the index in `members` of its backend; O(size log size).

    `size` must be a prime above the number of members: each step of an order then reaches every
    position. Raises: ValueError without members, or for a weight below 1.
    """
    if not members or any(member.weight < 1 for member in members):
        raise ValueError("a Maglev table needs members with positive weights")
    by_name = sorted(range(len(members)), key=lambda index: members[index].name)
    orders = [_positions(members[index].name, size) for index in by_name]
    table = [-1] * size
    for turn in turns([members[index].weight for index in by_name], size):
        position = next(position for position in orders[turn] if table[position] < 0)
        table[position] = by_name[turn]
    return table


def turns(weights: Sequence[int], count: int) -> Iterator[int]:
    """Whose turn it is, `count` times: one after the other, or in proportion to the weights."""
    length, total = len(weights), sum(weights)
    if total // length <= 1:
        for turn in range(count):
            yield turn % length
        return
    shares = [weight / length for weight in weights]
    for turn in range(count):
        index = turn % length
        while (turn + 1) * weights[index] < int(shares[index]):
            index = (index + 1) % length
        shares[index] += total
        yield index


def occurrences(table: Sequence[int]) -> Counter[int]:
    """How many positions each member has."""
    return Counter(table)


def _positions(name: str, size: int) -> Iterator[int]:
    """All positions, once each, in the order of this name: offset, offset + skip, …"""
    digest = blake2b(name.encode(), digest_size=16).digest()
    position = int.from_bytes(digest[:8], "big") % size
    skip = int.from_bytes(digest[8:], "big") % (size - 1) + 1
    for _ in range(size):
        yield position
        position = (position + skip) % size
