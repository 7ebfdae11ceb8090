# SPDX-License-Identifier: Apache-2.0
"""When a row of two commits is worse, and that a row is measured on both."""

from __future__ import annotations

from tests.benchmarks.against import Checkout, one_round, verdict
from tests.build_compiled import INTERPRETED, ROOT


def pairs(*ratios: float) -> list[list[float]]:
    """Rounds in which the newer commit has this many times the older one's figure."""
    return [[2.0, 2.0 * ratio] for ratio in ratios]


def test_row_is_worse_when_median_and_range_are_below() -> None:
    found = verdict("statedb.get_primary", pairs(0.90, 0.95, 0.96, 0.97, 0.98))
    assert (found.ratio, found.low, found.high) == (0.96, 0.95, 0.97)
    assert found.worse
    assert str(found).endswith("WORSE")


def test_row_is_not_worse_when_the_range_contains_one() -> None:
    assert not verdict("statedb.get_primary", pairs(0.7, 0.8, 0.9, 1.1, 1.2)).worse


def test_row_is_not_worse_when_it_lost_little() -> None:
    assert not verdict("statedb.get_primary", pairs(0.98, 0.98, 0.98)).worse


def test_more_is_worse_where_it_is_no_rate() -> None:
    for row in ("statedb.bytes_per_object", "services.insert_s", "agent.rss_10k"):
        assert verdict(row, pairs(1.05, 1.06, 1.07)).worse
        assert not verdict(row, pairs(0.5, 0.5, 0.5)).worse


def test_idle_agent_that_took_no_tick_is_as_good_as_one_that_took_one() -> None:
    found = verdict("agent.idle", [[0.0, 0.2], [0.2, 0.0], [0.0, 0.0]])
    assert found.ratio == 1.0


def test_row_is_measured_on_both_commits() -> None:
    here = Checkout(ROOT, INTERPRETED)
    (pair,) = one_round([here, here], {"statedb": ["snapshot"]}).values()
    assert len(pair) == 2
    assert min(pair) > 1000
