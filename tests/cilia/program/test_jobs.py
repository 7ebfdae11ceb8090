# SPDX-License-Identifier: Apache-2.0
"""Jobs restart with backoff and tell their health."""

from __future__ import annotations

import asyncio

import pytest

from cilia.program import jobs
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
        "degraded run 2",
        "stopped",
    ]


async def test_job_is_well_again_when_it_has_run_for_a_while(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(jobs, "STEADY_AFTER_S", 0.05)
    runs, told = 0, Told()

    async def work() -> None:
        nonlocal runs
        runs += 1
        if runs == 1:
            raise ValueError("once")
        while len(told.said) < 3:
            await asyncio.sleep(0.01)

    await run_job("test", work, told)
    assert told.said == ["ok Running", "degraded once", "ok Running", "stopped"]
