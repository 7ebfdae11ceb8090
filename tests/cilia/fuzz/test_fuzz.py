# SPDX-License-Identifier: Apache-2.0
"""Some hundreds of hostile inputs; and that what they look for would be found."""

from __future__ import annotations

from unittest.mock import patch

import pytest

from cilia.k8s import change_time, manifest_files
from cilia.loadbalancer import annotations as ann
from cilia.loadbalancer.services import known_objects
from tests.cilia.fuzz.inputs import Plan, make
from tests.cilia.fuzz.oracle import failure, run

INPUTS = 500


def test_nothing_hostile_harms_others() -> None:
    found = run(range(INPUTS))
    assert not found, f"tests.cilia.fuzz.oracle.failure({found[0][0]}) says {found[0][1]}"


def test_an_input_is_the_same_each_time() -> None:
    for seed in range(20):
        assert make(Plan(seed)) == make(Plan(seed))


def test_an_exception_is_found_and_made_small() -> None:
    with patch.object(change_time, "_managers", side_effect=OverflowError("planted")):
        found = run(range(40))
        assert found
        plan, said = found[0]
        assert "planted" in said
        assert len(plan.dropped) == 6  # no step is needed
        assert "planted" in failure(plan)


@pytest.mark.parametrize(
    ("what", "says"),
    [
        # A reader that keeps what went, a slow converter, a refusal without a word.
        pytest.param(
            (known_objects.KnownObjects, "_delete", lambda *args: None),
            "was",
            marks=pytest.mark.skipif(
                not str(known_objects.__file__).endswith(".py"),
                reason="a compiled class cannot be patched",
            ),
        ),
        ((ann, "weight", lambda *args: sum(range(20_000_000))), "held the loop"),
        ((manifest_files, "_bounded", lambda *args: ()), "is not named"),
    ],
)
def test_other_faults_are_found(what: tuple[object, str, object], says: str) -> None:
    with patch.object(*what):
        assert any(says in said for said in map(failure, map(Plan, range(200))))
