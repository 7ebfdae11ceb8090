# SPDX-License-Identifier: Apache-2.0
"""Each problem is logged once, whoever wrote it."""

from __future__ import annotations

import weakref

import anyio
from structlog.testing import capture_logs

from cilia.cluster.problems import ProblemLog, ProblemReflector
from cilia.k8s.tracker import Tracker
from cilia.k8s.watch import PROBLEMS, Invalid, Listed, Listing
from cilia.k8s.watch import Problem as Refusal
from statedb import DB
from tables.problems import Problem, new_problems_table, replace_problems


class Origin(str):
    """A name whose end can be seen."""

    __slots__ = ("__weakref__",)


def refused(number: int) -> Invalid:
    return Invalid(Origin(f"file-{number}"), (Refusal("is no object"),))


def test_nothing_is_kept_of_input_that_is_right_again() -> None:
    """Every object that is ever refused has another name."""
    db = DB("test")
    table = new_problems_table(db)
    reflector = ProblemReflector(Tracker(), db, table)
    reflector.apply([Listing(PROBLEMS), refused(0), Listed(PROBLEMS)])
    names = []
    for number in range(1, 5_000):
        event = refused(number)
        names.append(weakref.ref(event.origin))
        reflector.apply([event])
        reflector.apply([Invalid(event.origin)])
        del event
    # A table is not compacted with every commit.
    assert sum(name() is not None for name in names) < 2_000
    assert table.num_objects(db.read_txn()) == 1
    # A list tells all that is wrong.
    reflector.apply([Listing(PROBLEMS), refused(7), Listed(PROBLEMS)])
    assert [row.origin for row in table.all(db.read_txn())] == ["file-7"]


async def test_a_row_is_logged_when_it_comes_and_not_when_it_stays_or_goes() -> None:
    db = DB("test")
    table = new_problems_table(db)
    origin, first, second = "o", Problem("o", "first"), Problem("o", "second")
    with capture_logs() as logs:
        async with anyio.create_task_group() as group:
            group.start_soon(ProblemLog(db, table).run)
            for problems in ([first], [first, second], [second], []):
                with db.write_txn(table) as wtxn:
                    replace_problems(table, wtxn, origin, problems, 1.0)
                await anyio.wait_all_tasks_blocked()
            group.cancel_scope.cancel()
    assert [line["problem"] for line in logs] == ["first", "second"]
    assert {line["event"] for line in logs} == {"wrong object"}
