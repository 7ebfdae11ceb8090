# SPDX-License-Identifier: Apache-2.0
"""Maglev look-up tables: which backend has which position, on every node alike.

Backends take positions in turns, each in an order of its own that follows from its name alone, so
that the loss of one backend moves few of the others' positions (Eisenbud et al., «Maglev: A Fast
and Reliable Software Network Load Balancer», NSDI 2016, section 3.4). A weight makes a backend sit
out turns until its share is due.
"""

from collections.abc import Iterable
from functools import lru_cache
from hashlib import blake2b
from typing import NamedTuple

from bpf.lb.maglev import Turn, fill
from bpf.maps.tables import MARK_BYTES, padded

# Part of every mark: to be raised when the same members shall have other positions.
_EDITION = 1


class Member(NamedTuple):
    """A backend; `name` orders the turns and seeds the positions, `number` is in the table."""

    name: str
    number: int
    weight: int = 100


class Recipe(bytes):
    """What a table is made from, as a mark of 16 bytes; the table itself is made on demand.

    Marks compare where tables would: equal ones belong to equal tables. A table carries its mark
    behind its last position, so that a restart finds out what is right without making it.
    """

    members: tuple[Member, ...]
    size: int
    seed: bytes

    @classmethod
    def of(cls, members: Iterable[Member], size: int, seed: bytes = b"") -> "Recipe":
        """`size`: a prime, at least the number of members. Nodes with the same `seed` (up to 64
        bytes) have the same tables. Raises: ValueError without members, with more than positions,
        or for a weight below 1."""
        ordered = tuple(sorted(members))
        if not 0 < len(ordered) <= size or any(member.weight < 1 for member in ordered):
            raise ValueError(
                f"a Maglev table of {size} needs 1 to {size} members with positive weights, "
                f"not {len(ordered)}"
            )
        text = f"{_EDITION} {size} {[tuple(member) for member in ordered]}"
        recipe = cls(blake2b(text.encode(), digest_size=MARK_BYTES, key=seed).digest())
        recipe.members, recipe.size, recipe.seed = ordered, size, seed
        return recipe

    def table(self) -> bytes:
        """The numbers by position, 32 bits each in host order; zeros; the mark."""
        turns = [
            Turn(*_order(member.name, self.size, self.seed), member.weight, member.number)
            for member in self.members
        ]
        return padded(fill(turns, self.size), self)


@lru_cache(maxsize=1 << 16)
def _order(name: str, size: int, seed: bytes) -> tuple[int, int]:
    """Offset and skip: all positions, once each, in the order of this name."""
    digest = blake2b(name.encode(), digest_size=16, key=seed).digest()
    offset = int.from_bytes(digest[:8], "big") % size
    return offset, int.from_bytes(digest[8:], "big") % (size - 1) + 1


def mark_of(table: bytes) -> bytes:
    """The mark that a table carries."""
    return table[-MARK_BYTES:]
