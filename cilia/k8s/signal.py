# SPDX-License-Identifier: Apache-2.0
"""An event of anyio that can be waited for again."""

from __future__ import annotations

import anyio


class Signal:
    """Set until it is cleared. One task waits, in the event loop that sets it."""

    def __init__(self) -> None:
        self._event = anyio.Event()

    def set(self) -> None:
        self._event.set()

    def clear(self) -> None:
        if self._event.is_set():
            self._event = anyio.Event()

    async def wait(self) -> None:
        """Return at once if it is set."""
        await self._event.wait()
