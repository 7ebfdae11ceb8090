# SPDX-License-Identifier: Apache-2.0
"""Jobs restart with backoff and tell their health."""

from __future__ import annotations

from cilia.program.jobs import run_job


class Told:
    def __init__(self) -> None:
        self.said: list[str] = []

    def ok(self, message: str) -> None:
        self.said.append(f"ok {message}")

    def degraded(self, message: str, error: BaseException) -> None:
        self.said.append(f"degraded {error}")

    def stopped(self, message: str) -> None:
        self.said.append("stopped")


async def test_job_is_started_again_when_it_raises() -> None:
    runs = 0

    async def work() -> None:
        nonlocal runs
        runs += 1
        if runs < 3:
            raise ValueError(f"run {runs}")

    told = Told()
    await run_job("test", work, told)
    assert runs == 3
    assert told.said == [
        "ok Running",
        "degraded run 1",
        "ok Running",
        "degraded run 2",
        "ok Running",
        "stopped",
    ]
