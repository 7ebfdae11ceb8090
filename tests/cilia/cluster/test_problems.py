# SPDX-License-Identifier: Apache-2.0
"""Each problem is logged once, whoever wrote it."""

from __future__ import annotations

import anyio
from structlog.testing import capture_logs

from cilia.cluster.problems import ProblemLog
from statedb import DB
from tables.problems import Problem, new_problems_table, replace_problems


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
