# SPDX-License-Identifier: Apache-2.0
"""kill -9 at points of a start harms nothing: a spread here, all of them in `make soak-kills`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.e2e.killing import CHANGING, Killing, Start, kind
from tests.e2e.restarting import restarting

pytestmark = [pytest.mark.root, pytest.mark.timeout(60)]

KILLS = 4


@pytest.fixture(scope="module")
def k(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Killing]:
    with restarting(tmp_path_factory.mktemp("kills"), "kills") as r:
        yield Killing(r)


def chosen(steps: list[str]) -> list[int]:
    """Some points, from the first to the last, of those that change something."""
    changing = [n for n, step in enumerate(steps, 1) if kind(step) in CHANGING]
    return [changing[index * (len(changing) - 1) // (KILLS - 1)] for index in range(KILLS)]


@pytest.mark.parametrize("start", Start, ids=lambda start: start.name.lower())
def test_nobody_notices_a_kill_at_a_point_of(k: Killing, start: Start) -> None:
    steps = k.steps(start)
    kinds = {kind(step) for step in steps}
    if start is Start.FIRST:
        assert kinds >= {"attach a program", "pin or rename a map", "pin or rename a link"}
    else:
        assert kinds >= {"replace a program in its link", "write entries"}
        # Maps of another size begin with what their predecessors have, also what is gone.
        assert "delete entries (prune)" in kinds
    for point in chosen(steps):
        outcome = k.kill(start, point)
        assert outcome, f"point {point} of {len(steps)} was not reached"
        assert outcome.harmless(), outcome
        if start is not Start.FIRST:
            assert outcome.told.connections > 10 and outcome.told.datagrams > 10
