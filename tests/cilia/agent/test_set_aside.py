# SPDX-License-Identifier: Apache-2.0
"""Records that were set aside are told until somebody removes them."""

from __future__ import annotations

from pathlib import Path

import anyio

from cilia.agent.set_aside import SetAside
from cilia.linux.records import read_record
from statedb import DB
from tables.problems import new_problems_table
from tests.patience import PATIENCE


async def test_a_record_that_was_set_aside_is_a_problem_until_it_is_removed(tmp_path: Path) -> None:
    db = DB()
    problems = new_problems_table(db)
    below = tmp_path / "endpoints"

    def told() -> list[str]:
        return [row.file for row in db.look(lambda txn: list(problems.all(txn)))]

    async def until(files: list[Path]) -> None:
        with anyio.fail_after(5 * PATIENCE):
            while told() != [str(path) for path in files]:
                await anyio.sleep(0.005)

    (tmp_path / "own-node.json").write_text("{")
    read_record(tmp_path / "own-node.json", list[str])
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(SetAside(db, problems, [tmp_path, below]).run)
        first = tmp_path / "own-node.json.broken"
        await until([first])
        below.mkdir()
        (below / "7.json").mkdir()
        read_record(below / "7.json", list[str])
        await until([below / "7.json.broken", first])
        first.unlink()
        await until([below / "7.json.broken"])
        tasks.cancel_scope.cancel()
