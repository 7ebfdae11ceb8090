# SPDX-License-Identifier: Apache-2.0
"""Numbers for addresses: sequential from 1, the next one always after the last one given out.

A freed number comes back only after all others had their turn, so that an entry that outlives its
owner for a moment is not mistaken for another's. Numbers read back from maps at start are kept
apart until their address is seen again.
"""

from collections.abc import Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)


class IdsExhaustedError(Exception):
    """All numbers of an allocator are taken."""


class IdAllocator(Generic[K]):
    """Not thread-safe; every operation is O(1) until the numbers wrap around."""

    def __init__(self, what: str, limit: int = 0xFFFFFFFF) -> None:
        self._what = what
        self._limit = limit
        self._next = 1
        self._wrapped = False
        self.ids: dict[K, int] = {}
        self.restored: dict[K, int] = {}

    def acquire(self, key: K) -> int:
        """The number of `key`, a new one if it has none. Raises: IdsExhaustedError."""
        number = self.ids.get(key)
        if number is None:
            number = self.restored.pop(key, None) if self.restored else None
            if number is None:
                number = self._take()
            self.ids[key] = number
        return number

    def release(self, key: K) -> int | None:
        """Free the number of `key` and return it; None if it has none."""
        return self.ids.pop(key, None)

    def restore(self, key: K, number: int) -> None:
        """Keep `number` for `key`; new numbers start after the highest restored one."""
        self.restored[key] = number
        self.reserve(number)

    def reserve(self, number: int) -> None:
        """Give out no number up to `number` before the numbers wrap around."""
        self._next = max(self._next, number + 1)

    def forget_restored(self) -> None:
        """Free the numbers of restored keys that were not seen again."""
        self.restored.clear()

    def _take(self) -> int:
        if self._next > self._limit:
            self._next = 1
            self._wrapped = True
        if self._wrapped:
            taken = {*self.ids.values(), *self.restored.values()}
            if len(taken) >= self._limit:
                raise IdsExhaustedError(f"all {self._limit} {self._what} ids are taken")
            while self._next in taken:
                self._next = self._next % self._limit + 1
        number = self._next
        self._next += 1
        return number
