# SPDX-License-Identifier: Apache-2.0
"""How long a watch waits before its next try.

Waits are random, so that not all agents come back at once, and grow with each failure. A watch
whose server gave no answer waits no longer once the server has answered another.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Final

import anyio

from cilia.k8s.errors import ApiError, Garbage, Gone, StatusError
from cilia.k8s.signal import Signal
from cilia.k8s.watch_report import WatchReport
from cilia.k8s.watch_state import Anomaly, State

FIRST_WAIT_S: Final = 0.2
LONGEST_WAIT_S: Final = 10.0
# More failures in a row make no wait longer.
MOST_FAILURES: Final = 10


def moment_s() -> float:
    """The wait before what is likely to succeed."""
    return random.uniform(0, FIRST_WAIT_S)


class Retry:
    """Counts failures. `recovered` is called when the server answers after it did not."""

    def __init__(self, report: WatchReport, recovered: Callable[[], None]) -> None:
        self._report = report
        self._recovered = recovered
        self._failures = 0
        self._unanswered = False
        self._others_answered = Signal()

    def answered(self) -> None:
        """The server answered, if only by a refusal."""
        if self._unanswered:
            self._unanswered = False
            self._recovered()

    def succeeded(self) -> None:
        """The next failure is the first."""
        self._failures = 0

    def failed(self, error: ApiError) -> float:
        """Note a failure; return how long to wait before the next try, in seconds."""
        if isinstance(error, StatusError):
            self.answered()
        else:
            self._unanswered = True
        if isinstance(error, Gone):
            self._report.anomaly(Anomaly.GONE)
        elif isinstance(error, Garbage):
            self._report.anomaly(Anomaly.GARBAGE)
        self._report.error(error)
        self._report.enter(State.FAILED)
        longest_s = min(LONGEST_WAIT_S, FIRST_WAIT_S * 2**self._failures)
        self._failures = min(self._failures + 1, MOST_FAILURES)
        asked_s = error.retry_after_s if isinstance(error, StatusError) else 0.0
        return asked_s + random.uniform(0, longest_s)

    async def wait(self, wait_s: float) -> None:
        """Wait so long, or until others have an answer where this watch had none."""
        self._others_answered.clear()
        if self._unanswered:
            with anyio.move_on_after(wait_s):
                await self._others_answered.wait()
        else:
            await anyio.sleep(wait_s)

    def try_now(self) -> None:
        """The server answers others: no reason to wait any longer for it to come back."""
        self._others_answered.set()
