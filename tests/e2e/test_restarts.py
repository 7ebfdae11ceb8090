# SPDX-License-Identifier: Apache-2.0
"""Agents killed at random moments; `make soak-restart` does the same a thousand times."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.e2e.restarting import restarting
from tests.soak.restart import STREAMS, Told, soak

KILLS = 30

pytestmark = [pytest.mark.root, pytest.mark.timeout(120)]


def test_nobody_notices_agents_that_are_killed_at_any_moment(tmp_path: Path) -> None:
    told = Told()
    kept: list[int] = []
    seed = random.randrange(1 << 32)
    with restarting(tmp_path, "restarts") as r:
        soak(r, KILLS, told, random.Random(seed), lambda told: kept.append(told.kills))
    assert told.harmless(), (seed, told)
    assert kept == [10, 20, 30]
    assert told.answers_on_streams > STREAMS
    assert told.connections > KILLS and told.datagrams > KILLS
    assert 0 < told.kills_during_a_start < KILLS
