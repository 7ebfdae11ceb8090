# SPDX-License-Identifier: Apache-2.0
"""The soaks themselves: a second of churn ends well, and growth would be seen."""

from __future__ import annotations

import random

from tests.soak.churn import FAULTS, IDS, Churn, soak
from tests.soak.memory import rss_kib, slope


async def test_a_second_of_churn_ends_with_target_and_tables_agreeing() -> None:
    churn = Churn(seed=1)
    samples = await soak(churn, 1.0, least_steps=6)
    assert samples == [], "nothing is sampled before the warm-up is over"
    assert churn.changes_seen > 0 and churn.woken > 0
    assert 0 < churn.target.refused < 3 * FAULTS * churn.target.calls
    assert IDS / 2 < len(churn.target.held) < IDS
    churn.forget()
    assert not churn.snapshots and not churn.iterators


def test_the_slope_of_a_line_is_found_in_noise() -> None:
    rng = random.Random(1)
    steady = [(second, 50_000 + rng.gauss(0, 200)) for second in range(480)]
    found = slope(steady)
    assert abs(found.per_minute) <= 2 * found.confidence
    leaking = [(second, kib + second * 20) for second, kib in steady]
    found = slope(leaking)
    assert abs(found.per_minute - 1200) <= 2 * found.confidence
    assert 0 < found.confidence < 30


def test_memory_that_is_held_is_resident() -> None:
    before = rss_kib()
    held = bytearray(b"x") * (32 << 20)
    assert rss_kib() - before > 30 << 10
    del held
