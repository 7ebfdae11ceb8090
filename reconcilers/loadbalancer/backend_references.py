# SPDX-License-Identifier: Apache-2.0
"""How many frontends use a backend, and in which state they see it.

A backend has one entry in the maps, however many services share it; where they do not agree on its
state, the entry has the best one, which does not depend on the order of updates.
"""

from tables.addressing import L3n4Addr

_BITS = 32  # for the count of one state; the best state has the lowest bits


class BackendReferences:
    """Counts by backend and state, packed into one number a backend: there are many."""

    def __init__(self) -> None:
        self._counts: dict[L3n4Addr, int] = {}

    def __len__(self) -> int:
        return len(self._counts)

    def add(self, addr: L3n4Addr, state: int) -> None:
        self._counts[addr] = self._counts.get(addr, 0) + (1 << _BITS * state)

    def remove(self, addr: L3n4Addr, state: int) -> bool:
        """Undo one `add`; whether the backend is still in use."""
        left = self._counts[addr] - (1 << _BITS * state)
        if left:
            self._counts[addr] = left
        else:
            del self._counts[addr]
        return left > 0

    def state(self, addr: L3n4Addr) -> int:
        """The best state of a backend in use, `LB_BE_*`: active before terminating and so on."""
        counts = self._counts[addr]
        return ((counts & -counts).bit_length() - 1) // _BITS
