# SPDX-License-Identifier: Apache-2.0
"""Blocking calls in threads, a few at once.

A call whose caller was cancelled goes on in its thread, and counts until it ends: a server that
does not answer never has more threads than these.
"""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import TypeVar

import anyio
import anyio.to_thread
from anyio.abc import TaskGroup

T = TypeVar("T")


class Threads:
    """At most `most` calls at once, the next one waits. A context, left once all calls ended."""

    def __init__(self, most: int) -> None:
        self._limiter = anyio.CapacityLimiter(most)
        self._group: TaskGroup | None = None

    async def __aenter__(self) -> Threads:
        self._group = await anyio.create_task_group().__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """What the block raises is raised as it is: a task group would wrap it."""
        assert self._group is not None
        await self._group.__aexit__(None, None, None)

    async def run(self, work: Callable[[], T]) -> T:
        """Return what `work` returns, or raise what it raises. Can be cancelled; what has not begun
        by then does not begin."""
        assert self._group is not None, "calls are made inside of the context"
        ended = anyio.Event()
        results: list[T] = []
        errors: list[Exception] = []
        given_up = False

        def begin() -> None:
            if not given_up:
                results.append(work())

        async def call() -> None:
            # The caller's cancellation counts, not the context's: it may be shielded.
            with anyio.CancelScope(shield=True):
                try:
                    await anyio.to_thread.run_sync(begin, limiter=self._limiter)
                except Exception as error:  # noqa: BLE001 - it is the caller's
                    errors.append(error)
            ended.set()

        self._group.start_soon(call)
        try:
            await ended.wait()
        finally:
            given_up = True
        if errors:
            raise errors.pop()  # or it would refer to this frame, and the frame to it
        return results[0]
