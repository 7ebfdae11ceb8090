# SPDX-License-Identifier: Apache-2.0
"""Objects that failed, each with its own exponential backoff.

A dict holds the truth, one item a key; two heaps order it by due time and by revision. Heap
entries of items that were cleared or rescheduled are skipped when they surface, and the heaps are
rebuilt when most of their content is of that kind.
"""

import random
from collections.abc import Callable, Iterator
from heapq import heapify, heappop, heappush
from itertools import count
from typing import Any, Generic, TypeVar

T = TypeVar("T")

_SLACK = 64  # stale heap entries that are not worth a rebuild


def text_of(failure: BaseException) -> str:
    """Return what a failure says, and forget the frames that it and its causes came through.

    Targets keep errors in what they came from (an entry, a plan): such a cycle would hold the whole
    round, with its snapshot, until the garbage collector comes by.
    """
    seen = set[int]()
    at: BaseException | None = failure
    while at is not None and id(at) not in seen:
        seen.add(id(at))
        at.__traceback__ = None
        at = at.__cause__ or at.__context__
    return str(failure) or type(failure).__name__


class RetryItem(Generic[T]):
    """One failed object; `revision` is the one at which it failed first."""

    __slots__ = ("attempts", "deleted", "due", "error", "key", "obj", "revision")

    def __init__(self, key: Any, obj: T, revision: int, deleted: bool) -> None:
        self.key = key
        self.obj = obj
        self.revision = revision
        self.deleted = deleted
        self.attempts = 0
        self.due: float | None = None  # None while an attempt is under way
        self.error = ""  # as text: an exception would keep its whole round alive


class Retries(Generic[T]):
    """Backoff queue; add, clear and take are O(log n).

    Times are those of `clock`, in seconds. Not thread-safe: used by one round at a time.
    """

    def __init__(
        self,
        backoff_min_s: float,
        backoff_max_s: float,
        jitter: float,
        clock: Callable[[], float],
        rng: random.Random | None = None,
    ) -> None:
        self._min_s = backoff_min_s
        self._max_s = backoff_max_s
        self._jitter = jitter
        self._clock = clock
        self._rng = rng or random.Random()
        self._items: dict[Any, RetryItem[T]] = {}
        self._by_due: list[tuple[float, int, RetryItem[T]]] = []
        self._by_revision: list[tuple[int, int, RetryItem[T]]] = []
        self._sequence = count()

    def __len__(self) -> int:
        return len(self._items)

    def __contains__(self, key: object) -> bool:
        return key in self._items

    def __iter__(self) -> Iterator[RetryItem[T]]:
        return iter(self._items.values())

    def add(self, key: Any, obj: T, revision: int, deleted: bool, error: str) -> None:
        """Schedule the next attempt; a further failure of the same kind waits twice as long."""
        item = self._items.get(key)
        if item is None or item.deleted is not deleted:
            item = RetryItem(key, obj, revision, deleted)
            self._items[key] = item
            heappush(self._by_revision, (revision, next(self._sequence), item))
        item.obj = obj
        item.error = error
        item.due = self._clock() + self._backoff_s(item.attempts)
        item.attempts += 1
        heappush(self._by_due, (item.due, next(self._sequence), item))
        self._compact()

    def clear(self, key: Any) -> None:
        """Forget `key`: it succeeded, or a newer version of it is handled now."""
        self._items.pop(key, None)

    def take_due(self, limit: int) -> list[RetryItem[T]]:
        """Up to `limit` items whose time has come, earliest first.

        They stay in the queue without a due time until `add` or `clear` says how it went.
        """
        now = self._clock()
        taken: list[RetryItem[T]] = []
        while len(taken) < limit:
            due = self.next_due()
            if due is None or due > now:
                break
            item = heappop(self._by_due)[2]
            item.due = None
            taken.append(item)
        return taken

    def next_due(self) -> float | None:
        """When the next attempt is due, None if there is none."""
        heap = self._by_due
        while heap:
            due, _, item = heap[0]
            if item.due == due and self._items.get(item.key) is item:
                return due
            heappop(heap)
        return None

    def low_watermark(self) -> int | None:
        """The lowest revision that still waits for success, None if there is none."""
        heap = self._by_revision
        while heap:
            revision, _, item = heap[0]
            if self._items.get(item.key) is item:
                return revision
            heappop(heap)
        return None

    def _backoff_s(self, attempts: int) -> float:
        # 2**64 times any sane minimum is past any maximum: the cap keeps the power a float.
        wait_s = min(self._min_s * 2.0 ** min(attempts, 64), self._max_s)
        return wait_s * (1.0 - self._jitter * self._rng.random())

    def _compact(self) -> None:
        limit = 2 * len(self._items) + _SLACK
        if len(self._by_due) > limit:
            self._by_due = [
                entry
                for entry in self._by_due
                if entry[2].due == entry[0] and self._items.get(entry[2].key) is entry[2]
            ]
            heapify(self._by_due)
        if len(self._by_revision) > limit:
            self._by_revision = [
                entry for entry in self._by_revision if self._items.get(entry[2].key) is entry[2]
            ]
            heapify(self._by_revision)
