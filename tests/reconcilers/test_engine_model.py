# SPDX-License-Identifier: Apache-2.0
"""Random writes against a faulty target: in the end the target equals the table."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule

from reconcilers import Config, Reconciler
from statedb import DB, StatusKind
from tests.reconcilers.targets import (
    BatchTarget,
    Target,
    new_rows,
    put,
    remove,
)

CONFIG = Config(
    round_size=3, retry_backoff_min_s=1.0, retry_backoff_max_s=4.0, prune_interval_s=500.0
)
IDS = st.integers(1, 8)


class EngineModel(RuleBasedStateMachine):
    """Rounds are run one by one; `racing` writes happen in the middle of an operation."""

    faults = 0.0
    target_type: type[Target] = Target

    def __init__(self) -> None:
        super().__init__()
        self.db = DB()
        self.table = new_rows(self.db)
        self.values: dict[int, str] = {}
        self.racing: list[tuple[int, str | None]] = []
        self.numbers = itertools.count()
        model = self

        class Raced(self.target_type):  # type: ignore[misc,name-defined]
            def maybe_fail(self, what: str, number: int, poison: set[int]) -> None:
                while model.racing:
                    model.write(*model.racing.pop())
                super().maybe_fail(what, number, poison)

        self.target: Target = Raced(self.faults)
        ticks = itertools.count()
        self.reconciler = Reconciler(
            self.db,
            self.table,
            self.target,
            config=CONFIG,
            clock=lambda: next(ticks),
        )

    def write(self, number: int, value: str | None) -> None:
        if value is None:
            self.values.pop(number, None)
            remove(self.db, self.table, number)
        else:
            self.values[number] = value
            put(self.db, self.table, (number, value))

    @rule(number=IDS)
    def put(self, number: int) -> None:
        self.write(number, str(next(self.numbers)))

    @rule(number=IDS)
    def remove(self, number: int) -> None:
        self.write(number, None)

    @rule(number=IDS, deleted=st.booleans())
    def write_during_the_next_operation(self, number: int, deleted: bool) -> None:
        self.racing.append((number, None if deleted else str(next(self.numbers))))

    @rule(number=st.integers(100, 105))
    def foreign_entry(self, number: int) -> None:
        self.target.held[number] = "foreign"
        self.reconciler.prune_now()

    @rule()
    def round(self) -> None:
        self.reconciler._cycle()
        self.values_are_kept()

    def values_are_kept(self) -> None:
        """The reconciler writes statuses and nothing else."""
        rows = self.table.all(self.db.read_txn())
        assert {row.id: row.value for row in rows} == self.values

    @rule()
    def settled_target_equals_the_table(self) -> None:
        self.racing.clear()
        revision = self.table.revision(self.db.read_txn())
        for _ in range(2000):
            more = self.reconciler._cycle().more
            if not more and self.reconciler.progress.settled(revision):
                break
        else:
            raise AssertionError("the reconciler does not come to an end")
        assert self.target.held == self.values
        rows = list(self.table.all(self.db.read_txn()))
        assert {row.status.kind for row in rows} <= {StatusKind.DONE}
        assert len(self.reconciler._retries) == 0

    def teardown(self) -> None:
        self.settled_target_equals_the_table()


@pytest.mark.parametrize("faults", [0.0, 0.1, 0.5])
@pytest.mark.parametrize("target_type", [Target, BatchTarget])
def test_target_follows_the_table(faults: float, target_type: type[Target]) -> None:
    case: Any = type(
        "Model", (EngineModel,), {"faults": faults, "target_type": target_type}
    ).TestCase  # type: ignore[attr-defined]
    case.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
    case("runTest").runTest()


@pytest.mark.parametrize("faults", [0.0, 0.1, 0.5])
def test_every_object_arrives_when_the_target_is_faulty(faults: float) -> None:
    db = DB()
    table = new_rows(db)
    target = BatchTarget(faults)
    ticks = itertools.count()
    reconciler = Reconciler(
        db,
        table,
        target,
        config=CONFIG,
        clock=lambda: next(ticks),
    )
    put(db, table, *((number, "x") for number in range(500)))
    remove(db, table, *range(0, 500, 2))
    revision = table.revision(db.read_txn())
    attempts = 0
    while not reconciler.progress.settled(revision):
        reconciler._cycle()
        attempts += 1
        assert attempts < 20_000
    assert set(target.held) == set(range(1, 500, 2))
    failures = len(target.calls) - 250
    assert (failures > 0) is (faults > 0)
