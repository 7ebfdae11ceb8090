# SPDX-License-Identifier: Apache-2.0
"""A few rows of the table of what may be done to what an agent stands on; `make soak-ground` does
all of them.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.e2e.ground import Ground, Row, ground
from tests.e2e.ground_rows import few

pytestmark = [pytest.mark.root, pytest.mark.timeout(60)]


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    with ground(tmp_path_factory.mktemp("ground"), "ground") as made:
        yield made


@pytest.mark.parametrize("row", few(), ids=lambda row: row.name)
def test_it_is_told_or_made_whole_under_a_running_agent(stage: Ground, row: Row) -> None:
    assert stage.under_a_running_agent(row) == []


@pytest.mark.parametrize("row", [row for row in few() if not row.refused], ids=lambda row: row.name)
def test_it_is_told_or_made_whole_by_a_start(stage: Ground, row: Row) -> None:
    assert stage.before_a_start(row) == []
