# SPDX-License-Identifier: Apache-2.0
"""Objects that failed, each with its own exponential backoff.

One item a key; those that wait are in order of their due times, and all in order of the revisions
at which they failed first.
"""

import random
from collections.abc import Callable, Iterator
from itertools import count
from typing import Any, Generic, TypeVar

from sortedcontainers import SortedDict

T = TypeVar("T")


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
    """One failed object; `revision` is the one at which it failed first, `number` tells it from
    others of the same time or revision.
    """

    __slots__ = ("attempts", "deleted", "due", "error", "key", "number", "obj", "revision")

    def __init__(self, key: Any, obj: T, revision: int, deleted: bool, number: int) -> None:
        self.key = key
        self.obj = obj
        self.revision = revision
        self.number = number
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
        self._by_due: SortedDict[tuple[float, int], RetryItem[T]] = SortedDict()
        self._by_revision: SortedDict[tuple[int, int], RetryItem[T]] = SortedDict()
        self._numbers = count()

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
            self.clear(key)
            item = RetryItem(key, obj, revision, deleted, next(self._numbers))
            self._items[key] = item
            self._by_revision[revision, item.number] = item
        elif item.due is not None:
            del self._by_due[item.due, item.number]
        item.obj = obj
        item.error = error
        item.due = self._clock() + self._backoff_s(item.attempts)
        item.attempts += 1
        self._by_due[item.due, item.number] = item

    def clear(self, key: Any) -> None:
        """Forget `key`: it succeeded, or a newer version of it is handled now."""
        item = self._items.pop(key, None)
        if item is not None:
            del self._by_revision[item.revision, item.number]
            if item.due is not None:
                del self._by_due[item.due, item.number]

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
            _, item = self._by_due.popitem(0)
            item.due = None
            taken.append(item)
        return taken

    def hasten(self) -> None:
        """Have everything that waits due now: why it failed may be over."""
        now = self._clock()
        waiting = list(self._by_due.values())
        self._by_due.clear()
        for item in waiting:
            item.due = now
            self._by_due[now, item.number] = item

    def next_due(self) -> float | None:
        """When the next attempt is due, None if there is none."""
        return self._by_due.peekitem(0)[0][0] if self._by_due else None

    def low_watermark(self) -> int | None:
        """The lowest revision that still waits for success, None if there is none."""
        return self._by_revision.peekitem(0)[0][0] if self._by_revision else None

    def _backoff_s(self, attempts: int) -> float:
        # 2**64 times any sane minimum is past any maximum: the cap keeps the power a float.
        wait_s = min(self._min_s * 2.0 ** min(attempts, 64), self._max_s)
        return wait_s * (1.0 - self._jitter * self._rng.random())
