# SPDX-License-Identifier: Apache-2.0
"""The soaks themselves: a second of churn ends well, and growth would be seen."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.soak import __main__ as soak_parts
from tests.soak.churn import FAULTS, IDS, Churn, soak
from tests.soak.memory import live_malloc_kib, rss_kib, slope


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


def test_a_part_that_cannot_run_is_told_and_refused_if_it_was_asked_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing(name: str) -> Path:
        raise FileNotFoundError(f"no {name}: run `make kube-assets` first")

    monkeypatch.setattr(soak_parts, "asset", missing)
    monkeypatch.setattr("os.geteuid", lambda: 0)
    assert list(soak_parts.parts("")) == ["tables", "files"]
    assert "api is not run: no kube-apiserver: run `make kube-assets`" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="api cannot run: no kube-apiserver"):
        list(soak_parts.parts("tables api"))
    with pytest.raises(SystemExit, match="no part table: there are tables, files, api"):
        list(soak_parts.parts("table"))
    monkeypatch.setattr("os.geteuid", lambda: 1)
    assert list(soak_parts.parts("")) == ["tables"]


def test_memory_that_is_held_is_resident() -> None:
    before, given_out = rss_kib(), live_malloc_kib()
    held = bytearray(b"x") * (32 << 20)
    assert rss_kib() - before > 30 << 10
    assert live_malloc_kib() - given_out > 30 << 10
    del held
    assert live_malloc_kib() - given_out < 1 << 10
