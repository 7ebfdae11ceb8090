# SPDX-License-Identifier: Apache-2.0
"""Each figure that grows is seen, and noise is not taken for growth."""

from __future__ import annotations

import random

import pytest

from tests.soak.agent.objects import PLACES, Objects, Place
from tests.soak.agent.samples import Sample
from tests.soak.agent.verdict import ALLOWED_GAIN, ALLOWED_MOST, FIGURES, verdict

#: The field of each figure.
FIELDS = {
    "resident KiB": "kib",
    "live blocks": "blocks",
    "live KiB of malloc": "malloc_kib",
    "open descriptors": "descriptors",
    "threads": "threads",
    "deleted rows kept": "deleted",
    "change iterators": "trackers",
    "time series": "series",
    "entries of flows": "flows",
    "entries of Services": "services",
    "oldest snapshot, s": "snapshot_s",
}


def steady(rng: random.Random, second: float) -> Sample:
    """A healthy agent on a busy machine."""
    busy = rng.uniform(1, 3)
    return Sample(
        second,
        kib=90_000 + rng.randrange(-900, 900),
        blocks=500_000 + rng.randrange(-9_000, 9_000),
        malloc_kib=21_000 + rng.randrange(-400, 400),
        descriptors=60 + rng.randrange(12),
        threads=9 + rng.randrange(3),
        deleted=rng.randrange(300),
        snapshot_s=rng.random(),
        trackers=40 + rng.randrange(8),
        series=3_000 + rng.randrange(20),
        flows=900 + rng.randrange(-200, 200),
        services=300 + rng.randrange(-40, 40),
        commit_us=busy * rng.uniform(90, 120),
        commits=80,
        reference_us=busy * 1_500,
    )


def samples() -> list[Sample]:
    """Those of ten minutes."""
    rng = random.Random(4)
    return [steady(rng, 150 + 2.5 * number) for number in range(180)]


def failed(found: list[Sample]) -> set[str]:
    return {finding.name for finding in verdict(found) if not finding.good}


def test_a_steady_agent_passes() -> None:
    assert failed(samples()) == set()


@pytest.mark.parametrize("name", sorted(ALLOWED_GAIN))
def test_what_gains_three_times_what_is_allowed_is_seen(name: str) -> None:
    field, found = FIELDS[name], samples()
    step = 3 * ALLOWED_GAIN[name] / len(found)
    grown = [
        sample._replace(**{field: int(FIGURES[name](sample) + step * number)})
        for number, sample in enumerate(found)
    ]
    assert name in failed(grown)


@pytest.mark.parametrize("name", sorted(ALLOWED_MOST))
def test_one_moment_above_the_bound_is_seen(name: str) -> None:
    found = samples()
    found[90] = found[90]._replace(**{FIELDS[name]: int(ALLOWED_MOST[name]) + 1})
    assert failed(found) == {name}


def test_commits_that_take_longer_and_longer_are_seen() -> None:
    grown = [
        sample._replace(commit_us=sample.commit_us * (1 + number / 180))
        for number, sample in enumerate(samples())
    ]
    assert failed(grown) == {"time of a commit"}


def test_who_comes_back_to_a_place_has_a_new_name() -> None:
    objects = Objects(random.Random(1))
    for kind in PLACES:
        names = set()
        for _ in range(5):
            form = objects.appear(Place(kind, 1))
            assert objects.change(Place(kind, 1))["metadata"]["name"] == form["metadata"]["name"]
            names.add(form["metadata"]["name"])
        assert len(names) == 5, kind
