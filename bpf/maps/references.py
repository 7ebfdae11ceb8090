# SPDX-License-Identifier: Apache-2.0
"""Maps that hold other kernel objects: maps of maps, and arrays of programs for tail calls.

The kernel takes a descriptor and gives back an id. What an entry holds stays alive through it: a
program in a tail-call array needs no other owner.
"""

from __future__ import annotations

from bpf.descriptors import Fd
from bpf.maps.map import Map
from bpf.program import Program


class ReferenceMap(Map):
    """A map whose values are maps or programs."""

    __slots__ = ()

    def set(self, key: bytes, held: Fd) -> None:
        """Put a map or program at ``key``; programs that look see the old or the new one.

        Raises: Invalid when it differs from the model in type or layout; MapFull.
        """
        self.update(key, held.number.to_bytes(4, "little"))

    def held_id(self, key: bytes) -> int | None:
        """The kernel's number of what is at ``key``."""
        raw = self.lookup(key)
        return None if raw is None else int.from_bytes(raw, "little")

    def inner_map(self, key: bytes) -> Map | None:
        """The map at ``key``, opened for the caller."""
        number = self.held_id(key)
        return None if number is None else Map.by_id(number)

    def program(self, key: bytes) -> Program | None:
        """The program at ``key``, opened for the caller."""
        number = self.held_id(key)
        return None if number is None else Program.by_id(number)


def index_key(index: int) -> bytes:
    """Key of an array."""
    return index.to_bytes(4, "little")


def lpm_key(prefix_bits: int, data: bytes) -> bytes:
    """Key of a longest-prefix-match map: length in bits, then data in network order.

    >>> lpm_key(8, bytes([10, 0, 0, 0])).hex()
    '080000000a000000'
    """
    return prefix_bits.to_bytes(4, "little") + data
