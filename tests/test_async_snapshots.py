# SPDX-License-Identifier: Apache-2.0
"""No task of the product waits with a snapshot in hand."""

from __future__ import annotations

import ast
from pathlib import Path

import anyio
import pytest

from bpf.maps.lb import LBMaps
from cilia.agent.config import AgentConfig
from cilia.agent.context import new_context
from cilia.agent.wiring import build
from cilia.datapath.opening import MemoryDatapath
from cilia.k8s.tracker import Tracker
from statedb.holders import oldest_snapshot
from tables.problems import Problem

ROOT = Path(__file__).parents[1]
PACKAGES = ("statedb", "reconcilers", "cilia")
FILES = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_asynchronous_functions_look_and_take_no_snapshot(path: Path) -> None:
    """What `DB.look` is given returns before anything is awaited."""
    for function in ast.walk(ast.parse(path.read_text())):
        if not isinstance(function, ast.AsyncFunctionDef):
            continue
        taken = [
            call.lineno
            for call in ast.walk(function)
            if isinstance(call, ast.Call)
            and isinstance(call.func, ast.Attribute)
            and call.func.attr in ("read_txn", "read_txn_at")
        ]
        assert not taken, f"{path}:{taken[0]}: {function.name} takes a snapshot: use DB.look"


async def test_no_job_of_an_agent_at_rest_holds_an_old_snapshot() -> None:
    config = AgentConfig(
        node_name="here", enable_local_redirect_policy=True, statedb_history=0, instance="test"
    )
    agent = build(
        new_context(config, Tracker()),
        config,
        MemoryDatapath(LBMaps.fake(64)),
        health_check_address="127.0.0.1",
    )
    db, problems = agent.ctx.db, agent.ctx.problems
    async with anyio.create_task_group() as group:
        agent.ctx.start(group, agent.jobs)
        with anyio.fail_after(10):
            await agent.loadbalancer.synchronised()
        for number in range(3):
            await anyio.wait_all_tasks_blocked()
            with db.write_txn(problems) as wtxn:
                problems.insert(wtxn, Problem("test", str(number)))
        await anyio.wait_all_tasks_blocked()
        held = oldest_snapshot(db)
        group.cancel_scope.cancel()
    assert held is None, str(held)
