# SPDX-License-Identifier: Apache-2.0
"""Maglev tables in plain Python, as the paper words them: slow, and easy to believe."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from hashlib import blake2b

from reconcilers.loadbalancer.maglev import Member


def lookup_table(members: Sequence[Member], size: int) -> list[int]:
    """The member's number at each position."""
    ordered = sorted(members)
    orders = [_positions(member.name, size) for member in ordered]
    table = [0] * size
    free = set(range(size))
    for turn in _turns([member.weight for member in ordered], size):
        position = next(position for position in orders[turn] if position in free)
        free.remove(position)
        table[position] = ordered[turn].number
    return table


def _turns(weights: Sequence[int], count: int) -> Iterator[int]:
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


def _positions(name: str, size: int) -> Iterator[int]:
    digest = blake2b(name.encode(), digest_size=16).digest()
    position = int.from_bytes(digest[:8], "big") % size
    skip = int.from_bytes(digest[8:], "big") % (size - 1) + 1
    for _ in range(size):
        yield position
        position = (position + skip) % size
