# SPDX-License-Identifier: Apache-2.0
"""What a report says of an error."""

from __future__ import annotations

import pytest

from cilia.program.health import HealthReporter
from statedb import DB
from tables.health import Level, new_health_table


@pytest.mark.parametrize(
    ("error", "told"),
    [("", ""), ("full", "full"), (ValueError("bad"), "bad"), (TimeoutError(), "TimeoutError")],
)
def test_an_exception_without_words_is_named_and_no_text_is_none(
    error: BaseException | str, told: str
) -> None:
    db = DB("test")
    table = new_health_table(db)
    HealthReporter(db, table, "part", "one").degraded("does not work", error)
    row = table.get(db.read_txn(), "part.one")
    assert row is not None
    assert (row.level, row.message, row.error) == (Level.DEGRADED, "does not work", told)
