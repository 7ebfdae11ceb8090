# SPDX-License-Identifier: Apache-2.0
"""Jobs: the named tasks of one anyio task group, restarted with backoff, health told per job.

A job that ends by itself is finished; one that raises is logged with its traceback, reported as
degraded and started again after a growing wait. It stays degraded until it has run for a while, so
that one that fails again and again is never reported as well in between. Cancelling the task group
ends them all.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol

import anyio
import structlog

log = structlog.get_logger("jobs")

FIRST_WAIT_S = 0.1
LONGEST_WAIT_S = 30.0
STEADY_AFTER_S = 5.0  # a job that failed counts as running again after this long
HEALTHY_AFTER_S = 60.0  # a job that ran this long starts over with the first wait


class Reporter(Protocol):
    """Where a job tells how it is; a row of the `health` table."""

    def ok(self, message: str) -> None: ...
    def degraded(self, message: str, error: BaseException) -> None: ...
    def stopped(self, message: str) -> None: ...


async def run_job(name: str, work: Callable[[], Awaitable[object]], reporter: Reporter) -> None:
    """Run `work` until it returns, restarting it when it raises."""
    wait_s, steady_after_s = FIRST_WAIT_S, 0.0
    while True:
        started = anyio.current_time()
        try:
            await _told_when_steady(work, reporter, steady_after_s)
            reporter.stopped("Finished")
            return
        except Exception as error:  # decided here: log, report, try again
            if anyio.current_time() - started > HEALTHY_AFTER_S:
                wait_s = FIRST_WAIT_S
            log.exception("job failed", job=name, restart_in_s=wait_s)
            reporter.degraded(f"Failed, next try in {wait_s:g} s", error)
            steady_after_s = STEADY_AFTER_S
            await anyio.sleep(wait_s)  # the backoff itself; a cancel ends it at once
            wait_s = min(wait_s * 2, LONGEST_WAIT_S)


async def _told_when_steady(
    work: Callable[[], Awaitable[object]], reporter: Reporter, after_s: float
) -> None:
    """Run `work`, and report that it runs: at once, or when it has run for a while."""
    if not after_s:
        reporter.ok("Running")
        await work()
        return
    # What the work raises is raised as it is: a task group would wrap it.
    failure: Exception | None = None
    async with anyio.create_task_group() as group:
        group.start_soon(_tell, reporter, after_s)
        try:
            await work()
        except Exception as error:  # noqa: BLE001 - raised below
            failure = error
        group.cancel_scope.cancel()
    try:
        if failure is not None:
            raise failure
    finally:
        del failure  # it refers to this frame


async def _tell(reporter: Reporter, after_s: float) -> None:
    await anyio.sleep(after_s)
    reporter.ok("Running")
