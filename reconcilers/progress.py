# SPDX-License-Identifier: Apache-2.0
"""How far a reconciler has come, for those who wait until their revision is in the target."""

import threading
from typing import NamedTuple

from statedb import Channel


class Mark(NamedTuple):
    """Every object up to `revision` was attempted; `retry_low_watermark` is the lowest revision
    whose attempt failed and is due again, None if all succeeded."""

    revision: int
    retry_low_watermark: int | None

    def settled(self, revision: int) -> bool:
        """Whether everything up to `revision` was attempted and nothing of it waits for a retry."""
        low = self.retry_low_watermark
        return self.revision >= revision and (low is None or low > revision)


class Progress:
    """The newest mark, and a channel that closes when it is replaced; any thread may wait."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._mark = Mark(0, None)
        self._changed = Channel()

    @property
    def mark(self) -> Mark:
        return self._mark

    def update(self, revision: int, retry_low_watermark: int | None) -> None:
        mark = Mark(revision, retry_low_watermark)
        with self._lock:
            if mark == self._mark:
                return
            self._mark = mark
            changed, self._changed = self._changed, Channel()
        changed.close()

    async def wait(self, revision: int, *, settled: bool = False) -> Mark:
        """Wait until everything up to `revision` was attempted; with `settled`, until it succeeded.

        A row that was changed again meanwhile counts with its newer version.
        """
        while True:
            with self._lock:
                mark, changed = self._mark, self._changed
            if mark.settled(revision) if settled else mark.revision >= revision:
                return mark
            await changed.wait()
