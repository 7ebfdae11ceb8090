# SPDX-License-Identifier: Apache-2.0
"""Samples by age, and families that are left out."""

from __future__ import annotations

import gc

from prometheus_client import Counter, Gauge

from cilia.agent.metrics_samples import AGES, KEPT, MetricsSampler, SelectiveRegistry
from tests.soak.memory import live_blocks


def test_a_sample_is_found_by_its_age_and_the_oldest_goes() -> None:
    registry = SelectiveRegistry("")
    gauge = Gauge("cilia_level", "", ["of"], registry=registry).labels(of="water")
    sampler = MetricsSampler(registry, 300)
    for value in range(KEPT + 3):
        gauge.set(value)
        sampler.sample()
    (values,) = sampler.history().values()
    newest = KEPT + 2
    assert [values[at] for at in AGES.values()] == [newest, newest - 5, newest - 11, newest - 23]
    assert len(values) == KEPT


def test_a_series_that_came_later_has_no_earlier_values() -> None:
    registry = SelectiveRegistry("")
    gauge = Gauge("cilia_level", "", ["of"], registry=registry)
    sampler = MetricsSampler(registry, 300)
    gauge.labels(of="water").set(1)
    sampler.sample()
    gauge.labels(of="oil").set(2)
    sampler.sample()
    assert sampler.history() == {
        ("cilia_level", "of=oil"): [2, None],
        ("cilia_level", "of=water"): [1, 1],
    }


def test_a_further_sample_of_known_series_keeps_little_more_than_its_values() -> None:
    registry = SelectiveRegistry("")
    gauge = Gauge("cilia_level", "", ["of"], registry=registry)
    for number in range(1000):
        gauge.labels(of=f"water {number}").set(number)
    sampler = MetricsSampler(registry, 300)
    sampler.sample()
    gc.collect()
    before = live_blocks()
    for _ in range(4):
        sampler.sample()
    gc.collect()
    assert live_blocks() - before < 4 * 1000 + 500


def test_families_are_left_out_by_name_and_the_last_word_counts() -> None:
    registry = SelectiveRegistry("-cilium_level,-cilia_hits_total +cilia_level -cilia_depth")
    Gauge("cilia_level", "", registry=registry)
    Gauge("cilia_depth", "", registry=registry)
    Counter("cilia_hits", "", registry=registry)
    assert [family.name for family in registry.collect()] == ["cilia_level"]
